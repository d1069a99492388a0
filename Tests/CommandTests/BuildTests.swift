import Foundation
import TestSupport
import Testing

/// `tokens build` in parts and from a pipe, with the built program: killed, resumed, started twice.
@Suite struct BuildTests {
  let small: SmallRun

  init() throws {
    small = try SmallRun()
    for file in 0..<4 {
      let lines = (0..<30_000).map {
        #"{"text": "file \#(file) line \#($0) \#(String(repeating: "abc ", count: $0 % 40))"}"#
      }
      try small.write("text-\(file).jsonl", lines.joined(separator: "\n") + "\n")
    }
  }

  private static let inputs = (0..<4).map { "text-\($0).jsonl" }

  private func build(_ part: String, in folder: String, _ more: String...) -> [String] {
    ["tokens", "build", "--part", part, "--field", "text", "--shard-tokens", "100000", "--output", folder] + more
      + Self.inputs
  }

  private func expect(_ arguments: [String], _ status: Int32 = 0, saying text: String = "") throws {
    let (ended, output) = try small.run(arguments)
    #expect(
      ended == status && (text.isEmpty || output.contains(text)),
      "\(arguments.joined(separator: " "))\n\(ended): \(output)")
  }

  private func fingerprint(_ folder: String) throws -> String {
    try small.run(["tokens", "inspect", folder]).output.split(separator: "\n").first { $0.hasPrefix("fingerprint") }
      .map(String.init) ?? "no fingerprint"
  }

  private func waits(for file: String) -> Bool {
    let end = Date().addingTimeInterval(60)
    while Date() < end {
      if FileManager.default.fileExists(atPath: small.folder + "/" + file) { return true }
      usleep(1000)
    }
    return false
  }

  @Test func killedPartsGoOnAndJoin() throws {
    for part in ["1/2", "2/2"] { try expect(build(part, in: "whole/set"), saying: "part \(part.prefix(1)) of 2") }
    try expect(["tokens", "join", "whole/set"], saying: "120000 documents")

    // Both at once, one of them stopped and found in use, killed, and resumed.
    let (first, errors) = try small.start(ranks: 0, build("1/2", in: "killed/set"))
    let (second, _) = try small.start(ranks: 0, build("2/2", in: "killed/set"))
    #expect(waits(for: "killed/set/building-1-of-2.json"))
    kill(first.processIdentifier, SIGSTOP)
    let refused = try small.run(build("1/2", in: "killed/set"))
    #expect(refused.status == 65 && refused.output.contains("is in use by host"), "\(refused)")
    kill(first.processIdentifier, SIGKILL)
    first.waitUntilExit()
    _ = errors
    second.waitUntilExit()
    #expect(second.terminationStatus == 0)
    try expect(["tokens", "join", "killed/set"], 65, saying: "lacks part 1 of 2, of which part 1 has begun")
    try expect(build("1/2", in: "killed/set"))
    // Once more is no fault: a batch system may start it again.
    try expect(build("1/2", in: "killed/set"), saying: "part 1 of 2")
    try expect(["tokens", "join", "killed/set"])
    try expect(["tokens", "verify", "killed/set"], saying: "0 damaged")
    #expect(try fingerprint("killed/set") == fingerprint("whole/set"))
    // What was joined trains.
    try expect(["bench", "data", "killed/set", "--context", "64", "--seconds", "0.01"])
  }

  /// Feeds `text` to the program's standard input; `kills` it once a shard is there, which takes more than one batch of 8 MB.
  private func pipe(_ text: Data, in folder: String, kills: Bool = false) throws -> (status: Int32, output: String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: jettrainProgram)
    process.arguments = [
      "tokens", "build", "--field", "text", "--shard-tokens", "100000", "--output", folder, "-",
    ]
    process.currentDirectoryURL = URL(fileURLWithPath: small.folder)
    let (input, output) = (Pipe(), Pipe())
    (process.standardInput, process.standardOutput, process.standardError) = (input, output, output)
    try process.run()
    let writer = Thread {
      try? input.fileHandleForWriting.write(contentsOf: text)
      if !kills { try? input.fileHandleForWriting.close() }
    }
    writer.start()
    if kills {
      #expect(waits(for: folder + "/building.json"))
      kill(process.processIdentifier, SIGKILL)
    }
    let said = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (process.terminationStatus, said)
  }

  @Test func whatIsPipedInIsADataset() throws {
    signal(SIGPIPE, SIG_IGN)
    let text = try Self.inputs.reduce(into: Data()) {
      $0 += try Data(contentsOf: URL(fileURLWithPath: small.folder + "/" + $1))
    }
    try text.write(to: URL(fileURLWithPath: small.folder + "/all.jsonl"))
    try expect([
      "tokens", "build", "--field", "text", "--shard-tokens", "100000", "--output", "file/set", "all.jsonl",
    ])
    let piped = try pipe(text, in: "piped/set")
    #expect(piped.status == 0 && piped.output.contains("120000 documents"), "\(piped)")
    #expect(!piped.output.contains("%"), "\(piped.output)")
    #expect(try fingerprint("piped/set") == fingerprint("file/set"))

    // Killed on the way: the same text goes on, another is refused, and so is less of it.
    let half = try pipe(text, in: "killed/set", kills: true)
    #expect(half.status == SIGKILL)
    var other = text
    // Another digit in the first line.
    other[try #require(other.firstIndex(of: UInt8(ascii: "0")))] += 1
    for wrong in [other, text.prefix(through: try #require(text.firstIndex(of: UInt8(ascii: "\n"))))] {
      let refused = try pipe(wrong, in: "killed/set")
      #expect(refused.status == 65 && refused.output.contains("other ones come now"), "\(refused)")
    }
    let resumed = try pipe(text, in: "killed/set")
    #expect(resumed.status == 0, "\(resumed)")
    #expect(try fingerprint("killed/set") == fingerprint("file/set"))

    for wrong in [["-", "all.jsonl"], ["--part", "1/2", "-"], ["--tokens", "llmc", "-"]] {
      let field = wrong.contains("--tokens") ? [] : ["--field", "text"]
      try expect(["tokens", "build", "--output", "wrong"] + field + wrong, 64, saying: "- is standard input")
    }
    let lines = try pipe(Data("{\"content\": \"no such field\"}\n".utf8), in: "field/set")
    #expect(lines.status == 65 && lines.output.contains("standard input:1: has no text in field text"), "\(lines)")
  }
}
