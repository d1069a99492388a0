import Foundation
import NN
import TestSupport

/// Whether a process has begun to catch SIGUSR1: on a busy machine a second may pass until a program's first line.
private func catchesSIGUSR1(_ process: Int32) -> Bool {
  let status = FileManager.default.contents(atPath: "/proc/\(process)/status") ?? Data()
  let line = String(decoding: status, as: UTF8.self).split(separator: "\n").first { $0.hasPrefix("SigCgt:") }
  guard let mask = line?.split(separator: "\t").last.flatMap({ UInt64($0, radix: 16) }) else { return false }
  return mask >> UInt64(SIGUSR1 - 1) & 1 == 1
}

/// SIGUSR1 at random moments.
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
    while process.isRunning, ranks(of: name, run).count(where: catchesSIGUSR1) < 2 { usleep(2000) }
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
