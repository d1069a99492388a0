import Foundation
import Synchronization
import TestSupport
import Testing

/// What the program does with options that nobody means: every subcommand that its help lists, every option of it that takes
/// a value, at numbers that are none and at paths that lead elsewhere. Either it is documented as valid (`meant`), or there is
/// one line and an exit code for usage, data, a missing card, or input and output; never a signal, a backtrace or a hang.
@Suite struct MistakeTests {
  static let numbers = ["-1", "0", "1e30", "nan"]
  static let paths = ["missing/path", "folder", "binary"]

  /// One call with one mistake.
  struct Case {
    let command: String
    let option: String
    let value: String
    let arguments: [String]
  }

  @Test func everyOptionOfEveryCommandAtEveryMistake() throws {
    let small = try Self.prepare()
    let cases = try Self.cases(small)
    #expect(cases.count > 1000)
    let findings = Mutex<[String]>([])
    let next = Atomic(0)
    DispatchQueue.concurrentPerform(iterations: 3) { _ in
      while true {
        let index = next.wrappingAdd(1, ordering: .relaxed).oldValue
        guard index < cases.count else { return }
        let one = cases[index]
        let finding = Self.fault(of: one, number: index, in: small)
        if let finding { findings.withLock { $0.append(finding) } }
      }
    }
    let found = findings.withLock { $0 }.sorted()
    #expect(found.isEmpty, "\(found.count) of \(cases.count):\n\(found.joined(separator: "\n"))")
    print("\(cases.count) mistakes, \(found.count) not answered as they should be")
  }

  /// A folder with what the calls read, and what mistaken paths lead to.
  private static func prepare() throws -> SmallRun {
    let small = try SmallRun()
    var state: UInt64 = 1
    let bytes = (0..<4000).map { _ in
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return UInt8(truncatingIfNeeded: state >> 33)
    }
    try Data(bytes).write(to: URL(fileURLWithPath: small.folder + "/binary"))
    try small.write(
      "finetune.yaml",
      """
      model: {student: teacher/model}
      data: {root: data, mix: ./mix.yaml}
      train: {context: 64, global_batch: 8, micro_batch: 2, tokens: 512}
      """)
    // A supernet of two steps, and a search of one candidate.
    let text = try String(contentsOfFile: small.folder + "/hybrid.json", encoding: .utf8)
    try small.write(
      "supernet.json",
      text.replacingOccurrences(of: "\"jet\", \"attn\", \"jet\"", with: "\"attn\", \"attn\", \"attn\"")
        .replacingOccurrences(of: "\"layer_types\"", with: "\"supernet_mixer\": \"jet\", \"layer_types\""))
    let rest = """
      data: {root: data, mix: ./mix.yaml}
      train: {context: 64, global_batch: 8, micro_batch: 2, tokens: 1024, losses: {hidden: 1}}
      """
    try small.write(
      "supernet.yaml", "model: {teacher: teacher/model, student: supernet.json, full_layers: 1}\n" + rest)
    try small.write("candidate.yaml", "model: {teacher: teacher/model, student: hybrid.json}\n" + rest)
    try small.write(
      "search.yaml",
      """
      teacher: teacher/model
      decode_context: 32
      objectives: {scores: [kl], data: data/qa, context: 64, sequences: 2}
      placement: {job: supernet.yaml, full: 1, strategies: [uniform]}
      block: {job: candidate.yaml, candidates: [gla]}
      """)
    let (status, output) = try small.run(["distill", "--job", "supernet.yaml", "--run-dir", "supernet"])
    guard status == 0 else { throw SmallRun.Failure(description: output) }
    return small
  }

  private static func cases(_ small: SmallRun) throws -> [Case] {
    let dump = try small.run(["--experimental-dump-help"]).output
    let leaves = try JSONDecoder().decode(HelpDump.self, from: Data(dump.utf8)).command.leaves()
    var cases: [Case] = []
    for (path, arguments) in leaves {
      let command = path.joined(separator: " ")
      let call = try #require(calls[command], "Tests/CommandTests/Commands.swift does not say how to call \(command)")
      for argument in arguments {
        for value in numbers + paths {
          if let option = argument.option {
            cases.append(
              Case(
                command: command, option: option, value: value,
                arguments: path + with(option, value, in: call)))
          } else if argument.kind == "positional", let place = firstPositional(call), command != "launch" {
            var replaced = call
            replaced[place] = value
            cases.append(
              Case(
                command: command, option: "<\(argument.valueName ?? "")>", value: value,
                arguments: path + (value == "-1" ? ["--"] : []) + replaced))
          }
        }
      }
    }
    return cases
  }

  /// `call` with this option, in place of the value that it has there.
  private static func with(_ option: String, _ value: String, in call: [String]) -> [String] {
    var rest = call
    let end = rest.firstIndex(of: "--") ?? rest.endIndex
    if let place = rest[..<end].firstIndex(of: option) { rest.removeSubrange(place...place + 1) }
    return ["\(option)=\(value)"] + rest
  }

  /// The first argument of `call` that is no option's.
  private static func firstPositional(_ call: [String]) -> Int? {
    var place = 0
    while place < call.count {
      guard call[place].hasPrefix("--") else { return place }
      place += 2
    }
    return nil
  }

  /// What is wrong with the answer to a mistake; nil where it is as it should be.
  private static func fault(of one: Case, number: Int, in small: SmallRun) -> String? {
    let arguments = one.arguments.map { $0.replacingOccurrences(of: "OUT", with: "out-\(number)") }
    let call = "jettrain " + arguments.map { $0.contains(" ") ? "'\($0)'" : $0 }.joined(separator: " ")
    let answer: Answer
    do { answer = try ask(arguments, in: small.folder + "/case-\(number)", of: small.folder) } catch {
      return "\(call): \(error)"
    }
    if answer.isHanging { return "\(call): no end in \(Int(patience)) s" }
    if let signal = answer.signal { return "\(call): signal \(signal)\n\(answer.errors.prefix(400))" }
    let isMeant = meant.contains {
      ($0.command == "*" || $0.command == one.command) && $0.option == one.option
        && ($0.values == ["*"] || $0.values.contains(one.value))
    }
    if answer.status == 0 { return isMeant ? nil : "\(call): exits with 0" }
    let codes: Set<Int32> =
      one.command.hasPrefix("devices") || one.command == "bench kernels" ? [64, 65, 69, 74] : [64, 65, 74]
    guard codes.contains(answer.status) else {
      return "\(call): exits with \(answer.status): \(answer.errors.prefix(300))"
    }
    let lines = answer.errors.split(separator: "\n").filter { !$0.hasPrefix("note: ") }
    let said = lines.filter {
      $0.hasPrefix("jettrain: ") || $0.hasPrefix("jettrain launch: mpirun cannot start this: ")
    }
    guard said.count == 1, said[0].utf8.count < 600, !answer.errors.contains("Fatal error") else {
      return "\(call): \(lines.count) lines with \(answer.status): \(answer.errors.prefix(600))"
    }
    // Whoever gave several wants to know which one is wrong.
    let isElsewhere = answer.status == 69 || one.command == "models fetch"
    guard isElsewhere || one.option.hasPrefix("<") || said[0].contains(one.option) || said[0].contains(one.value) else {
      return "\(call): names neither \(one.option) nor its value: \(said[0])"
    }
    return nil
  }

  private struct Answer {
    let status: Int32
    let signal: Int32?
    let errors: String
    let isHanging: Bool
  }

  /// Seconds that any call may take on a busy machine; it may compute for five of them.
  private static let patience = 60.0

  /// Runs the program in a folder of its own, in which everything of `inputs` is.
  private static func ask(_ arguments: [String], in folder: String, of inputs: String) throws -> Answer {
    let manager = FileManager.default
    try manager.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? manager.removeItem(atPath: folder) }
    try manager.createDirectory(atPath: folder + "/folder/inside", withIntermediateDirectories: true)
    for name in try manager.contentsOfDirectory(atPath: inputs) where !name.hasPrefix("case-") {
      try manager.createSymbolicLink(atPath: folder + "/" + name, withDestinationPath: inputs + "/" + name)
    }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/sh")
    process.arguments = ["-c", "ulimit -t 5; exec \"$0\" \"$@\"", jettrainProgram] + arguments
    process.currentDirectoryURL = URL(fileURLWithPath: folder)
    process.environment = ProcessInfo.processInfo.environment.merging([
      "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "JETTRAIN_THREADS": "1",
      "OPENBLAS_NUM_THREADS": "1", "SWIFT_BACKTRACE": "enable=no",
    ]) { $1 }
    let errors = folder + ".errors"
    _ = manager.createFile(atPath: errors, contents: nil)
    defer { try? manager.removeItem(atPath: errors) }
    process.standardError = try FileHandle(forWritingTo: URL(fileURLWithPath: errors))
    process.standardOutput = FileHandle.nullDevice
    process.standardInput = FileHandle.nullDevice
    try process.run()
    let end = Date().addingTimeInterval(patience)
    while process.isRunning, Date() < end { usleep(2000) }
    let isHanging = process.isRunning
    if isHanging { process.terminate() }
    process.waitUntilExit()
    let said = String(decoding: manager.contents(atPath: errors) ?? Data(), as: UTF8.self)
    return Answer(
      status: process.terminationStatus,
      signal: process.terminationReason == .uncaughtSignal ? process.terminationStatus : nil, errors: said,
      isHanging: isHanging)
  }
}
