import Foundation
import TestSupport
import Testing

/// How runs end: by a mistake that all ranks meet, by Ctrl-C, by a limit.
extension RankTests {
  private static let quiet = ["OMPI_MCA_orte_execute_quiet": "1"]

  /// What all ranks know ends in one line and nothing of mpirun's, and so does a stop on request.
  @Test func ranksThatFailTogetherLeaveInOrder() throws {
    for (set, code, lines) in [
      ("model.teacher=nowhere", 65, 1), ("train.leraning_rate=1", 64, 1), ("data.root=nowhere", 65, 1),
      ("model.student=none.json", 65, 1),
    ] as [(String, Int32, Int)] {
      for ranks in [1, 2, 4] {
        let (status, output) = try small.run(
          ranks: ranks, ["distill", "--job", "distill.yaml", "--run-dir", "bad", "--set", set], environment: Self.quiet)
        #expect(
          status == code && output.split(separator: "\n").count == lines && output.hasPrefix("jettrain: "),
          "\(set) by \(ranks): \(status)\n\(output)")
      }
    }
    let job = ["distill", "--job", "distill.yaml", "--run-dir"]
    let stopped = try small.run(ranks: 2, job + ["quiet", "--stop-at-step", "3"], environment: Self.quiet)
    #expect(stopped.status == 75 && stopped.output.hasSuffix("the same command goes on\n"), "\(stopped)")
    let diverged = try small.run(
      ranks: 2,
      job + [
        "diverged", "--set", "phases.0.lr=1e9", "--set", "train.weight_decay=1e9", "--set", "train.clip=0", "--set",
        "train.warmup_steps=0",
      ], environment: Self.quiet)
    #expect(diverged.status == 70 && diverged.output.hasSuffix("(spikes.policy)\n"), "\(diverged)")
    // A fault of one rank ends the others too, and is said by that rank.
    let one = try small.run(
      ranks: 2, job + ["one"],
      environment: Self.quiet.merging(["JETTRAIN_FAILPOINT": "loader:1:2:eio"]) { $1 })
    #expect(one.status != 0 && one.output.contains("jettrain: rank 1: "), "\(one)")
  }

  /// The progress lines of a file: as many as were asked for, none wider than a terminal.
  @Test func linesAreThoseAskedForAndFit() throws {
    let output = try jettrain(
      ranks: 2, "distill", "--job", "distill.yaml", "--run-dir", "lines", "--set", "log_every=1")
    let lines = output.split(separator: "\n").filter { $0.hasPrefix("step ") }
    #expect(lines.count == 20 && lines.allSatisfy { $0.count <= 80 }, "\(output)")
    #expect(output.contains("validation at step 10: cross-entropy"), "\(output)")
    #expect(!output.contains("\u{1B}"))
  }

  /// A run of many steps, or of few long ones, to be interrupted.
  private func startLong(_ name: String, _ command: [String], longSteps: Bool = false) throws -> (Process, Pipe) {
    let sizes =
      longSteps ? ["train.global_batch=512", "phases.1.tokens=\(64 * 512 * 50)"] : ["phases.1.tokens=3072000"]
    let job = ["distill", "--job", "distill.yaml", "--run-dir", name]
    let sets = (sizes + ["phases.0.tokens=\(64 * 512)", "validation.every=0"]).flatMap { ["--set", $0] }
    let (process, errors) = try small.start(command + [jettrainProgram] + job + sets)
    let end = Date().addingTimeInterval(60)
    while small.loggedLines(name) < 2, process.isRunning, Date() < end { usleep(2000) }
    return (process, errors)
  }

  private func end(of run: (process: Process, errors: Pipe)) -> (status: Int32, isSignal: Bool, output: String) {
    let output = String(decoding: run.errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    run.process.waitUntilExit()
    return (
      run.process.terminationStatus, run.process.terminationReason == .uncaughtSignal, String(output.suffix(1000))
    )
  }

  private func children(of process: Process) throws -> [Int32] {
    let (_, output) = try run(["pgrep", "-P", "\(process.processIdentifier)"], folder)
    return output.split(separator: "\n").compactMap { Int32($0) }
  }

  /// Ctrl-C: the first one stops at a checkpoint and says so, the second ends at once; alone, as a launcher passes it on to
  /// ranks, and under `jettrain launch`.
  @Test func firstInterruptSavesAndSecondEnds() throws {
    let says = "stopping at a checkpoint; Ctrl-C again ends at once"
    let alone = try startLong("alone", [])
    kill(alone.0.processIdentifier, SIGINT)
    let first = end(of: alone)
    #expect(first.status == 75 && first.output.contains(says) && first.output.contains("(Ctrl-C)"), "\(first)")
    #expect(try jettrain("checkpoint", "verify", "alone").contains("all as written"))

    let twice = try startLong("twice", [], longSteps: true)
    kill(twice.0.processIdentifier, SIGINT)
    usleep(50_000)
    kill(twice.0.processIdentifier, SIGINT)
    let second = end(of: twice)
    #expect(second.isSignal && second.status == SIGINT && second.output.contains(says), "\(second)")

    let mpirun = ["mpirun", "--quiet", "--oversubscribe", "--bind-to", "none", "-n", "2"]
    let ranks = try startLong("ranks", mpirun)
    for rank in try children(of: ranks.0) { kill(rank, SIGINT) }
    let passed = end(of: ranks)
    #expect(passed.status == 75 && passed.output.contains("(Ctrl-C)"), "\(passed)")
    #expect(try jettrain("checkpoint", "verify", "ranks").contains("all as written"))

    let launch = [
      jettrainProgram, "launch", "--ranks", "2", "--max-restarts", "0", "--mpirun=--oversubscribe",
      "--mpirun=--bind-to",
      "--mpirun=none", "--",
    ]
    for (name, signals, code) in [("launched", 1, 75), ("launched-twice", 2, 130)] as [(String, Int, Int32)] {
      let sets = [
        "phases.0.tokens=\(64 * 512)", "phases.1.tokens=\(64 * 512 * 50)", "train.global_batch=512",
        "validation.every=0",
      ].flatMap { ["--set", $0] }
      let (process, errors) = try small.start(launch + ["distill", "--job", "distill.yaml", "--run-dir", name] + sets)
      while small.loggedLines(name) < 2, process.isRunning { usleep(2000) }
      for _ in 0..<signals {
        kill(process.processIdentifier, SIGINT)
        usleep(50_000)
      }
      let ended = end(of: (process, errors))
      #expect(ended.status == code && ended.output.contains("jettrain launch: " + says), "\(name): \(ended)")
    }
  }

  /// Limits that are shorter than a start, and ones that were reached, do not keep a run where it is.
  @Test func repeatedLimitsMakeProgress() throws {
    let job = ["distill", "--job", "distill.yaml", "--run-dir", "limited", "--set", "phases.1.tokens=6144000"]
    var last = 0
    for _ in 0..<3 {
      let (status, output) = try small.run(ranks: 2, job + ["--max-time", "1s"])
      #expect(status == 75 && output.contains("(--max-time)"), "\(output)")
      let step = try #require(
        try jettrain("checkpoint", "inspect", "limited").firstMatch(of: /step (\d+),/).flatMap { Int($0.1) })
      #expect(step > last)
      last = step
    }
    let next = "\(last + 1)"
    try jettrain(ranks: 2, job + ["--stop-at-step", next], expecting: 75)
    let again = try jettrain(ranks: 2, job + ["--stop-at-step", next], expecting: 64)
    #expect(again.contains("--stop-at-step \(next): the run is at step \(next) already"), "\(again)")
    try jettrain(ranks: 2, job + ["--stop-at-step", "\(last + 2)"], expecting: 75)
  }

  /// Stage 2 takes its student from a model folder, a run folder or a checkpoint: the same weights, the same result.
  @Test func studentsComeFromFoldersRunsAndCheckpoints() throws {
    try jettrain("distill", "--job", "distill.yaml", "--run-dir", "stage1")
    try write(
      "stage2.yaml",
      """
      kind: finetune
      model: {student: stage1/model}
      data: {root: data, mix: ./mix.yaml}
      train: {seed: 1, context: 64, global_batch: 8, micro_batch: 2, lr: 2e-3, tokens: 2560, freeze: [embeddings]}
      """)
    for (name, student) in [("folder", "stage1/model"), ("run", "stage1"), ("checkpoint", "stage1/step-00000020")] {
      let command = ["finetune", "--job", "stage2.yaml", "--set", "model.student=\(student)", "--run-dir", name]
      try jettrain(ranks: 2, command + ["--stop-at-step", "3"], expecting: 75)
      try jettrain(ranks: 1, command)
      if name != "folder" {
        #expect(try jettrain("checkpoint", "diff", "folder", name).contains("identical"), "\(name)")
      }
      #expect(try jettrain("plan", "--job", "stage2.yaml", "--set", "model.student=\(student)").contains("student"))
      let score = try jettrain("eval", name, "--data", "data/qa", "--context", "64", "--sequences", "4")
      #expect(score.contains("\"loss\""), "\(score)")
    }
    let own = try jettrain(
      "finetune", "--job", "stage2.yaml", "--set", "model.student=stage1", "--run-dir", "stage1", expecting: 64)
    #expect(own.contains("lies in the run's own folder"), "\(own)")
    // A teacher, too, may be a run.
    try jettrain("distill", "--job", "distill.yaml", "--set", "model.teacher=teacher", "--run-dir", "of-a-run")
    // Its matrices lie in memory of their own, where some are one product and not several: the same but for rounding.
    let (_, difference) = try small.run(["checkpoint", "diff", "stage1", "of-a-run"])
    let largest = difference.matches(of: /by (\S+) at most/).compactMap { Double($0.1) }
    #expect(difference.contains("arrays") && largest.allSatisfy { $0 < 1e-6 }, "\(difference.suffix(1000))")
  }
}
