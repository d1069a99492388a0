import Checkpointing
import Files
import Foundation
import Reporting

/// What is launched and how often.
package struct LaunchPlan {
  package var ranks: Int
  package var hostfile: String?
  package var maxRestarts: Int
  /// The run is given up after this many crashes in a row at the same step.
  package var crashesAtAStep: Int
  /// Seconds before the first restart; they double with every one that brings no step forward.
  package var backoff: Double
  /// Further arguments of mpirun.
  package var mpirunArguments: [String]
  /// The program and what it is to do.
  package var command: [String]
  package var runFolder: String
  /// Whether the job can be run by so many ranks.
  package var accepts: (_ ranks: Int) -> Bool

  package init(
    ranks: Int, hostfile: String?, maxRestarts: Int, crashesAtAStep: Int, backoff: Double, mpirunArguments: [String],
    command: [String], runFolder: String, accepts: @escaping (_ ranks: Int) -> Bool = { _ in true }
  ) {
    self.ranks = ranks
    self.hostfile = hostfile
    self.maxRestarts = maxRestarts
    self.crashesAtAStep = crashesAtAStep
    self.backoff = backoff
    self.mpirunArguments = mpirunArguments
    self.command = command
    self.runFolder = runFolder
    self.accepts = accepts
  }

  /// The largest number of ranks, none more than were asked for, that has room in `slots` and that the job accepts; nil
  /// where there is none.
  package func ranks(in slots: Int) -> Int? {
    stride(from: min(ranks, slots), to: 0, by: -1).first(where: accepts)
  }
}

/// Runs a job under mpirun and starts it again from its newest good checkpoint until it is done, wants to stop, or cannot
/// be helped.
package final class Supervisor {
  private let plan: LaunchPlan
  private let run: RunFolder
  private var attempts: [Attempt] = []
  private var hosts: [(name: String, slots: Int)] = []
  private var faults: [String: Int] = [:]

  /// Exit codes that no restart mends: usage; and bad data, unless the attempt came forward, and what it then met may have
  /// been a moment's.
  private static let (usage, badData, cardFault): (Int32, Int32, Int32) = (64, 65, 69)
  private static let stoppedOnRequest: Int32 = 75

  /// What mpirun says where it cannot start at all, and no restart mends it; with what does.
  private static let misstarts: [(says: String, reason: String)] = [
    (
      "not enough slots",
      "there are fewer slots than --ranks; start fewer, name more in --hostfile, or add --mpirun=--oversubscribe"
    ),
    (
      "has detected an attempt to run as root",
      "it refuses root; set OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    ),
    ("unknown option", "an argument of --mpirun is none of its options"),
    ("unable to find the specified executable", "an argument of --mpirun is taken for the program"),
    ("could not access\nor execute an executable", "an argument of --mpirun is taken for the program"),
    ("mpirun: No such file", "it is not installed (Debian: openmpi-bin)"),
    ("‘mpirun’: No such file", "it is not installed (Debian: openmpi-bin)"),
    ("unable to open the hostfile", "--hostfile cannot be opened"),
  ]
  /// A host is left out after this many crashes that began on it.
  private static let faultsOfAHost = 2

  private struct Attempt {
    let begin: Date
    var seconds = 0.0
    /// Those that answered when it began.
    let hosts: [(name: String, slots: Int)]
    let ranks: Int
    let from: Int
    var reached = 0
    var status: Int32 = 0
    var bySignal = false
    var host: String?
    /// Why mpirun did not start the program, where no restart mends it.
    var misstart: String?
  }

  package init(_ plan: LaunchPlan) throws {
    self.plan = plan
    run = RunFolder(plan.runFolder)
    if let path = plan.hostfile { hosts = try Self.read(path) }
  }

  /// `NAME slots=N` a line.
  private static func read(_ path: String) throws -> [(name: String, slots: Int)] {
    guard let text = try? String(contentsOfFile: path, encoding: .utf8) else {
      throw JobError(.usage, "--hostfile \(path): cannot be read")
    }
    return text.split(separator: "\n").compactMap { line in
      let words = line.split(separator: "#", omittingEmptySubsequences: false)[0].split(separator: " ")
      guard let name = words.first else { return nil }
      let slots = words.dropFirst().compactMap { word -> Int? in
        let parts = word.split(separator: "=")
        return parts.count == 2 && parts[0] == "slots" ? Int(parts[1]) : nil
      }
      return (String(name), slots.first ?? 1)
    }
  }

  /// Runs to an end.
  ///
  /// - Returns: the exit code of the last attempt
  package func supervise() throws -> Int32 {
    try run.refuseLinks()
    try createLogs()
    var pause = plan.backoff
    while true {
      let present = try answeringHosts()
      var attempt = Attempt(
        begin: Date(), hosts: present, ranks: try ranks(on: present), from: Self.saved(in: plan.runFolder))
      try launch(&attempt)
      attempt.seconds = Date().timeIntervalSince(attempt.begin)
      attempt.reached = Self.reached(in: plan.runFolder)
      attempts.append(attempt)
      if let status = endedBySignal() { return status }
      if attempt.status == 0 && !attempt.bySignal { return report("finished") }
      if !attempt.bySignal, attempt.status == Self.stoppedOnRequest { return report("stopped on request") }
      if let reason = attempt.misstart {
        FileHandle.standardError.write(Data("jettrain launch: mpirun cannot start this: \(reason)\n".utf8))
        return Self.usage
      }
      let isHopeless =
        attempt.status == Self.usage || (attempt.status == Self.badData && attempt.reached <= attempt.from)
      if !attempt.bySignal, isHopeless {
        return report("given up: no restart mends exit code \(attempt.status)")
      }
      let last = attempts.suffix(plan.crashesAtAStep)
      if last.count == plan.crashesAtAStep, Set(last.map(\.reached)).count == 1, Set(last.map(\.from)).count == 1 {
        return report(
          "given up: \(Format.counted(last.count, "crash", plural: "crashes")) in a row at step \(attempt.reached)")
      }
      if attempts.count > plan.maxRestarts {
        return report("given up after \(Format.counted(plan.maxRestarts, "restart"))")
      }
      if let host = attempt.host, !hosts.isEmpty {
        // A card that failed, or is gone, fails again.
        let isCard = attempt.status == Self.cardFault
        faults[host, default: 0] += isCard ? Self.faultsOfAHost : 1
        if faults[host]! >= Self.faultsOfAHost, hosts.count > 1 {
          hosts.removeAll { $0.name == host }
          say(
            "host \(host) \(isCard ? "has a card that failed" : "failed \(Self.faultsOfAHost) times") and is left out; "
              + "\(try Self.goOn(ranks(on: hosts)))")
        }
      }
      pause = attempt.reached > attempt.from ? plan.backoff : min(60, pause * 2)
      say("attempt \(attempts.count) ended (\(Self.ending(attempt))); starting again in \(Int(pause.rounded())) s")
      let end = Date().addingTimeInterval(pause)
      while Date() < end, receivedSignal == 0 { usleep(50_000) }
      if let status = endedBySignal(isPausing: true) { return status }
    }
  }

  /// The exit code, when somebody wants the launcher itself to end: at once by SIGINT and SIGTERM; in a pause, in which
  /// there is no run that could stop at a checkpoint, also by SIGUSR1 and SIGUSR2.
  private func endedBySignal(isPausing: Bool = false) -> Int32? {
    switch receivedSignal {
    case SIGINT, SIGTERM:
      _ = report("ended by signal \(receivedSignal)")
      return 128 + receivedSignal
    case let signal where isPausing && (signal == SIGUSR1 || signal == SIGUSR2):
      _ = report("stopped on request")
      return Self.stoppedOnRequest
    default: return nil
    }
  }

  private static func goOn(_ ranks: Int) -> String {
    Format.counted(ranks, "rank") + (ranks == 1 ? " goes on" : " go on")
  }

  /// Ranks to start: as many as asked for, or when hosts were left out as many as have room and the job accepts.
  private func ranks(on hosts: [(name: String, slots: Int)]) throws -> Int {
    let slots = hosts.reduce(0) { $0 + $1.slots }
    guard !hosts.isEmpty, slots < plan.ranks else { return plan.ranks }
    guard let count = plan.ranks(in: slots) else {
      throw JobError(
        .usage, "\(plan.runFolder): no number of ranks up to \(slots), for which there is room, can run the job")
    }
    return count
  }

  /// The hosts that ssh reaches: one that does not answer is left out of this attempt. All of them, when none answers,
  /// since mpirun may have another way to them.
  private func answeringHosts() throws -> [(name: String, slots: Int)] {
    let agent = (ProcessInfo.processInfo.environment["OMPI_MCA_plm_rsh_agent"] ?? "ssh").split(separator: " ").map(
      String.init)
    guard let program = agent.first, program == "ssh" || program.hasSuffix("/ssh") else { return hosts }
    let own = ProcessInfo.processInfo.hostName
    let probes = hosts.map { host -> Process? in
      guard host.name != own, host.name != "localhost" else { return nil }
      let probe = Process()
      probe.executableURL = URL(fileURLWithPath: "/usr/bin/env")
      probe.arguments = agent + ["-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host.name, "true"]
      probe.standardError = FileHandle.nullDevice
      try? probe.run()
      return probe
    }
    let end = Date().addingTimeInterval(Self.probeSeconds)
    var present: [(name: String, slots: Int)] = []
    var absent: [String] = []
    for (host, probe) in zip(hosts, probes) {
      while probe?.isRunning ?? false, Date() < end { usleep(20_000) }
      probe?.terminate()
      if probe.map({ !$0.isRunning && $0.terminationStatus == 0 }) ?? true {
        present.append(host)
      } else {
        absent.append(host.name)
      }
    }
    guard !present.isEmpty, !absent.isEmpty else { return hosts }
    say("\(absent.joined(separator: ", ")): no answer; \(try Self.goOn(ranks(on: present))) without")
    return present
  }

  private static let probeSeconds = 15.0

  private func launch(_ attempt: inout Attempt) throws {
    let number = attempts.count + 1
    var arguments = ["mpirun", "-n", "\(attempt.ranks)", "--output-filename", "\(logs)/attempt-\(number)"]
    if !attempt.hosts.isEmpty {
      let path = logs + "/hosts-\(number)"
      let text = attempt.hosts.map { "\($0.name) slots=\($0.slots)\n" }.joined()
      try writeDurably(Data(text.utf8), to: path)
      arguments += ["--hostfile", path]
    }
    // What decides about bits and threads here decides on the other hosts too.
    for name in ProcessInfo.processInfo.environment.keys.sorted()
    where name.hasPrefix("JETTRAIN_") || name.hasPrefix("OPENBLAS_") { arguments += ["-x", name] }
    let launched = try LaunchedProcess(
      arguments + plan.mpirunArguments + plan.command, environment: Self.defaults)
    let (text, status, bySignal) = launched.wait()
    (attempt.status, attempt.bySignal) = (status, bySignal)
    attempt.host = Self.faultyHost(text, among: hosts.map(\.name))
    if status != 0 { attempt.misstart = Self.misstarts.first { text.contains($0.says) }?.reason }
  }

  /// mpirun notices after a minute and a half that a host is gone, instead of eight minutes, unless it is told otherwise.
  private static let defaults = [
    // No page of its own about an exit code that the ranks have explained.
    "OMPI_MCA_orte_execute_quiet": "1",
    "OMPI_MCA_oob_tcp_keepalive_time": "30", "OMPI_MCA_oob_tcp_keepalive_intvl": "10",
    "OMPI_MCA_oob_tcp_keepalive_probes": "6",
  ]

  /// The host on which the first rank failed, as mpirun or the watchdog says.
  package static func faultyHost(_ text: String, among hosts: [String]) -> String? {
    for marker in [
      "is silent since", "exited on signal", "lost communication", "Remote daemon", "exit code", "on node",
    ] {
      for line in text.split(separator: "\n") where line.contains(marker) {
        if let host = host(named: line, among: hosts) { return host }
      }
    }
    return nil
  }

  /// The host that a line names by a whole word: `node1` is not `node12`. `node1` may stand for `node1.cluster`.
  private static func host(named line: Substring, among hosts: [String]) -> String? {
    let words = line.split { !($0.isLetter || $0.isNumber || $0 == "-" || $0 == "." || $0 == "_") }.map { word in
      String(word.reversed().drop { $0 == "." }.reversed())
    }
    if let host = hosts.first(where: words.contains) { return host }
    func short(_ name: String) -> Substring { name.prefix { $0 != "." } }
    let alike = hosts.filter { host in
      words.contains { short($0) == short(host) && ($0.contains(".") != host.contains(".")) }
    }
    return alike.count == 1 ? alike[0] : nil
  }

  private var logs: String { plan.runFolder + "/logs" }

  private func createLogs() throws {
    try FileManager.default.createDirectory(atPath: logs, withIntermediateDirectories: true)
  }

  /// Folders of runs: the run folder itself, and those in the folder of a search.
  private static func runs(in folder: String) -> [String] {
    let inner = ["supernet"] + names(in: folder + "/candidates").map { "candidates/" + $0 }
    return [folder] + inner.map { folder + "/" + $0 }
  }

  private static func names(in folder: String) -> [String] {
    ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).sorted()
  }

  /// What a search has evaluated.
  private static func evaluations(in folder: String) -> Int {
    FileManager.default.contents(atPath: folder + "/evaluations.jsonl")?.split(separator: UInt8(ascii: "\n")).count ?? 0
  }

  /// How far what is on disk goes: the step of the newest checkpoint; of a search the steps of all its runs, and its
  /// evaluations.
  private static func saved(in folder: String) -> Int {
    runs(in: folder).reduce(evaluations(in: folder)) { $0 + (RunFolder($1).steps.last ?? 0) }
  }

  /// How far the work has come, counted likewise, what is not yet on disk included.
  private static func reached(in folder: String) -> Int {
    runs(in: folder).reduce(evaluations(in: folder)) { $0 + max(RunFolder($1).steps.last ?? 0, lastStep($1)) }
  }

  /// The last step in the log of the run.
  private static func lastStep(_ folder: String) -> Int {
    guard let data = FileManager.default.contents(atPath: folder + "/metrics.jsonl") else { return 0 }
    // A kill may have left half a line.
    for line in data.split(separator: UInt8(ascii: "\n")).suffix(2).reversed() {
      if let object = try? JSONSerialization.jsonObject(with: Data(line)) as? [String: Any] {
        return object["step"] as? Int ?? 0
      }
    }
    return 0
  }

  private func say(_ text: String) { FileHandle.standardError.write(Data("jettrain launch: \(text)\n".utf8)) }

  private static func ending(_ attempt: Attempt) -> String {
    attempt.bySignal
      ? "signal \(attempt.status)" : attempt.status > 128 ? "signal \(attempt.status - 128)" : "exit \(attempt.status)"
  }

  /// One page of what happened, to standard error and into the run folder.
  private func report(_ end: String) -> Int32 {
    let last = attempts[attempts.count - 1]
    var page = "\(plan.runFolder): \(end); \(Format.counted(attempts.count, "attempt")), step \(last.reached)\n"
    page += "attempt  began                ranks  seconds  from step  to step  ended by\n"
    let format = DateFormatter()
    format.dateFormat = "yyyy-MM-dd HH:mm:ss"
    for (index, attempt) in attempts.enumerated() {
      func cell(_ text: String, _ width: Int) -> String {
        String(repeating: " ", count: max(0, width - text.count)) + text
      }
      page +=
        cell("\(index + 1)", 7) + "  " + format.string(from: attempt.begin) + cell("\(attempt.ranks)", 7)
        + cell(String(format: "%.1f", attempt.seconds), 9) + cell("\(attempt.from)", 11) + cell("\(attempt.reached)", 9)
        + "  " + Self.ending(attempt) + (attempt.host.map { " (host \($0))" } ?? "") + "\n"
    }
    try? writeDurably(Data(page.utf8), to: logs + "/report.txt")
    FileHandle.standardError.write(Data(("jettrain launch: " + page).utf8))
    return last.bySignal ? 128 + last.status : last.status
  }

  /// The running mpirun, for the handlers of signals.
  package static let child = ChildProcess()
}

/// A process that signals are passed on to; 0 for none.
package struct ChildProcess: Sendable {
  package func store(_ identifier: Int32) { childIdentifier = identifier }

  /// Passes these signals on, and remembers the last.
  package func forward(_ signals: [Int32]) {
    for number in signals {
      signal(number) {
        // The first Ctrl-C asks the run to stop at a checkpoint; mpirun itself would end it without.
        let isGentle = $0 == SIGINT && receivedSignal == 0 && childIdentifier > 0
        if isGentle {
          let text: StaticString = "\njettrain launch: stopping at a checkpoint; Ctrl-C again ends at once, without\n"
          _ = write(2, text.utf8Start, text.utf8CodeUnitCount)
        }
        receivedSignal = isGentle ? SIGUSR1 : $0
        if childIdentifier > 0 { kill(childIdentifier, receivedSignal) }
      }
    }
    unblockSignals(signals)
  }
}

nonisolated(unsafe) private var childIdentifier: Int32 = 0
/// Written by the handler alone; 0 for none.
nonisolated(unsafe) private var receivedSignal: Int32 = 0
