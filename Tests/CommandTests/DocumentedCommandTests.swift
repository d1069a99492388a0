import Foundation
import TestSupport
import Testing

/// The commands that README and docs name: those of their blocks run as they stand, in a small world where what they name is
/// there; those in their sentences are ones that the program takes.
@Suite(.serialized) struct DocumentedCommandTests {
  private static let world = Result { try DocumentedWorld() }

  /// What does not run here, by how its line begins, and why.
  private static let elsewhere: [(begins: String, why: String)] = [
    ("./bootstrap", "builds and tests the checkout, as .ci/run does"),
    ("jettrain devices", "needs a card"), ("compute-sanitizer", "needs a card"),
    ("jettrain bench kernels", "needs a card"),
    ("jettrain bench step --job Jobs/bench/jet-nemotron-2b.yaml --device cuda", "needs a card"),
    ("jettrain bench decode --device cuda", "needs a card"),
    ("jettrain bench checkpoint --device cuda", "needs a card"),
    ("jettrain plan --device cuda", "needs a card"),
    ("jettrain models fetch", "fetches from the network"),
    (".build/release/jettrain-faults", "FaultTests runs every kind"),
    ("mpirun -n 2 .build/release/jettrain-faults", "FaultTests runs it"),
    ("Cluster/testbed/testbed", "needs root and network namespaces; FaultTests runs it where they are"),
    ("python3 Tests/Interop/make_golden.py", "needs PyTorch and transformers"),
  ]

  /// What is run before the commands of a document: they begin where another one ended.
  private static let before = [
    "docs/models.md": "jettrain distill; jettrain finetune",
    "docs/search.md": "jettrain distill --job Jobs/supernet.yaml",
  ]

  static let documents: [String] = {
    let docs = (try? FileManager.default.contentsOfDirectory(atPath: repository + "/docs")) ?? []
    return ["README.md", "CONTRIBUTING.md", "Cluster/README.md", "Cluster/testbed/README.md", "Checkpoints/FORMAT.md"]
      + docs.filter { $0.hasSuffix(".md") }.sorted().map { "docs/" + $0 }
  }()

  private static func text(_ document: String) throws -> String {
    try String(contentsOfFile: repository + "/" + document, encoding: .utf8)
  }

  /// The blocks of a document.
  private static func blocks(_ text: String) -> [[String]] {
    var (blocks, block): ([[String]], [String]?) = ([], nil)
    for line in text.split(separator: "\n", omittingEmptySubsequences: false) {
      if line.trimmingCharacters(in: .whitespaces).hasPrefix("```") {
        if let whole = block { blocks.append(whole) }
        block = block == nil ? [] : nil
      } else {
        block?.append(String(line))
      }
    }
    return blocks
  }

  /// Whether a block is one of commands, by what it begins with.
  private static func isScript(_ block: [String]) -> Bool {
    guard let first = block.first?.trimmingCharacters(in: .whitespaces) else { return false }
    let programs = [
      "jettrain ", "mpirun ", "python3 ", "sbatch ", "compute-sanitizer ", "cat ", "for ", "git ", "export ",
    ]
    return programs.contains(where: first.hasPrefix)
      || first.contains(#/^(\./|\.build/|Cluster/testbed/testbed|JETTRAIN_)/#)
  }

  /// A block without what does not run here, and how many of its lines those are.
  private static func runnable(_ block: [String]) -> (script: String, left: Int) {
    var (kept, left, isContinued): ([String], Int, Bool) = ([], 0, false)
    for line in block {
      let command = line.trimmingCharacters(in: .whitespaces)
      if isContinued || elsewhere.contains(where: { command.hasPrefix($0.begins) }) {
        if !isContinued { left += 1 }
        isContinued = command.hasSuffix("\\")
      } else {
        kept.append(line)
      }
    }
    return (kept.joined(separator: "\n"), left)
  }

  @Test(arguments: documents) func blocksRunAsTheyStand(document: String) throws {
    let scripts = Self.blocks(try Self.text(document)).filter(Self.isScript).map(Self.runnable)
    let whole = scripts.map(\.script).filter { $0.contains { !$0.isWhitespace } }
    guard !whole.isEmpty else { return }
    let world = try Self.world.get()
    let place = try world.copy()
    defer { try? FileManager.default.removeItem(atPath: place) }
    if let before = Self.before[document] {
      let (status, output) = try world.bash(before, in: place)
      #expect(status == 0, "\(document): \(before)\n\(output)")
    }
    for script in whole {
      if script.contains("pyarrow"), try world.bash("python3 -c 'import pyarrow'", in: place).status != 0 {
        print("\(document): python3 has no pyarrow here; its example is not run")
        continue
      }
      if script.contains("pyarrow") {
        let table =
          "import pyarrow as a, pyarrow.parquet as p; p.write_table(a.table({'text': ['A text.'] * 500}), 'x.parquet')"
        #expect(try world.bash("mkdir -p raw; cd raw; python3 -c \"\(table)\"", in: place).status == 0)
      }
      // Each command is shown before it runs, so that a failure is the last one shown.
      let (status, output) = try world.bash("set -x\n" + script, in: place)
      #expect(status == 0, "\(document):\n\(script)\nends with \(status):\n\(output.suffix(3000))")
    }
    print("\(document): \(whole.count) blocks run, \(scripts.reduce(0) { $0 + $1.left }) lines left to others")
  }

  /// A reason that no document needs any more is none.
  @Test func everyReasonIsNeeded() throws {
    let lines = try Self.documents.flatMap { Self.blocks(try Self.text($0)).joined() }
      .map { $0.trimmingCharacters(in: .whitespaces) }
    for (begins, _) in Self.elsewhere {
      #expect(lines.contains { $0.hasPrefix(begins) }, "no command begins with \(begins)")
    }
  }

  @Test func readmeIsShort() throws {
    #expect(try Self.text("README.md").split(separator: "\n", omittingEmptySubsequences: false).count <= 151)
  }

  /// A command as a document has it.
  private struct Documented {
    let place: String
    let words: [String]
  }

  /// What stands in code: lines of blocks, continued ones joined, and spans.
  private static func code(of text: String) -> [String] {
    let lines = blocks(text).joined().reduce(into: [String]()) { lines, line in
      if let last = lines.last, last.hasSuffix("\\") {
        lines[lines.count - 1] = last.dropLast() + line
      } else {
        lines.append(line)
      }
    }
    let prose = text.replacing(/```.*?\n[ ]*```/.dotMatchesNewlines(), with: "")
    return lines + prose.matches(of: /`([^`]+)`/).map { $0.1.split(separator: "\n").joined(separator: " ") }
  }

  private static func commands() throws -> [Documented] {
    try documents.flatMap { path -> [Documented] in
      try code(of: text(path)).flatMap { line in
        line.split(separator: "jettrain ", omittingEmptySubsequences: false).dropFirst().map { rest in
          // To the end of the command: a comment, a pipe, another command, a closing bracket.
          let command = rest.prefix { !"#|;&()".contains($0) }
          return Documented(place: path, words: command.split(whereSeparator: \.isWhitespace).map(String.init))
        }
      }
    }
  }

  @Test func everyOneIsTaken() throws {
    let dump = try Self.world.get().bash("jettrain --experimental-dump-help").output
    let leaves = try JSONDecoder().decode(HelpDump.self, from: Data(dump.utf8)).command.leaves()
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
}
