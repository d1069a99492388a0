import Foundation
import TestSupport
import Testing

/// Other programs read what jettrain writes and compute what it computes; and damaged files end in an error, never in a
/// crash. What needs Python's packages is skipped without them; `JETTRAIN_PYTHON` names an interpreter that has them.
@Suite(.serialized) struct InteropTests {
  private static let python = ProcessInfo.processInfo.environment["JETTRAIN_PYTHON"] ?? "python3"

  private static func run(_ arguments: [String]) throws -> (status: Int32, output: String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = arguments
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = pipe
    try process.run()
    let output = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (process.terminationStatus, output)
  }

  private static func pythonHas(_ packages: String) -> Bool {
    (try? run([python, "-c", "import \(packages)"]).status == 0) ?? false
  }

  private func expectSuccess(_ arguments: [String]) throws {
    let (status, output) = try Self.run(arguments)
    print(output)
    #expect(status == 0, "\(arguments.joined(separator: " "))\n\(output.suffix(3000))")
  }

  @Test(.enabled(if: pythonHas("torch, transformers, safetensors"), "needs python3 with torch and transformers"))
  func modelsAgreeWithTransformers() throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-interop-\(UUID())").path
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try expectSuccess([Self.python, repository + "/Tests/Interop/parity.py", jettrainProgram, folder])
  }

  /// Hybrids of small models of the families, in transformers with the modelling code that lies beside them.
  @Test(
    .enabled(if: pythonHas("torch, transformers, safetensors"), "needs python3 with torch and transformers"),
    arguments: ["linear", "mistral", "yarn", "gemma-scale"])
  func hybridsAgreeWithTransformers(family: String) throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-interop-\(UUID())").path
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try expectSuccess([
      Self.python, repository + "/Tests/Interop/hybrid_parity.py", jettrainProgram,
      goldenFolder + "/families/" + family, folder, "--layers", "1", "--mixers",
      "jet,gdn,gla,retnet,mamba2,deltanet,rwkv7",
    ])
  }

  @Test(
    .enabled(
      if: sharedFolder != nil && pythonHas("tokenizers"), "needs ../shared and python3 with the tokenizers package"))
  func tokenizerAgreesWithTokenizers() throws {
    let shared = try #require(sharedFolder)
    try expectSuccess([
      Self.python, repository + "/Tests/Interop/tokenizer_parity.py", jettrainProgram,
      shared + "/tokenizer/qwen2.5", shared + "/corpora",
    ])
  }

  /// Golden files of the reference implementations, through the command that users have.
  @Test(arguments: ["jet", "qwen2"]) func verifyAcceptsGoldenFiles(_ name: String) throws {
    let folder = goldenFolder + "/" + name
    try expectSuccess([jettrainProgram, "verify", folder, folder + "/golden.safetensors"])
    let (status, _) = try Self.run([
      jettrainProgram, "verify", folder, folder + "/golden.safetensors", "--tolerance", "1e-12",
    ])
    #expect(status == 1)
  }

  @Test func damagedFilesEndInErrors() throws {
    try expectSuccess([builtProgram("jettrain-fuzz"), "200000"])
  }
}
