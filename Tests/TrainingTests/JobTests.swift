import Foundation
import TestSupport
import Testing
import TokenStreams
import Training

/// Job files: what is read, what is refused, and what a job is known by.
extension TrainingTests {
  @Test func jobsAreRead() throws {
    let read = try job(Self.good, ranks: 2, set: ["train.lr=3e-4", "train.losses.logits=2"])
    #expect(read.phases.count == 1 && read.phases[0].steps == 63)
    #expect(read.phases[0].schedule.peak == 3e-4 && read.phases[0].losses.logits == 2)
    #expect(read.phases[0].frozen == [.mlp, .embeddings])
  }

  /// Counts whose products would overflow, keys that are lists, numbers to base 60: refused, not believed.
  @Test func absurdJobsAreRefused() throws {
    for (setting, key) in [
      ("train.global_batch=4294967296", "global_batch"), ("train.context=9223372036854775807", "context"),
      ("train.tokens=9223372036854775807", "tokens"), ("train.warmup_steps=9223372036854775807", "warmup_steps"),
      ("train.tokens=0.0001K", "tokens"), ("checkpoints.compression_level=4294967296", "compression_level"),
      ("validation.every=99999999999999999999:60:60", "every"),
      ("train.checkpoint_activations=true", "write recompute: layer"),
    ] {
      let error = #expect(throws: JobError.self) { try job(Self.good, set: [setting]) }
      #expect(error?.description.contains(key) == true, "\(setting): \(error?.description ?? "")")
    }
    for line in ["[a, b]: 1", "{a: 1}: 2", "? [x]\n: 3"] {
      let error = #expect(throws: JobError.self) { try job(Self.good + "\n" + line) }
      #expect(error?.description.contains("a key is a list or a mapping") == true, "\(error?.description ?? "")")
    }
    #expect(try job(Self.good, set: ["train.seed=9223372036854775807"]).seed == 9_223_372_036_854_775_807)
  }

  @Test func allErrorsOfAJobAreReportedAtOnce() throws {
    do {
      _ = try job(
        """
        model: {teacher: t, studnet: s}
        data: {root: d, mix: m}
        train: {tokens: many, context: 128, global_batch: 7, micro_batch: 2, lr: -1, schedule: linear}
        """)
      Issue.record("a job full of errors was accepted")
    } catch let error as JobError {
      let text = error.description
      for part in [
        "model.student: is missing", "model.studnet: is not a key of this file; did you mean student?",
        "train.tokens: many is not a count", "train.micro_batch: 2 sequences do not divide",
        "train.lr: must be at least",
        "train.schedule: linear is not one of",
      ] { #expect(text.contains(part), "\(part) is missing from:\n\(text)") }
      #expect(error.kind == .usage)
    }
  }

  /// What is given and of another type is said to be that, and nothing is said to be missing for it.
  @Test(arguments: [
    ("model=5", "model: 5 is not a mapping"), ("data=[d]", "is not a mapping"),
    ("train=x", "train: x is not a mapping"),
    ("phases=3", "phases: 3 is not a list of mappings"), ("phases=[1, 2]", "is not a list of mappings"),
    ("phases=[]", "phases: the list is empty"), ("model.student=[a]", "is not a text"),
    ("train.context=many", "train.context: many is not a whole number"),
    ("train.tokens=[1]", "is not a count of tokens"), ("train.losses=7", "train.losses: 7 is not a mapping"),
    ("data.mix={a: 1}", "data.mix: "), ("train.changes=[{from_step: x}]", "from_step: x is not a whole number"),
  ])
  func wrongTypesAreNotMissing(set: String, says: String) throws {
    let error = #expect(throws: JobError.self) { try job(Self.good, set: [set]) }
    let text = error?.description ?? ""
    #expect(text.contains(says) && !text.contains("is missing"), "\(text)")
    #expect(error?.reasons.count == 1, "\(text)")
  }

  @Test func batchesMustDivide() throws {
    #expect(throws: JobError.self) { try job(Self.good, ranks: 3) }
    #expect(throws: JobError.self) { try job(Self.good, set: ["train.tokens=1000"]) }
    #expect(try job(Self.good, set: ["train.tokens=2048"]).totalSteps == 2)
  }

  /// Keys that are lists or mappings, for which the parser of YAML would end the process, are a fault of the file.
  @Test(arguments: [
    "? {a: 1}\n: 2\n", "? [a]\n: 2\n", "phases: [{losses: {b: 1}:}]\n", "x: [{{a: b}: c}]\n", "&a [*a]: 3\n",
  ])
  func oddKeysOfYAMLAreRefused(text: String) {
    #expect { _ = try job(text) } throws: { error in
      (error as? JobError)?.kind == .usage && "\(error)".contains("is not YAML: ")
    }
  }

  /// Numbers that no run has are refused, not multiplied.
  @Test(arguments: [
    "train.tokens=9223372036854775807", "train.tokens=1e-9K", "train.tokens=99999999T", "train.context=4294967296",
    "train.global_batch=9223372036854775807", "checkpoints.compression_level=4294967296",
    "train.changes=[{from_step: 2147483648, global_batch: 8}]",
    "train.changes=[{from_step: 9, global_batch: 16}, {from_step: 9, global_batch: 8}]",
  ])
  func numbersThatNoRunHasAreRefused(set: String) throws {
    do {
      _ = try job(Self.good, set: [set])
      Issue.record("\(set) was accepted")
    } catch let error as JobError { #expect(error.kind == .usage, "\(error)") }
  }

  /// What a job makes of a student depends on its phases, seed and data, and not on how often it saves, validates and logs.
  @Test func jobsAreKnownByWhatTheyMake() throws {
    let text = Self.good + "\nvalidation: {every: 5}\ncheckpoints: {every: 5}\n"
    let known = try job(text).identity([], teacher: "t")
    for same in [
      "validation.every=7", "checkpoints.every=9", "checkpoints.keep_last=9", "log_every=3", "run_dir=elsewhere",
    ] {
      #expect(try job(text, set: [same]).identity([], teacher: "t") == known, "\(same)")
    }
    for other in [
      "train.lr=2e-3", "train.tokens=128K", "train.context=64", "train.losses.logits=2", "train.seed=2", "train.clip=2",
      "train.freeze=[mlp]", "train.global_batch=16", "train.weight_decay=0.1", "model.init=random",
      "spikes.policy=skip", "train.compute=bfloat16",
    ] {
      #expect(try job(text, set: [other]).identity([], teacher: "t") != known, "\(other)")
    }
    #expect(try job(text).identity([], teacher: "u") != known)
  }

  /// What a key was called before is read for one version, and said; it is the same data to a checkpoint.
  @Test func formerNamesAreReadWithAWarning() throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("mix-\(UUID())").path
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    func mix(_ key: String) throws -> Mix {
      let path = folder + "/mix.yaml"
      try "sources: [{name: a, weight: 1}]\n\(key): 2\n".write(toFile: path, atomically: true, encoding: .utf8)
      return try Mix(path, folder: folder)
    }
    let (now, former) = (try mix("validation_shards"), try mix("holdout_shards"))
    #expect(now.validationShards == 2 && now.warnings.isEmpty)
    #expect(former.validationShards == 2)
    #expect(former.warnings.count == 1 && former.warnings[0].contains("holdout_shards is called validation_shards now"))
  }
}
