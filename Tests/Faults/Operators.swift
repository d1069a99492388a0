import Checkpointing
import Files
import Foundation
import TestSupport

/// What operators meet beside killed ranks: full disks under logs, suspended jobs, reads that fail for a moment, two starts
/// in one folder, folders of which something is gone.
func operators() throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  let job = ["distill", "--job", "distill.yaml", "--run-dir"]
  let reference = try Reference(run, "reference")
  try logs(run, reference, job, &tally)
  try patience(run, job, &tally)
  try reads(run, reference, job, &tally)
  try locks(run, reference, job, &tally)
  try folders(run, reference, job, &tally)
  return tally
}

/// The log, and the files that show that hosts live, cannot be written.
private func logs(_ run: SmallRun, _ reference: Reference, _ job: [String], _ tally: inout Tally) throws {
  let broken = try run.run(ranks: 2, job + ["log"], environment: ["JETTRAIN_FAILPOINT": "metrics:0:6:eio"])
  let diff = try run.run(["checkpoint", "diff", "reference", "log"])
  tally.check(
    broken.status == 0 && broken.output.contains("its lines are kept in memory")
      && broken.output.contains("lines could not be written and are lost") && diff.status == 0,
    "a log that is broken for ever: \(broken.status)\n\(broken.output.suffix(1500))")
  let long = ["--set", "phases.1.tokens=\(512 * 400)", "--set", "watchdog.floor=1", "--set", "validation.every=0"]
  let mute = try run.run(
    ranks: 2, job + ["mute"] + long, environment: ["JETTRAIN_FAILPOINT": "heartbeat:0:3:eio"])
  tally.check(
    mute.status == 0 && mute.output.contains("cannot write into mute/.heartbeats"),
    "heartbeats that cannot be written: \(mute.status)\n\(mute.output.suffix(1500))")
}

/// Steps that take long, and jobs that stand still as a whole.
private func patience(_ run: SmallRun, _ job: [String], _ tally: inout Tally) throws {
  // A rank is late by more than the floor and more than ten times what its data usually takes, by less than a step's.
  let steps = [
    "--set", "train.global_batch=256", "--set", "train.micro_batch=1", "--set", "phases.0.tokens=\(64 * 256 * 6)",
    "--set", "phases.1.tokens=\(64 * 256)", "--set", "validation.every=0", "--set", "watchdog.floor=0.6",
  ]
  let late = try run.run(
    ranks: 2, job + ["late"] + steps, environment: ["JETTRAIN_FAILPOINT": "loader:1:6:slow"])
  tally.check(late.status == 0, "a rank that is late once: \(late.status)\n\(late.output.suffix(1500))")

  let long = ["--set", "phases.1.tokens=\(512 * 1000)", "--set", "watchdog.floor=1", "--set", "validation.every=0"]
  let (process, errors) = try run.start(ranks: 2, job + ["suspended"] + long)
  while process.isRunning, run.loggedLines("suspended") < 40 { usleep(2000) }
  let alive = ranks(of: "suspended", run)
  for each in alive { kill(each, SIGSTOP) }
  sleep(3)
  for each in alive { kill(each, SIGCONT) }
  let output = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
  process.waitUntilExit()
  tally.check(
    process.terminationStatus == 0 && alive.count == 2,
    "a suspended job: \(process.terminationStatus)\n\(output.suffix(1500))")
}

/// Bytes that come wrong once, and a disk that refuses.
private func reads(_ run: SmallRun, _ reference: Reference, _ job: [String], _ tally: inout Tally) throws {
  let data = try run.run(ranks: 2, job + ["tokens"], environment: ["JETTRAIN_FAILPOINT": "shard-read:1:0:flip"])
  tally.check(
    try data.status == 0 && data.output.contains("It was read again") && reference.equals("tokens"),
    "a token shard that is read wrong once: \(data.status)\n\(data.output.suffix(1500))")
  for (index, fault) in ["checkpoint-read:1:0:flip", "checkpoint-read:1:0:eio"].enumerated() {
    let name = "reread-\(index)"
    let first = try run.run(ranks: 2, job + [name, "--stop-at-step", "12"])
    let second = try run.run(ranks: 2, job + [name], environment: ["JETTRAIN_FAILPOINT": fault])
    tally.check(
      try first.status == 75 && second.status == 0 && second.output.contains("It was read again")
        && second.output.contains("from step 12") && reference.equals(name),
      "\(fault): \(second.status)\n\(second.output.suffix(1500))")
  }
  // A folder in the place of a file can be opened and not read: the system refuses, and nothing is known of the bytes.
  let stopped = try run.run(ranks: 2, job + ["refused", "--stop-at-step", "12"])
  let shard = run.folder + "/refused/step-00000012/shard-00001.safetensors.zst"
  try FileManager.default.moveItem(atPath: shard, toPath: shard + ".kept")
  try FileManager.default.createDirectory(atPath: shard, withIntermediateDirectories: true)
  let refused = try run.run(ranks: 2, job + ["refused"])
  tally.check(
    stopped.status == 75 && refused.status == 74 && RunFolder(run.folder + "/refused").steps.last == 12,
    "a disk that refuses to read: \(refused.status)\n\(refused.output.suffix(1500))")
  try? FileManager.default.removeItem(atPath: shard)
  try? FileManager.default.moveItem(atPath: shard + ".kept", toPath: shard)
  let again = try run.run(ranks: 2, job + ["refused"])
  tally.check(
    try again.status == 0 && again.output.contains("from step 12") && reference.equals("refused"),
    "a disk that reads again: \(again.status)\n\(again.output.suffix(1500))")
}

/// Two starts in one run folder, two builds of one dataset, and a holder that was killed.
private func locks(_ run: SmallRun, _ reference: Reference, _ job: [String], _ tally: inout Tally) throws {
  let slow = ["JETTRAIN_FAILPOINT": "step:0:1:lag"]
  let long = ["--set", "phases.1.tokens=\(512 * 200)"]
  let whole = try Reference(run, "whole", job: long)
  let (first, errors) = try run.start(ranks: 2, job + ["shared"] + long, environment: slow)
  while first.isRunning, run.loggedLines("shared") < 2 { usleep(2000) }
  let second = try run.run(ranks: 2, job + ["shared"] + long)
  print(second.output.split(separator: "\n").first { $0.contains("in use") } ?? "")
  let output = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
  first.waitUntilExit()
  tally.check(
    try second.status == 65 && second.output.contains("shared: is in use by host") && first.terminationStatus == 0
      && whole.equals("shared"),
    "two starts in one folder: \(first.terminationStatus) \(second.status)\n\(second.output)\n\(output.suffix(800))")

  let (killed, _) = try run.start(ranks: 2, job + ["killed"], environment: slow)
  while killed.isRunning, run.loggedLines("killed") < 6 { usleep(2000) }
  for each in ranks(of: "killed", run) { kill(each, SIGKILL) }
  killed.waitUntilExit()
  let next = try run.run(ranks: 2, job + ["killed"])
  print(next.output.split(separator: "\n").first { $0.contains("taken over") } ?? "")
  tally.check(
    try next.status == 0 && next.output.contains("taken over from host") && reference.equals("killed"),
    "a killed holder: \(next.status)\n\(next.output.suffix(1500))")

  let build = ["tokens", "build", "--template", "Q: {question}\\nA: {answer}\\n", "--shard-tokens", "2000"]
  let questions = ["tokens", "make-questions", "--count", "20000", "--seed", "5", "--output", "many.jsonl"]
  let made = try run.run(questions)
  tally.check(made.status == 0, made.output)
  let builds = try (0..<2).map { _ in try run.start(ranks: 0, build + ["--output", "data/many", "many.jsonl"]) }
  let results = builds.map { process, errors in
    let output = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (status: process.terminationStatus, output: output)
  }
  let verified = try run.run(["tokens", "verify", "data/many"])
  if let loser = results.first(where: { $0.status != 0 }) { print(loser.output.suffix(300)) }
  // The second one is refused, or finds the dataset of the first.
  tally.check(
    results.map(\.status).sorted() == [0, 65] && verified.status == 0,
    "two builds of one dataset: \(results) \(verified.output)")

  // A build that was interrupted does not go on with other inputs.
  try run.write("part.jsonl", String(repeating: "{\"question\": \"1 + 1?\", \"answer\": \"2\"}\n", count: 400))
  try run.write("bad.jsonl", "no JSON\n")
  let parts = ["--output", "data/parts", "part.jsonl", "bad.jsonl"]
  let broken = try run.run(build + parts)
  try run.write("part.jsonl", String(repeating: "{\"question\": \"1 + 2?\", \"answer\": \"3\"}\n", count: 500))
  try run.write("bad.jsonl", "{\"question\": \"1 + 1?\", \"answer\": \"2\"}\n")
  let changed = try run.run(build + parts)
  tally.check(
    broken.status == 65 && changed.status == 65 && changed.output.contains("has changed since"),
    "changed inputs of a build: \(broken.status) \(changed.status) \(changed.output)")
}

/// Checkpoints that are gone, and those that must not go.
private func folders(_ run: SmallRun, _ reference: Reference, _ job: [String], _ tally: inout Tally) throws {
  let first = try run.run(ranks: 2, job + ["gone", "--stop-at-step", "12"])
  for step in RunFolder(run.folder + "/gone").steps {
    try? FileManager.default.removeItem(atPath: RunFolder(run.folder + "/gone").checkpoint(step: step))
  }
  let refused = try run.run(ranks: 2, job + ["gone"])
  tally.check(
    first.status == 75 && refused.status == 65 && refused.output.contains("was its newest checkpoint"),
    "checkpoints are gone: \(refused.status)\n\(refused.output)")
  try? FileManager.default.removeItem(atPath: run.folder + "/gone/latest")
  let anew = try run.run(ranks: 2, job + ["gone"])
  tally.check(
    try anew.status == 0 && anew.output.contains("begins anew, the old log is") && reference.equals("gone"),
    "a log without checkpoints: \(anew.status)\n\(anew.output.suffix(800))")

  // Saves while updates are left out keep what the run has to go back to.
  let poison = ["JETTRAIN_FAILPOINT": "poison:40:64:nan"]
  let skipping = ["--set", "spikes.policy=skip", "--set", "spikes.limit=3", "--set", "checkpoints.every=1"]
  let kept = try run.run(
    ranks: 2, job + ["kept"] + skipping + ["--set", "checkpoints.keep_last=1"], environment: poison)
  let all = try run.run(ranks: 2, job + ["all"] + skipping, environment: poison)
  let diff = try run.run(["checkpoint", "diff", "kept", "all"])
  tally.check(
    kept.status == 0 && all.status == 0 && kept.output.contains("rolled back") && diff.output.contains("identical"),
    "saves during skips: \(kept.status) \(all.status) \(diff.output)\n\(kept.output.suffix(800))")

  // Updates that were left out do not count in the correction of the moments' bias.
  let counted = try run.run(
    ranks: 2, job + ["counted", "--set", "spikes.policy=skip"],
    environment: ["JETTRAIN_FAILPOINT": "poison:40:56:nan"])
  let manifest = try? Checkpoint(RunFolder(run.folder + "/counted").checkpoint(step: 20)).manifest
  tally.check(
    counted.status == 0 && manifest?.phaseStep == 12 && manifest?.updates == [10],
    "skipped updates: \(manifest?.updates ?? []) of \(manifest?.phaseStep ?? 0) steps\n\(counted.output.suffix(500))")
}
