import Foundation

/// Runs another program to its end.
///
/// - Parameters:
///   - input: what it reads from standard input, where nobody else sees it
/// - Returns: what it wrote to standard output, and its exit status; its errors go where this program's go
func run(_ name: String, _ arguments: [String], input: String = "") throws -> (output: Data, status: Int32) {
  let process = Process()
  process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
  process.arguments = [name] + arguments
  let (standardInput, standardOutput) = (Pipe(), Pipe())
  (process.standardInput, process.standardOutput) = (standardInput, standardOutput)
  do { try process.run() } catch { throw FetchError(name, "cannot be started: \(error)", kind: .system) }
  try? standardInput.fileHandleForWriting.write(contentsOf: Data(input.utf8))
  try? standardInput.fileHandleForWriting.close()
  let output = standardOutput.fileHandleForReading.readDataToEndOfFile()
  process.waitUntilExit()
  if process.terminationStatus == 127 { throw FetchError(name, "is not installed", kind: .system) }
  return (output, process.terminationStatus)
}

/// Fetching by curl, which knows proxies, certificates and how to go on.
struct Curl {
  /// Sent with every request, unless empty; it goes to curl by standard input, since all users see the command line.
  let token: String

  /// Quotes a value of curl's configuration.
  private func quoted(_ text: String) -> String {
    "\"" + text.replacingOccurrences(of: "\\", with: "\\\\").replacingOccurrences(of: "\"", with: "\\\"") + "\""
  }

  private func settings(_ url: String, _ more: [String]) throws -> String {
    guard !url.contains(where: { $0.isNewline }), !token.contains(where: { $0.isNewline }) else {
      throw FetchError(url, "a URL or HF_TOKEN may not hold line breaks")
    }
    let header = token.isEmpty ? [] : ["header = " + quoted("Authorization: Bearer " + token)]
    return (["url = " + quoted(url), "location", "fail", "retry = 3", "connect-timeout = 30"] + header + more)
      .joined(separator: "\n") + "\n"
  }

  private func check(_ status: Int32, _ url: String) throws {
    switch status {
    case 0: return
    case 22:
      throw FetchError(
        url,
        "the server refused it: is the name right, and if the model is gated, is HF_TOKEN set and its licence accepted?"
      )
    default: throw FetchError(url, "curl failed with status \(status); run the command again to go on", kind: .system)
    }
  }

  func read(_ url: String) throws -> Data {
    let (output, status) = try run("curl", ["--silent", "--show-error", "--config", "-"], input: settings(url, []))
    try check(status, url)
    return output
  }

  /// Fetches `url` into the file at `path`, going on where one of its beginning is there.
  func download(_ url: String, to path: String, quiet: Bool) throws {
    let show = quiet ? ["--silent", "--show-error"] : ["--progress-bar"]
    let (_, status) = try run(
      "curl", show + ["--config", "-"],
      input: settings(url, ["output = " + quoted(path), "continue-at = -"]))
    try check(status, url)
  }
}
