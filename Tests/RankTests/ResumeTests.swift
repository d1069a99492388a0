import Foundation
import TestSupport
import Testing

/// Runs that are stopped, changed and gone on with.
extension RankTests {
  private func manifest(_ checkpoint: String) throws -> [String: Any] {
    let data = try Data(contentsOf: URL(fileURLWithPath: folder + "/\(checkpoint)/manifest.json"))
    return try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
  }

  private func steps(_ run: String) throws -> [Int] {
    try FileManager.default.contentsOfDirectory(atPath: folder + "/" + run)
      .compactMap { $0.hasPrefix("step-") ? Int($0.dropFirst(5)) : nil }.sorted()
  }

  /// A downloaded teacher is bfloat16: what rests in the first phase and trains in the second is saved from the first save
  /// on, and a resume computes the same bits.
  @Test func bfloat16TeachersAreDistilledAndResumed() throws {
    let job = ["distill", "--job", "distill.yaml", "--set", "model.teacher=teacher-bfloat16"]
    try jettrain(ranks: 1, job + ["--run-dir", "whole"])
    for (first, second, step) in [(2, 4, 3), (2, 1, 8), (4, 2, 13)] {
      let run = "stopped-\(step)"
      try jettrain(ranks: first, job + ["--run-dir", run, "--stop-at-step", "\(step)"], expecting: 75)
      try jettrain(ranks: second, job + ["--run-dir", run, "--resume", "must"])
      #expect(try jettrain("checkpoint", "diff", "whole", run).contains("identical"))
      #expect(try losses(run) == losses("whole"))
    }
  }

  /// Gradients add up in lanes that the job fixes: the same bits with 1 to 32 micro-batches a rank, whether or not that is
  /// a power of two.
  @Test(arguments: [8, 24, 40, 32]) func sameBitsWithAnyNumberOfMicroBatches(batch: Int) throws {
    let job = [
      "distill", "--job", "distill.yaml", "--set", "train.global_batch=\(batch)", "--set", "train.micro_batch=1",
      "--set",
      "phases.0.tokens=\(64 * batch * 3)", "--set", "phases.1.tokens=\(64 * batch * 3)", "--set", "validation.every=0",
    ]
    for ranks in [1, 2, 4, 8] {
      try jettrain(ranks: ranks, job + ["--run-dir", "lanes-\(ranks)"])
      #expect(try jettrain("checkpoint", "diff", "lanes-1", "lanes-\(ranks)").contains("identical"))
      #expect(try losses("lanes-1") == losses("lanes-\(ranks)"))
    }
    let other = try jettrain(ranks: 1, job + ["--run-dir", "lanes-1", "--set", "train.lanes=16"], expecting: 65)
    #expect(other.contains("phases.1.lanes was 8, is 16"), "\(other)")
    let few = try jettrain(ranks: 4, job + ["--run-dir", "few", "--set", "train.lanes=2"], expecting: 64)
    #expect(few.contains("2 lanes, in which gradients add up, cannot be shared by 4 ranks"), "\(few)")
  }

  /// A run is what its job said when it began: overrides are kept, edits that make it another run are refused by name, what
  /// a person may turn is told.
  @Test func editedJobsAreRefusedOrTold() throws {
    let job = ["distill", "--job", "distill.yaml", "--run-dir", "run"]
    try jettrain(
      ranks: 0, job + ["--set", "train.clip=0.5", "--stop-at-step", "13"], expecting: 75)
    let kept = try #require(try manifest("run/step-00000013")["job"] as? [String: String])
    #expect(
      kept["text"]?.contains("clip: 5e-1") == true && kept["settings"]?.contains("\"phases.1.clip\":\"0.5\"") == true,
      "\(kept)")
    for (edit, change) in [
      ("train.clip=1", "phases.1.clip was 0.5, is 1.0"), ("train.beta2=0.99", "phases.1.beta2 was 0.95, is 0.99"),
      ("train.schedule=constant", "phases.1.schedule was cosine, is constant"),
      ("train.weight_decay=0.1", "phases.1.weight_decay was 0.0, is 0.1"),
      ("phases.1.losses.logits=2", "phases.1.losses.logits was 1.0, is 2.0"),
      ("phases.1.freeze=[mlp]", "phases.1.freeze was [embeddings, mlp], is [mlp]"),
      ("train.micro_batch=4", "phases.1.micro_batch was 2, is 4"),
      ("phases.0.tokens=5120", "phases.0.tokens was 4096, is 5120"), ("train.seed=2", "train.seed was 1, is 2"),
      ("phases.0.context=32", "phases.0.context was 64, is 32"),
    ] {
      let clip = edit.hasPrefix("train.clip") ? [] : ["--set", "train.clip=0.5"]
      let refused = try jettrain(ranks: 2, job + clip + ["--set", edit], expecting: 65)
      #expect(refused.contains(change) && refused.contains("belongs to another run"), "\(edit): \(refused)")
    }
    // Fewer tokens than the phase has read cannot be.
    let fewer = try jettrain(
      ranks: 0, job + ["--set", "train.clip=0.5", "--set", "phases.1.tokens=1024"], expecting: 65)
    #expect(fewer.contains("has done 5 steps of phase end, to which the job now gives 2"), "\(fewer)")
    let output = try jettrain(
      ranks: 2, job + ["--set", "train.clip=0.5", "--set", "train.lr=1e-3", "--set", "checkpoints.every=4"])
    #expect(output.contains("the job was changed: phases.1.lr was 0.002, is 0.001"), "\(output)")
    #expect(output.contains("the job was changed: checkpoints.every was 5, is 4"), "\(output)")
    #expect(try steps("run").contains(16))
  }

  /// Steps may take minutes: a signal, or a file, ends the one under way between two micro-batches, and nothing of it is
  /// kept.
  @Test(arguments: [1, 2, 4]) func aStopLeavesTheStepUnderWay(ranks: Int) throws {
    let job = [
      "distill", "--job", "distill.yaml", "--set", "train.global_batch=256", "--set", "train.micro_batch=1", "--set",
      "phases.0.tokens=\(64 * 256 * 2)", "--set", "phases.1.tokens=\(64 * 256 * 2)", "--set", "validation.every=0",
    ]
    try jettrain(ranks: 4, job + ["--run-dir", "whole"])
    for (index, delay) in [0.15, 0.9].enumerated() {
      let run = "left-\(index)"
      // Every micro-batch of rank 0 takes 30 ms more: a step of 256 / ranks of them takes more than a second.
      let (process, errors) = try small.start(
        ranks: ranks, job + ["--run-dir", run], environment: ["JETTRAIN_FAILPOINT": "step:0:1:lag"])
      while process.isRunning, !FileManager.default.fileExists(atPath: folder + "/\(run)/metrics.jsonl") {
        usleep(2000)
      }
      while process.isRunning, small.loggedLines(run) < index { usleep(2000) }
      Thread.sleep(forTimeInterval: delay)
      try write("\(run)/STOP", "")
      let asked = Date()
      let output = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      #expect(process.terminationStatus == 75 && output.contains("leaving step"), "\(output)")
      print("n = \(ranks), \(delay) s into step \(index + 1): stopped after \(Date().timeIntervalSince(asked)) s")
      try jettrain(ranks: [1, 2, 4][index], job + ["--run-dir", run])
      #expect(try jettrain("checkpoint", "diff", "whole", run).contains("identical"))
      #expect(try losses(run) == losses("whole"))
    }
  }

  /// By the clock, whatever the step.
  @Test func savesAreDueByTheClock() throws {
    try jettrain(
      ranks: 2,
      ["distill", "--job", "distill.yaml", "--run-dir", "clock", "--set", "checkpoints.every=0", "--set"]
        + ["checkpoints.minutes=1e-9", "--set", "checkpoints.keep_last=30"])
    #expect(try steps("clock") == Array(1...20))
    try jettrain(
      "distill", "--job", "distill.yaml", "--run-dir", "never", "--set", "checkpoints.every=0", "--set",
      "checkpoints.minutes=0")
    #expect(try steps("never") == [20])
  }

  /// The end of a Slurm job, as `squeue` tells it: the run stops in time, unless the limit was extended meanwhile.
  @Test func deadlinesOfSlurmAreMet() throws {
    func queue(_ answers: String) throws {
      try write("bin/squeue", "#!/usr/bin/env bash\n\(answers)\n")
      try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: folder + "/bin/squeue")
    }
    try FileManager.default.createDirectory(atPath: folder + "/bin", withIntermediateDirectories: true)
    let path = folder + "/bin:" + (ProcessInfo.processInfo.environment["PATH"] ?? "")
    func run(_ name: String, job: String? = "7") throws -> (status: Int32, output: String) {
      try small.run(
        ranks: 2, ["distill", "--job", "distill.yaml", "--run-dir", name, "--deadline", "auto"],
        // A second or two, so that there is something to stop.
        environment: ["PATH": path, "JETTRAIN_FAILPOINT": "step:0:1:lag"].merging(
          job.map { ["SLURM_JOB_ID": $0] } ?? [:]
        ) { $1 })
    }
    // A first save is given two minutes: a job that ends in one must stop at once.
    try queue("[ \"$*\" = '-h -j 7 -o %e' ] && date -d '+60 seconds' +%Y-%m-%dT%H:%M:%S")
    let near = try run("near")
    #expect(near.status == 75 && near.output.contains("--deadline"), "\(near.output)")
    // Asked again when the end is near, Slurm says that there is more time.
    try queue(
      "[ -e asked ] && date -d '+1 hour' +%Y-%m-%dT%H:%M:%S || date -d '+121 seconds' +%Y-%m-%dT%H:%M:%S; touch asked")
    let extended = try run("extended")
    #expect(extended.status == 0, "\(extended.output)")
    try queue("echo UNLIMITED")
    #expect(try run("unlimited").status == 0)
    try queue("exit 1")
    let unknown = try run("unknown")
    #expect(unknown.status == 64 && unknown.output.contains("squeue does not know job 7"), "\(unknown.output)")
    let outside = try run("outside", job: nil)
    #expect(outside.status == 64 && outside.output.contains("SLURM_JOB_ID is not set"), "\(outside.output)")
  }

  /// What `plan` says of memory is what runs take: at the change of a phase, at a resume, at a return to a checkpoint, and
  /// with a save under way.
  @Test(arguments: ["float32", "bfloat16"]) func plannedMemoryIsWhatRunsTake(compute: String) throws {
    let shape = """
      "vocab_size": 257, "hidden_size": 256, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 4,
      "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true
      """
    try write("large-teacher.json", "{\"model_type\": \"qwen2\", \(shape)}")
    let types = Array(repeating: "\"jet\"", count: 5).joined(separator: ", ")
    try write(
      "large.json",
      """
      {"model_type": "jet_nemotron", \(shape), "layer_types": ["attn", \(types)], "efficient_attention_config":
      {"jet": {"num_heads": 4, "head_dim": 64, "expand_v": 2.0, "norm_eps": "1e-5", "conv_size": 4, "dconv_generator_reduction": 8}}}
      """)
    try write(
      "large-teacher.yaml",
      "model: {student: large-teacher.json}\ndata: {root: data, mix: ./mix.yaml}\nrun_dir: large-teacher\n"
        + "train: {context: 64, global_batch: 2, tokens: 128}\n")
    try jettrain("pretrain", "--job", "large-teacher.yaml")
    try write(
      "large.yaml",
      """
      model: {teacher: large-teacher/model, student: large.json, init: random}
      data: {root: data, mix: ./mix.yaml}
      train: {context: 64, global_batch: 4, micro_batch: 1, compute: \(compute)}
      spikes: {policy: skip, limit: 2}
      phases:
      - {name: align, tokens: 1024, losses: {mixer_output: 1}, freeze: [mlp, embeddings, norms, attention]}
      - {name: end, tokens: 2048, losses: {logits: 1}, freeze: []}
      checkpoints: {every: 2}
      """)
    let plan = try jettrain(ranks: 0, ["plan", "--job", "large.yaml", "--kind", "distill", "--ranks", "2"])
    func planned(_ phase: String) throws -> Double {
      let row = try #require(plan.split(separator: "\n").first { $0.hasPrefix(phase + " ") }, "\(plan)")
      let words = row.split(separator: " ").map(String.init)
      let units = ["KiB": 0x1p10, "MiB": 0x1p20, "GiB": 0x1p30]
      // Columns with a unit: state, peak, checkpoint.
      let sizes = words.indices.compactMap { index in
        units[words[index]].flatMap { unit in Double(words[index - 1]).map { $0 * unit } }
      }
      return sizes[1]
    }
    /// The largest peak of the steps `range`.
    func measured(_ run: String, _ range: ClosedRange<Int>) throws -> Double {
      let text = try String(contentsOfFile: folder + "/\(run)/metrics.jsonl", encoding: .utf8)
      let peaks = try text.split(separator: "\n").compactMap { line -> Double? in
        let fields = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any] ?? [:]
        guard let step = fields["step"] as? Int, range.contains(step) else { return nil }
        return (fields["peak_memory"] as? NSNumber)?.doubleValue
      }
      return try #require(peaks.max())
    }
    func compare(_ what: String, _ measured: Double, _ planned: Double) {
      let sizes = "measured \(measured / 0x1p20) MiB, planned \(planned / 0x1p20) MiB"
      print("\(what) in \(compute): \(sizes): \(measured / planned)")
      #expect(abs(measured / planned - 1) < 0.15, "\(what)")
    }
    let job = ["distill", "--job", "large.yaml"]
    try jettrain(ranks: 2, job + ["--run-dir", "whole", "--stop-at-step", "8"], expecting: 75)
    compare("a save under way", try measured("whole", 3...4), try planned("align"))
    compare("the change of a phase", try measured("whole", 5...8), max(try planned("align"), try planned("end")))
    try jettrain(ranks: 2, job + ["--run-dir", "whole"])
    compare("a resume", try measured("whole", 9...12), try planned("end"))
    let returned = try small.run(
      ranks: 2, job + ["--run-dir", "returned"], environment: ["JETTRAIN_FAILPOINT": "poison:12:20:nan"])
    #expect(returned.status == 0 && returned.output.contains("skipping sequences"), "\(returned.output)")
    compare("a return to a checkpoint", try measured("returned", 9...12), max(try planned("align"), try planned("end")))
  }
}
