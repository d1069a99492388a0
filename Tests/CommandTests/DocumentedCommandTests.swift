import Foundation
import TestSupport
import Testing

/// The commands that README and docs name: all of them are ones that the program takes, and README's run, on small inputs.
@Suite struct DocumentedCommandTests {
  /// A command as a document has it.
  private struct Documented {
    let place: String
    let words: [String]
  }

  private static func documents() throws -> [String] {
    let docs = try FileManager.default.contentsOfDirectory(atPath: repository + "/docs").filter { $0.hasSuffix(".md") }
    return ["README.md", "CONTRIBUTING.md", "Cluster/README.md"] + docs.sorted().map { "docs/" + $0 }
  }

  /// What stands in code: blocks, their continued lines joined, and spans.
  private static func code(of text: String) -> [String] {
    var (lines, inBlock, spans): ([String], Bool, [String]) = ([], false, [])
    for line in text.split(separator: "\n", omittingEmptySubsequences: false) {
      if line.trimmingCharacters(in: .whitespaces).hasPrefix("```") {
        inBlock.toggle()
      } else if inBlock {
        if let last = lines.last, last.hasSuffix("\\") {
          lines[lines.count - 1] = String(last.dropLast()) + line
        } else {
          lines.append(String(line))
        }
      }
    }
    let prose = text.replacing(/```.*?\n```/.dotMatchesNewlines(), with: "")
    for match in prose.matches(of: /`([^`]+)`/) { spans.append(match.1.split(separator: "\n").joined(separator: " ")) }
    return lines + spans
  }

  private static func commands() throws -> [Documented] {
    try documents().flatMap { path -> [Documented] in
      let text = try String(contentsOfFile: repository + "/" + path, encoding: .utf8)
      return code(of: text).flatMap { line in
        line.split(separator: "jettrain ", omittingEmptySubsequences: false).dropFirst().map { rest in
          // To the end of the command: a comment, a pipe, another command, a closing bracket.
          let command = rest.prefix { !"#|;&()".contains($0) }
          return Documented(place: path, words: command.split(whereSeparator: \.isWhitespace).map(String.init))
        }
      }
    }
  }

  @Test func everyOneIsTaken() throws {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: jettrainProgram)
    process.arguments = ["--experimental-dump-help"]
    let output = Pipe()
    process.standardOutput = output
    try process.run()
    let dump = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    let leaves = try JSONDecoder().decode(HelpDump.self, from: dump).command.leaves()
    let names = Set(leaves.flatMap { leaf in leaf.path.indices.map { leaf.path[...$0].joined(separator: " ") } })
    var checked = 0
    for documented in try Self.commands() {
      // `tokens build|encode` names several; an ellipsis stands for options.
      guard let first = documented.words.first, names.contains(String(first.prefix { $0 != "…" })) else { continue }
      var path = [first]
      if documented.words.count > 1, names.contains(first + " " + documented.words[1]) {
        path.append(documented.words[1])
      }
      guard let leaf = leaves.first(where: { $0.path == path }) else { continue }
      let flags = leaf.arguments.flatMap { $0.names ?? [] }.map { "--" + $0.name }
      let own = documented.words.prefix { $0 != "--" }
      for word in own where word.hasPrefix("--") {
        let option = String(word.prefix { $0 != "=" }).trimmingCharacters(in: .punctuationCharacters.subtracting(["-"]))
        guard option.count > 2 else { continue }
        #expect(
          flags.contains(option),
          "\(documented.place): jettrain \(documented.words.joined(separator: " ")): no \(option)")
      }
      checked += 1
    }
    #expect(checked > 60, "\(checked) commands found")
  }

  /// README's block "Use it", line by line, and what stands for each in a folder with small inputs.
  private static let used: [(command: String, small: [String])] = [
    (
      "jettrain tokens build",
      ["tokens", "build", "--output", "Data/my-set", "--template", "{question} {answer}", "qa.jsonl"]
    ),
    ("jettrain convert", ["convert", "teacher/model", "--config", "hybrid.json", "--output", "Models/student"]),
    (
      "mpirun jettrain distill",
      ["distill", "--job", "distill.yaml", "--data", "Data/my-set", "--run-dir", "Checkpoints/distill"]
    ),
    (
      "mpirun jettrain finetune",
      ["finetune", "--job", "finetune.yaml", "--run-dir", "Checkpoints/finetune"]
    ),
    ("jettrain checkpoint list", ["checkpoint", "list", "Checkpoints/finetune"]),
    (
      "jettrain eval",
      ["eval", "Checkpoints/finetune", "--teacher", "teacher/model", "--data", "Data/my-set", "--context", "64"]
    ),
    ("jettrain generate", ["generate", "Checkpoints/finetune/model", "--prompt", "aBcDe\nb", "--max-tokens", "2"]),
    ("jettrain checkpoint export", ["checkpoint", "export", "Checkpoints/finetune", "--output", "Models/mine"]),
    ("jettrain verify", ["verify", "Models/mine", "golden.safetensors"]),
  ]

  @Test func thoseOfTheReadmeRun() throws {
    let text = try String(contentsOfFile: repository + "/README.md", encoding: .utf8)
    let block = try #require(text.firstMatch(of: /## Use it\n```\n(.*?)```/.dotMatchesNewlines())).1
    let lines = block.split(separator: "\n").filter { $0.hasPrefix("jettrain") || $0.hasPrefix("mpirun") }
    #expect(lines.count == Self.used.count)
    let small = try SmallRun()
    try small.write(
      "finetune.yaml",
      """
      model: {student: Checkpoints/distill/model}
      data: {path: Data/my-set}
      train: {context: 64, global_batch: 8, micro_batch: 2, tokens: 2048}
      checkpoints: {every: 2}
      """)
    for (line, (command, arguments)) in zip(lines, Self.used) {
      #expect(line.hasPrefix(command), "\(line)")
      let ranks = command.hasPrefix("mpirun") ? 2 : 0
      let (status, output) = try small.run(ranks: ranks, arguments)
      // There is no reference's file here: Tests/ModelsTests compares with those that there are.
      #expect(
        status == (arguments[0] == "verify" ? 65 : 0) || arguments[0] == "verify" && status == 74, "\(line)\n\(output)")
    }
  }
}
