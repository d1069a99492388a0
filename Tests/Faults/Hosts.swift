import Foundation
import TestSupport

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
  /// Whether `text` was printed before the end; what was read until then is gone.
  func waitForText(_ text: String, from started: (process: Process, errors: Pipe)) -> Bool {
    var output = Data()
    while case let part = started.errors.fileHandleForReading.availableData, !part.isEmpty {
      output += part
      if output.range(of: Data(text.utf8)) != nil { return true }
    }
    return false
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
    second.status == 0 && second.output.contains("from step 100") && ownDifference == nil
      && second.output.contains("1 of its 2 shards are sent"),
    "own disks: \(second.status) \(ownDifference ?? "") \(second.output.suffix(1500))")
  report("a disk of its own for each host, stopped and resumed", begin)
  begin = Date()
  try act("fill", "host2")
  started = try run.start(across + command(local + "/full") + gathering)
  // There is room again once a save has failed.
  let hasFailed = waitForText("SAVE FAILED", from: started)
  try act("on", "host2", "rm", local + "/filler")
  let full = finish(started)
  let fullDifference = try differs("full")
  tally.check(
    full.status == 0 && hasFailed && fullDifference == nil,
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
