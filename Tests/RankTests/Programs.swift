import Foundation

/// Runs a program and gives its exit status and output.
func run(_ arguments: [String], _ folder: String) throws -> (status: Int32, output: String) {
  let process = Process()
  process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
  process.arguments = arguments
  process.currentDirectoryURL = URL(fileURLWithPath: folder)
  let pipe = Pipe()
  process.standardOutput = pipe
  process.standardError = pipe
  try process.run()
  let output = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
  process.waitUntilExit()
  return (process.terminationStatus, output)
}

/// Python, where there is one.
func python(_ arguments: [String], _ folder: String) throws -> (status: Int32, output: String) {
  try run(["python3"] + arguments, folder)
}

/// Whether Python reads safetensors files.
let pythonHasSafetensors =
  (try? python(["-c", "import safetensors.numpy"], FileManager.default.temporaryDirectory.path).status == 0) ?? false
