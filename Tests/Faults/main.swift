// Lets things go wrong in the real program and compares what comes of it with a run in which nothing did:
//   jettrain-faults points [SEED]      every fail point on every rank, then a resume at another world size
//   jettrain-faults kills COUNT [SEED] random kills of random ranks of one supervised run
//   jettrain-faults signals COUNT [SEED] SIGUSR1 at random moments
//   jettrain-faults stops COUNT [SEED] a STOP file at random moments of steps that take seconds
//   jettrain-faults flips [STRIDE]     every byte, or every so many, of a small checkpoint and token shard
//   jettrain-faults hang               a stopped rank
//   jettrain-faults spikes             losses that are not finite
//   jettrain-faults hosts              faults of hosts and links: Cluster/testbed/testbed 2 jettrain-faults hosts
// Prints how many cases there were and how many failed; exits with 1 when any did. `JETTRAIN` names the program.

import Checkpointing
import Files
import Foundation
import NN
import TestSupport
import TokenStreams
import Training

struct Tally {
  var cases = 0
  var failures = 0

  mutating func check(_ isRight: Bool, _ what: @autoclosure () -> String) {
    cases += 1
    if !isRight {
      failures += 1
      print("FAILED: \(what())")
    }
  }
}

/// What an undisturbed run leaves.
struct Reference {
  let run: SmallRun
  let name: String
  let losses: [String]

  init(_ run: SmallRun, _ name: String, job: [String] = []) throws {
    self.run = run
    self.name = name
    let (status, output) = try run.run(["distill", "--job", "distill.yaml", "--run-dir", name] + job)
    guard status == 0 else { throw SmallRun.Failure(description: output) }
    losses = try run.losses(name)
  }

  /// Whether `other` has the same weights and the same losses at every step, each step once.
  func equals(_ other: String) throws -> Bool {
    let diff = try run.run(["checkpoint", "diff", name, other])
    return try diff.status == 0 && diff.output.contains("identical") && run.losses(other) == losses
  }
}

func points(seed: UInt64) throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  // Also with a teacher as one downloads it.
  let teachers = ["teacher/model", "teacher-bfloat16"].map { ["--set", "model.teacher=\($0)"] }
  let references = try teachers.enumerated().map { try Reference(run, "reference-\($0)", job: $1) }
  var random = RandomStream(seed: seed, name: "faults")
  var cases: [(ranks: Int, point: FailPoint, rank: Int, step: Int, action: FailPoint.Action)] = []
  let writing: Set<FailPoint> = [.beforeShard, .midShard, .beforeManifest, .beforeRename, .beforeLatest, .afterLatest]
  let byCoordinator: Set<FailPoint> = [.beforeManifest, .beforeRename, .beforeLatest, .afterLatest]
  for point in FailPoint.allCases where point != .replicas {
    for action in FailPoint.Action.allCases where action != .stop {
      switch action {
      case .enospc: if !writing.contains(point) { continue }
      case .eio: if !writing.contains(point) && point != .loader { continue }
      case .lag: continue
      case .short: if point != .midShard { continue }
      case .flip, .truncate: if point != .beforeRename { continue }
      default: break
      }
      for rank in byCoordinator.contains(point) ? 0..<1 : 0..<2 {
        cases.append((2, point, rank, 4 + Int(random.next() % 12), action))
      }
      if random.next() % 3 == 0 {
        let rank = byCoordinator.contains(point) ? 0 : Int(random.next() % 4)
        cases.append((4, point, rank, 4 + Int(random.next() % 12), action))
      }
    }
  }
  for (index, item) in cases.enumerated() {
    let name = "case-\(index)"
    let damages = [.flip, .truncate].contains(item.action)
    // The save that is damaged on disk shall be the one that the next start finds.
    let step = damages ? 15 : item.step
    let fault = "\(item.point.rawValue):\(item.rank):\(step):\(item.action.rawValue)"
    let reference = references[index % 2]
    let arguments = ["distill", "--job", "distill.yaml", "--run-dir", name] + teachers[index % 2]
    let end = damages ? ["--stop-at-step", "15"] : []
    let first = try run.run(ranks: item.ranks, arguments + end, environment: ["JETTRAIN_FAILPOINT": fault])
    // A full or broken disk and a slow one do not end a run; data that cannot be read do.
    let survives = item.action != .kill && item.point != .loader || item.action == .slow
    tally.check(
      damages ? first.status == 75 : survives ? first.status == 0 : first.status != 0,
      "\(fault) at n = \(item.ranks) ended with \(first.status)\n\(first.output.suffix(600))")
    if survives, [.enospc, .eio].contains(item.action) {
      tally.check(first.output.contains("SAVE FAILED"), "\(fault) was not reported")
    }
    let ranks = [1, 2, 4][index % 3]
    let second = try run.run(ranks: ranks, arguments)
    if damages { tally.check(second.output.contains("is damaged and passed over"), "\(fault) went unnoticed") }
    tally.check(
      try second.status == 0 && reference.equals(name),
      "\(fault) at n = \(item.ranks), resumed at n = \(ranks), differs\n\(second.output.suffix(600))")
    try? FileManager.default.removeItem(atPath: run.folder + "/" + name)
  }
  print("points: \(cases.count) faults, resumed at n = 1, 2, 4 in turn")
  return tally
}

/// Identifiers of the ranks of a run, of this harness alone.
func ranks(of name: String, _ run: SmallRun) -> [Int32] {
  let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
  return names.compactMap(Int32.init).filter { pid in
    guard let data = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline"),
      let folder = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/cwd"), folder == run.folder
    else { return false }
    let words = data.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
    return words.first?.hasSuffix("/jettrain") == true && words.contains(name) && !words.contains("launch")
  }.sorted()
}

func kills(count: Int, seed: UInt64) throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  let job = [
    "--set", "phases.0.tokens=\(512 * 400)", "--set", "phases.1.tokens=\(512 * 8 * count)", "--set",
    "checkpoints.every=4", "--set", "checkpoints.keep_last=3", "--set", "validation.every=0", "--set",
    "checkpoints.compression_level=19",
  ]
  let reference = try Reference(run, "reference", job: job)
  var random = RandomStream(seed: seed, name: "kills")
  let command =
    [jettrainProgram, "launch", "--ranks", "2", "--max-restarts", "\(10 * count)", "--crashes-at-a-step", "1000"]
    + ["--backoff", "0.01", "--mpirun=--oversubscribe", "--mpirun=--bind-to", "--mpirun=none", "--"]
    + ["distill", "--job", "distill.yaml", "--run-dir", "killed"] + job
  let (process, errors) = try run.start(command)
  let drain = Thread { _ = errors.fileHandleForReading.readDataToEndOfFile() }
  drain.start()
  var (done, duringSave, duringStart, lost) = (0, 0, 0, 0)
  let folder = run.folder + "/killed"
  func isSaving() -> Bool {
    ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).contains { $0.hasSuffix(".partial") }
  }
  var lastCommitted = 0
  while process.isRunning, done < count {
    usleep(UInt32(200_000 + random.next() % 900_000))
    // Every third kill waits for a save.
    if done % 3 == 0 {
      for _ in 0..<4000 where process.isRunning && !isSaving() { usleep(500) }
    }
    let alive = ranks(of: "killed", run)
    guard let victim = alive.isEmpty ? nil : alive[Int(random.next() % UInt64(alive.count))] else { continue }
    let saving = isSaving()
    let committed = RunFolder(folder).steps.last ?? 0
    if committed < lastCommitted { lost += 1 }
    lastCommitted = committed
    guard kill(victim, SIGKILL) == 0 else { continue }
    done += 1
    if saving { duringSave += 1 }
    if alive.count < 2 { duringStart += 1 }
    usleep(150_000)
  }
  process.waitUntilExit()
  print(
    "kills: \(done), of them \(duringSave) during a save, \(duringStart) while starting; exit \(process.terminationStatus)"
  )
  tally.check(process.terminationStatus == 0, "the supervised run ended with \(process.terminationStatus)")
  tally.check(lost == 0, "\(lost) committed checkpoints were lost")
  tally.check(try reference.equals("killed"), "weights or losses differ from those of the undisturbed run")
  tally.check(done >= count, "the run ended after \(done) kills")
  if let report = try? String(contentsOfFile: folder + "/logs/report.txt", encoding: .utf8) {
    print(report.prefix { $0 != "\n" })
  }
  return tally
}

func signals(count: Int, seed: UInt64) throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  let steps = 500
  let job = [
    "--set", "phases.1.tokens=\(512 * (steps - 8))", "--set", "checkpoints.every=150", "--set", "validation.every=7",
  ]
  let reference = try Reference(run, "reference", job: job)
  var random = RandomStream(seed: seed, name: "signals")
  for index in 0..<count {
    let name = "signal-\(index)"
    let arguments = ["distill", "--job", "distill.yaml", "--run-dir", name] + job
    let (process, errors) = try run.start(ranks: 2, arguments)
    // mpirun itself passes signals on only once the ranks run. A signal is aimed at a step, not at a time, so that no run
    // is over before it on a fast machine; every fourth comes while models are loaded.
    while process.isRunning, ranks(of: name, run).count < 2 { usleep(2000) }
    let target = index % 4 == 3 ? 0 : Int(random.next() % UInt64(steps / 2))
    while process.isRunning, run.loggedLines(name) < target { usleep(2000) }
    usleep(UInt32(random.next() % 100_000) + (target == 0 ? 100_000 : 0))
    kill(process.processIdentifier, SIGUSR1)
    let output = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    let status = process.terminationStatus
    tally.check(status == 75, "signal \(index) at step \(target) ended with \(status)\n\(output.suffix(600))")
    let second = try run.run(ranks: [1, 2, 4][index % 3], arguments)
    tally.check(
      try second.status == 0 && reference.equals(name),
      "the run of signal \(index) differs\n\(second.output.suffix(600))")
    try? FileManager.default.removeItem(atPath: run.folder + "/" + name)
  }
  print("signals: \(count)")
  return tally
}

/// Stops at random moments of steps that take a second or more, most of them inside one, which is left and done again.
func stops(count: Int, seed: UInt64) throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  let job = [
    "--set", "train.global_batch=256", "--set", "train.micro_batch=1", "--set", "phases.0.tokens=\(64 * 256 * 2)",
    "--set",
    "phases.1.tokens=\(64 * 256 * 2)", "--set", "validation.every=0",
  ]
  let reference = try Reference(run, "reference", job: job)
  var random = RandomStream(seed: seed, name: "stops")
  var left = 0
  for index in 0..<count {
    let name = "stop-\(index)"
    let ranks = [1, 2, 4][index % 3]
    let arguments = ["distill", "--job", "distill.yaml", "--run-dir", name] + job
    let (process, errors) = try run.start(
      ranks: ranks, arguments, environment: ["JETTRAIN_FAILPOINT": "step:0:1:lag"])
    while process.isRunning, !FileManager.default.fileExists(atPath: run.folder + "/\(name)/metrics.jsonl") {
      usleep(2000)
    }
    // A step takes 256 / ranks times 30 ms, and there are four.
    Thread.sleep(forTimeInterval: Double(random.uniform()) * 0.03 * 256 / Double(ranks) * 3.5)
    try run.write("\(name)/STOP", "")
    let output = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    if output.contains("leaving step") { left += 1 }
    tally.check(
      process.terminationStatus == 75, "stop \(index) ended with \(process.terminationStatus)\n\(output.suffix(600))")
    let second = try run.run(ranks: [1, 2, 4][(index / 3) % 3], arguments)
    tally.check(
      try second.status == 0 && reference.equals(name), "the run of stop \(index) differs\n\(second.output.suffix(600))"
    )
    try? FileManager.default.removeItem(atPath: run.folder + "/" + name)
  }
  print("stops: \(count), of them \(left) inside a step")
  return tally
}

func flips(every stride: Int) throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  let (status, output) = try run.run(
    ranks: 2, ["distill", "--job", "distill.yaml", "--run-dir", "run", "--stop-at-step", "10"])
  guard status == 75 else { throw SmallRun.Failure(description: output) }
  let checkpoint = run.folder + "/run/step-00000010"
  let arrays = try Checkpoint(checkpoint).assemble()
  var (detected, harmless) = (0, 0)

  /// Flips one bit of every byte, `isHarmless` deciding about flips that no check notices.
  func each(_ path: String, _ load: () throws -> Bool) throws {
    var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
    for index in Swift.stride(from: 0, to: bytes.count, by: stride) {
      let old = bytes[index]
      bytes[index] ^= 1 << UInt8(index % 8)
      try bytes.write(to: URL(fileURLWithPath: path))
      bytes[index] = old
      do {
        let isSame = try load()
        tally.check(isSame, "\(path): a flip in byte \(index) went unnoticed")
        if isSame { harmless += 1 }
      } catch {
        tally.check(true, "")
        detected += 1
      }
    }
    try bytes.write(to: URL(fileURLWithPath: path))
  }
  for file in try FileManager.default.contentsOfDirectory(atPath: checkpoint).sorted() {
    try each(checkpoint + "/" + file) {
      let changed = try Checkpoint(checkpoint)
      try changed.verify()
      return try changed.assemble() == arrays
    }
    print("checkpoint \(file): \(detected) flips detected, \(harmless) harmless so far")
  }
  // A dataset small enough to be read again for every byte.
  try run.write("few.jsonl", (0..<40).map { "{\"text\": \"line \($0) of a small text\"}" }.joined(separator: "\n"))
  _ = try run.run(["tokens", "build", "--field", "text", "--output", "data/few", "few.jsonl"])
  let data = run.folder + "/data/few"
  func read() throws -> [UInt32] {
    let dataset = try Dataset(data)
    try dataset.checkFiles()
    var tokens: [UInt32] = []
    let shard = try dataset.shard(0)
    try shard.read(0..<shard.tokenCount, into: &tokens)
    return tokens + (0..<tokens.count).map { shard.index.counts($0) ? 1 : 0 } + shard.index.starts.map { UInt32($0) }
  }
  let tokens = try read()
  for file in try FileManager.default.contentsOfDirectory(atPath: data).sorted() {
    try each(data + "/" + file) { try read() == tokens }
    print("dataset \(file): \(detected) flips detected, \(harmless) harmless so far")
  }
  print("flips: \(detected + harmless), of which \(detected) are detected and \(harmless) are harmless")
  return tally
}

func hang() throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  // Also in the very first step, of which nobody knows how long it may take.
  for (point, step) in [(FailPoint.loader, 12), (.step, 12), (.collective, 12), (.step, 1)] {
    let begin = Date()
    let arguments = [
      "distill", "--job", "distill.yaml", "--run-dir", "hang-\(point)-\(step)", "--set", "watchdog.floor=2",
    ]
    let (status, output) = try run.run(
      ranks: 2, arguments, environment: ["JETTRAIN_FAILPOINT": "\(point.rawValue):1:\(step):stop"])
    let seconds = Date().timeIntervalSince(begin)
    print("hang in \(point) of step \(step): ended after \(String(format: "%.1f", seconds)) s")
    tally.check(
      status != 0 && output.contains("rank 1 on") && output.contains("is silent") && seconds < 30,
      "a rank stopped in \(point): \(status)\n\(output.suffix(1500))")
  }
  return tally
}

/// Data whose losses are not finite: a few steps of it are skipped, more are passed over after going back; a run that is
/// killed on the way ends as one that is not.
func spikes() throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  let job = ["distill", "--job", "distill.yaml", "--set", "spikes.policy=skip", "--set", "spikes.limit=3"]
  // Sequences of phase `end`, 8 a step: steps 14 and 15 of the run are skipped, or 14 to 16, behind the checkpoint of step
  // 10, passed over.
  for (name, poison, passesOver) in [("skipped", "poison:40:56:nan", false), ("passed", "poison:40:64:nan", true)] {
    let environment = ["JETTRAIN_FAILPOINT": poison]
    let whole = try run.run(ranks: 2, job + ["--run-dir", name], environment: environment)
    tally.check(
      whole.status == 0 && whole.output.contains("passing over") == passesOver && whole.output.contains("no update"),
      "\(name): \(whole.status)\n\(whole.output.suffix(1500))")
    for ranks in [1, 4] {
      let other = "\(name)-\(ranks)"
      let first = try run.run(
        ranks: 2, job + ["--run-dir", other, "--stop-at-step", "14"], environment: environment)
      let second = try run.run(ranks: ranks, job + ["--run-dir", other], environment: environment)
      let diff = try run.run(["checkpoint", "diff", name, other])
      tally.check(
        try first.status == 75 && second.status == 0 && diff.output.contains("identical")
          && run.losses(name) == run.losses(other),
        "\(other): \(first.status) \(second.status)\n\(diff.output.suffix(500))\n\(second.output.suffix(1500))")
    }
  }
  let failed = try run.run(
    ranks: 2, ["distill", "--job", "distill.yaml", "--run-dir", "failed"],
    environment: ["JETTRAIN_FAILPOINT": "poison:40:56:nan"])
  tally.check(failed.status == 70 && failed.output.contains("nothing was updated"), failed.output)
  return tally
}

/// Two hosts of a testbed, of which one stops, has another time, is cut off, or dies.
func hosts() throws -> Tally {
  guard let testbed = ProcessInfo.processInfo.environment["TESTBED"] else {
    throw SmallRun.Failure(description: "runs in a testbed only: Cluster/testbed/testbed 2 jettrain-faults hosts")
  }
  var tally = Tally()
  let run = try SmallRun()
  let job = ["--set", "phases.1.tokens=\(512 * 192)", "--set", "watchdog.floor=5", "--set", "validation.every=40"]
  let reference = try Reference(run, "reference", job: job)
  // Bits are the same where the matrix kernels are.
  let kernels = ProcessInfo.processInfo.environment["OPENBLAS_CORETYPE"] == nil ? [] : ["-x", "OPENBLAS_CORETYPE"]
  let across = ["mpirun", "--hostfile", testbed + "/hosts", "-n", "2"] + kernels + [jettrainProgram]
  func command(_ name: String) -> [String] { ["distill", "--job", "distill.yaml", "--run-dir", name] + job }
  func act(_ arguments: String...) throws {
    let (process, errors) = try run.start(["testbed"] + arguments)
    let output = errors.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else {
      throw SmallRun.Failure(description: String(decoding: output, as: UTF8.self))
    }
  }
  func finish(_ started: (process: Process, errors: Pipe)) -> (status: Int32, output: String) {
    let output = String(decoding: started.errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    started.process.waitUntilExit()
    return (started.process.terminationStatus, output)
  }
  func report(_ what: String, _ begin: Date) {
    print("\(what): \(String(format: "%.1f", Date().timeIntervalSince(begin))) s")
  }

  var begin = Date()
  let plain = finish(try run.start(across + command("plain")))
  tally.check(try plain.status == 0 && reference.equals("plain"), "two hosts: \(plain.output.suffix(1500))")
  report("two hosts over TCP", begin)

  // A rank that stands still is named by the other host's.
  var started = try run.start(across + command("stopped"))
  while started.process.isRunning, run.loggedLines("stopped") < 40 { usleep(2000) }
  let other = ranks(of: "stopped", run).first { identifier in
    let environment = FileManager.default.contents(atPath: "/proc/\(identifier)/environ") ?? Data()
    return String(decoding: environment, as: UTF8.self).contains("OMPI_COMM_WORLD_RANK=1\0")
  }
  begin = Date()
  if let other { kill(other, SIGSTOP) }
  let stopped = finish(started)
  tally.check(
    stopped.status != 0 && stopped.output.contains("rank 1 on host2 is silent"),
    "stopped: \(stopped.status) \(stopped.output.suffix(1500))")
  report("a stopped rank: the job ended after", begin)

  begin = Date()
  try act("skew", "host2", "+3d")
  let skewed = finish(try run.start(across + command("skewed")))
  tally.check(try skewed.status == 0 && reference.equals("skewed"), "skewed: \(skewed.output.suffix(1500))")
  try act("skew", "host2", "+0d")
  report("a clock three days ahead", begin)

  // Every host has a disk of its own; then that of one is full for a while.
  let local = testbed + "/local"
  func differs(_ name: String) throws -> String? {
    let reader = ["testbed", "on", "host1", "bash", "-c"]
    let files = "\(jettrainProgram) checkpoint diff '\(run.folder)/reference' '\(local)/\(name)'"
    let diff = finish(try run.start(reader + [files]))
    return diff.status == 0 && diff.output.contains("identical") ? nil : diff.output
  }
  begin = Date()
  let refused = finish(try run.start(across + command(local + "/refused")))
  tally.check(
    refused.status == 64 && refused.output.contains("checkpoints.gather"),
    "own disks without gather: \(refused.status) \(refused.output.suffix(800))")
  let gathering = ["--set", "checkpoints.gather=true"]
  started = try run.start(across + command(local + "/own") + gathering + ["--stop-at-step", "100"])
  let first = finish(started)
  tally.check(first.status == 75, "own disks: \(first.status) \(first.output.suffix(1500))")
  let second = finish(try run.start(across + command(local + "/own") + gathering))
  let ownDifference = try differs("own")
  tally.check(
    second.status == 0 && second.output.contains("from step 100") && ownDifference == nil,
    "own disks: \(second.status) \(ownDifference ?? "") \(second.output.suffix(1500))")
  report("a disk of its own for each host, stopped and resumed", begin)
  begin = Date()
  try act("fill", "host2")
  started = try run.start(across + command(local + "/full") + gathering)
  while started.process.isRunning, (try? act("on", "host1", "test", "-s", local + "/full/metrics.jsonl")) == nil {}
  sleep(1)
  try act("on", "host2", "rm", local + "/filler")
  let full = finish(started)
  let fullDifference = try differs("full")
  tally.check(
    full.status == 0 && full.output.contains("SAVE FAILED") && fullDifference == nil,
    "a full disk: \(full.status) \(fullDifference ?? "") \(full.output.suffix(1500))")
  report("a disk of host2 that is full for a while", begin)

  let launch =
    [jettrainProgram, "launch", "--ranks", "2", "--hostfile", testbed + "/hosts", "--backoff", "0.1", "--"]
  for fault in ["cut", "kill"] {
    started = try run.start(launch + command(fault))
    while started.process.isRunning, run.loggedLines(fault) < 40 { usleep(2000) }
    begin = Date()
    try act(fault, "host2")
    let ended = finish(started)
    tally.check(
      try ended.status == 0 && ended.output.contains("host2: no answer") && reference.equals(fault),
      "\(fault): \(ended.status) \(ended.output.suffix(3000))")
    report("\(fault) host2: the run was finished on host1 after", begin)
    if fault == "cut" { try act("heal", "host2") }
  }
  return tally
}

// A test runner's threads block all signals, and mpirun, which inherits that, would pass none on.
unblockSignals([SIGUSR1])
let arguments = CommandLine.arguments
let numbers = arguments.dropFirst(2).compactMap { Int($0) }
do {
  let tally: Tally
  switch arguments.dropFirst().first {
  case "points": tally = try points(seed: UInt64(numbers.first ?? 1))
  case "kills": tally = try kills(count: numbers.first ?? 200, seed: UInt64(numbers.dropFirst().first ?? 1))
  case "signals": tally = try signals(count: numbers.first ?? 50, seed: UInt64(numbers.dropFirst().first ?? 1))
  case "stops": tally = try stops(count: numbers.first ?? 20, seed: UInt64(numbers.dropFirst().first ?? 1))
  case "flips": tally = try flips(every: max(1, numbers.first ?? 1))
  case "hang": tally = try hang()
  case "spikes": tally = try spikes()
  case "hosts": tally = try hosts()
  default:
    print(
      "usage: jettrain-faults points [SEED] | kills COUNT [SEED] | signals COUNT [SEED] | stops COUNT [SEED] | flips [STRIDE] | hang | spikes | hosts"
    )
    exit(64)
  }
  print("\(tally.cases) cases, \(tally.failures) failures")
  exit(tally.failures == 0 ? 0 : 1)
} catch {
  print("\(error)")
  exit(1)
}
