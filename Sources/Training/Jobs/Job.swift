import Conversion
import Files
import Foundation
import Models
import NN
import Optimizers
import TokenStreams

/// What a job does to its model.
package enum JobKind: String, Sendable {
  /// A full-attention model from random weights: a demo's teacher, a baseline.
  case pretrain
  /// Stage 1: a hybrid learns from its teacher.
  case distill
  /// Stage 2: the full model learns from text.
  case finetune
}

/// The weights of the losses that a phase sums up; each is a mean per token of the global batch.
package struct LossWeights: Sendable, Equatable {
  /// Squared error of every replaced mixer's output, teacher-forced, averaged over those layers and channels.
  package var mixerOutput = 0.0
  /// Squared error of every layer's output, averaged over layers and channels.
  package var hidden = 0.0
  /// Forward KL from the teacher's distribution over the vocabulary.
  package var logits = 0.0
  package var crossEntropy = 0.0

  package init(mixerOutput: Double = 0, hidden: Double = 0, logits: Double = 0, crossEntropy: Double = 0) {
    self.mixerOutput = mixerOutput
    self.hidden = hidden
    self.logits = logits
    self.crossEntropy = crossEntropy
  }

  package var needsTeacher: Bool { mixerOutput + hidden + logits > 0 }
}

/// From a step of a phase on, another batch or mix. What has begun is never edited, only followed: a run that resumes
/// compares.
package struct PhaseChange: Sendable, Equatable {
  /// Counted from 0 within the phase.
  package var step: Int
  package var globalBatch: Int?
  package var mixName: String?

  package init(step: Int, globalBatch: Int?, mixName: String?) {
    (self.step, self.globalBatch, self.mixName) = (step, globalBatch, mixName)
  }
}

/// A stretch of training with its own losses, budget, context and schedule.
package struct Phase: Sendable, Equatable {
  package var name: String
  package var steps: Int
  package var context: Int
  /// Sequences of one optimizer step, over all ranks; of the first, where it changes.
  package var globalBatch: Int
  /// In ascending order.
  package var changes: [PhaseChange] = []
  /// Sequences of one forward and backward pass.
  package var microBatch: Int
  /// Parts of the global batch in which gradients add up in place, and which then join in a tree: a power of two, of which
  /// every rank has as many. The bits depend on it, and not on the number of ranks.
  package var lanes: Int
  /// What the matrices that train are computed with.
  package var compute: ComputePrecision
  package var losses: LossWeights
  package var frozen: [ParameterGroup]
  package var schedule: Schedule
  package var adam: AdamW.Settings
  /// Largest norm of the gradient; 0 for no limit.
  package var clip: Double
  package var checkpointsActivations: Bool

  package var tokensPerStep: Int { globalBatch * context }
  package var microBatches: Int { globalBatch / microBatch }

  /// Sequences of step `step`, counted from 0.
  package func batch(at step: Int) -> Int {
    changes.last { $0.step <= step && $0.globalBatch != nil }?.globalBatch ?? globalBatch
  }

  /// Sequences of the steps before `step`.
  package func sequences(before step: Int) -> Int {
    var (count, first, batch) = (0, 0, globalBatch)
    for change in changes where change.step < step {
      count += (change.step - first) * batch
      (first, batch) = (change.step, change.globalBatch ?? batch)
    }
    return count + (step - first) * batch
  }

  package var tokens: Int { sequences(before: steps) * context }

  /// The learning rate of step `step`; its schedule goes by sequences.
  package func learningRate(at step: Int) -> Double {
    let warm = sequences(before: schedule.warmupSteps)
    let rest = max(1, sequences(before: steps) - warm)
    return schedule.rate(step: step, progress: Double(sequences(before: step) - warm) / Double(rest))
  }
}

/// What to do when a checkpoint cannot be written: the disk is full, or gone. The last state of a run must be saved
/// whatever the policy.
package enum SaveFailurePolicy: String, Sendable, CaseIterable {
  /// Try again at the next steps, three times, then go on.
  case retry
  /// Go on until the next save is due.
  case `continue`
  /// End the run.
  case fail
}

/// A job file, read and checked.
package struct Job: Sendable {
  package let kind: JobKind
  package let path: String
  /// The file with its overrides, as YAML.
  package let text: String
  package var name: String
  package var runFolder: String
  /// Folder of the teacher; needed by losses that compare with it.
  package var teacher: String?
  /// `config.json` for a model to be made, a model folder for one to go on with.
  package var student: String
  /// How a student's new layers begin.
  package var initialization: StudentInitialization
  /// How a supernet's paths are drawn; nil for other students.
  package var supernet: PathSampling?
  /// Configurations that `plan` uses where the folders above do not exist yet.
  package var plannedTeacher: String?
  package var plannedStudent: String?
  package var dataRoot: String
  package var mixName: String
  package var mixFolder: String
  package var tokenizer: String
  package var seed: UInt64
  package var phases: [Phase]
  package var validationEvery: Int
  package var validationSequences: Int
  package var checkpointEvery: Int
  /// Minutes after which a save is due, whatever the step; 0 for none.
  package var checkpointMinutes: Double
  package var keepLast: Int
  package var keepEvery: Int
  package var logEvery: Int
  package var compressionLevel: Int32
  package var onSaveFailure: SaveFailurePolicy
  package var spikes: SpikeGuard.Settings
  /// Whether hosts may keep their parts of a checkpoint to themselves until they have travelled to the coordinator's,
  /// since they do not share a file system.
  package var gathersCheckpoints: Bool
  /// Seconds that no phase of a step may be suspected of hanging; 0 for no watchdog.
  package var watchdogFloor: Double
  /// Steps between comparisons of the ranks' parameters; 0 for none.
  package var replicaCheckEvery: Int

  package var totalSteps: Int { phases.reduce(0) { $0 + $1.steps } }
  package var totalTokens: Int { phases.reduce(0) { $0 + $1.tokens } }

  /// The order of data of phase `index`, through all changes of its mix.
  package func dataPlan(ofPhase index: Int, cache: ShardCache = ShardCache()) throws -> DataPlan {
    let phase = phases[index]
    func plan(_ mix: String, after previous: (plan: DataPlan, index: Int)?) throws -> DataPlan {
      try DataPlan(
        mix: Mix(mix, folder: mixFolder), root: dataRoot, context: phase.context, seed: seed, label: phase.name,
        after: previous, cache: cache)
    }
    return try phase.changes.reduce(plan(mixName, after: nil)) { before, change in
      try change.mixName.map { try plan($0, after: (before, phase.sequences(before: change.step))) } ?? before
    }
  }

  /// The phase of global step `step`, counted from 0, and the step in it.
  package func locate(_ step: Int) -> (phase: Int, step: Int) {
    var rest = step
    for (index, phase) in phases.enumerated() {
      if rest < phase.steps { return (index, rest) }
      rest -= phase.steps
    }
    return (phases.count, 0)
  }
}

extension Job {
  /// Reads the job at `path`.
  ///
  /// - Parameters:
  ///   - overrides: `key.path=value` pairs, taken as YAML
  ///   - ranks: that will run it, for the batch to divide by
  package init(_ kind: JobKind, path: String, overrides: [String], ranks: Int) throws {
    var object = try Self.mapping(path)
    for override in overrides { try Self.apply(override, to: &object) }
    let faults = YAMLReader.Faults()
    let root = YAMLReader(object, path: "", faults: faults)
    self.kind = kind
    self.path = path
    text = try yamlText(object)
    name = root.string("name") ?? ((path as NSString).lastPathComponent as NSString).deletingPathExtension
    runFolder = root.string("run_dir") ?? "Checkpoints/" + name
    if let declared = root.string("kind"), declared != kind.rawValue {
      root.fault("kind", "this job file is for jettrain \(declared)")
    }

    let model = root.section("model")
    teacher = model.string("teacher")
    student = model.required("student", "a config.json to make a model from, or a model folder")
    initialization = model.choice("init", StudentInitialization.self) ?? .transfer
    let budget = model.integer("full_layers", from: 0)
    let slidingBudget = model.integer("sliding_layers", from: 0)
    let share = model.number("budget_share") ?? 0.75
    if share < 0 || share > 1 { model.fault("budget_share", "\(share) is not between 0 and 1") }
    if let configuration = try? ModelConfiguration(path: student) {
      let isSupernet = configuration.supernetMixer != nil
      if isSupernet && budget == nil {
        model.fault("full_layers", "is missing: layers of full attention in the paths of this supernet")
      }
      if !isSupernet && budget != nil {
        model.fault("full_layers", "\(student) is not a supernet: its config.json has no supernet_mixer")
      }
      if slidingBudget ?? 0 > 0 && configuration.slidingWindow == nil {
        model.fault("sliding_layers", "\(student) has no efficient_attention_config.swa.window_size")
      }
    }
    supernet = budget.map {
      PathSampling(fullLayers: $0, slidingLayers: slidingBudget ?? 0, budgetShare: share)
    }
    plannedTeacher = model.string("teacher_config")
    plannedStudent = model.string("student_config")
    model.rejectUnknownKeys()

    let data = root.section("data")
    dataRoot = data.required("root", "the folder that holds the datasets")
    mixName = data.required("mix", "a name from Jobs/mixes, or a path")
    mixFolder = data.string("mixes") ?? "Jobs/mixes"
    tokenizer = data.string("tokenizer") ?? "bytes"
    data.rejectUnknownKeys()

    let train = root.section("train")
    seed = UInt64(train.integer("seed", to: .max) ?? 1)
    let sections = root.sections("phases", fallback: train) ?? [train]
    let hasTeacher = teacher != nil
    phases = sections.enumerated().map { index, section in
      Phase(section, kind: kind, index: index, hasTeacher: hasTeacher, ranks: ranks)
    }
    if phases.isEmpty { root.fault("phases", "the list is empty") }
    let phaseKeys = sections.reduce(into: Set<String>()) { $0.formUnion($1.keysAsked) }
    for section in sections where section !== train { section.rejectUnknownKeys() }
    train.rejectUnknownKeys(known: phaseKeys)

    let validation = root.section("validation")
    validationEvery = validation.integer("every") ?? 0
    validationSequences = validation.integer("sequences", from: 1) ?? 32
    validation.rejectUnknownKeys()
    let checkpoints = root.section("checkpoints")
    checkpointEvery = checkpoints.integer("every") ?? 0
    checkpointMinutes = checkpoints.number("minutes") ?? 30
    keepLast = checkpoints.integer("keep_last", from: 1) ?? 3
    keepEvery = checkpoints.integer("keep_every") ?? 0
    compressionLevel = Int32(checkpoints.integer("compression_level", from: -7, to: 19) ?? -1)
    onSaveFailure = checkpoints.choice("on_failure", SaveFailurePolicy.self) ?? .retry
    gathersCheckpoints = checkpoints.boolean("gather") ?? false
    checkpoints.rejectUnknownKeys()
    let spikeSection = root.section("spikes")
    spikes = SpikeGuard.Settings()
    spikes.policy = spikeSection.choice("policy", SpikeGuard.Policy.self) ?? .fail
    spikes.factor = spikeSection.number("factor") ?? 0
    spikes.limit = spikeSection.integer("limit", from: 1) ?? 5
    spikeSection.rejectUnknownKeys()
    let watchdog = root.section("watchdog")
    watchdogFloor = watchdog.number("floor") ?? 300
    replicaCheckEvery = watchdog.integer("replicas_every") ?? 100
    watchdog.rejectUnknownKeys()
    logEvery = root.integer("log_every", from: 1) ?? 10
    root.rejectUnknownKeys()
    guard faults.lines.isEmpty else {
      throw JobError(.usage, reasons: faults.lines.map { "\(path): \($0)" })
    }
  }

  /// The YAML mapping of a job file.
  package static func mapping(_ path: String) throws -> [String: Any] {
    guard FileManager.default.fileExists(atPath: path) else {
      throw JobError(.usage, "\(path): there is no such job file")
    }
    let text = String(decoding: try readFile(path), as: UTF8.self)
    let loaded: Any?
    do { loaded = try parseYAML(text) } catch {
      throw JobError(.usage, "\(path): is not YAML: \(error)")
    }
    guard let object = loaded as? [String: Any] else {
      throw JobError(.usage, "\(path): is not a YAML mapping")
    }
    return object
  }

  /// Sets `key.path=value`, the value taken as YAML.
  package static func apply(_ override: String, to object: inout [String: Any]) throws {
    let parts = override.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, !parts[0].isEmpty else {
      throw JobError(.usage, "--set \(override): expected key.path=value")
    }
    let value = (try? parseYAML(String(parts[1]))) ?? String(parts[1])
    func set(_ keys: ArraySlice<Substring>, in object: inout [String: Any]) throws {
      guard let key = keys.first.map(String.init) else { return }
      if keys.count == 1 {
        object[key] = value
      } else if key == "phases", let index = keys.dropFirst().first.flatMap({ Int($0) }),
        var list = object[key] as? [[String: Any]], list.indices.contains(index)
      {
        try set(keys.dropFirst(2), in: &list[index])
        object[key] = list
      } else {
        guard var child = (object[key] ?? [String: Any]()) as? [String: Any] else {
          throw JobError(.usage, "--set \(override): \(key) is not a mapping")
        }
        try set(keys.dropFirst(), in: &child)
        object[key] = child
      }
    }
    try set(parts[0].split(separator: ".")[...], in: &object)
  }
}

extension Phase {
  private static func check(_ batch: Int, _ microBatch: Int, ranks: Int, _ reader: YAMLReader) {
    if batch % microBatch != 0 {
      reader.fault("micro_batch", "\(microBatch) sequences do not divide the global batch of \(batch)")
    } else if batch / microBatch % ranks != 0 {
      reader.fault(
        "global_batch",
        "\(batch) sequences in micro-batches of \(microBatch) do not divide over \(ranks) ranks: make it a "
          + "multiple of \(microBatch * ranks), or the micro-batch smaller")
    }
  }

  /// Takes over the changes of `reader` and the number of steps that they lead to.
  private mutating func change(_ reader: YAMLReader, ranks: Int) {
    let total = sequences(before: steps)
    for section in reader.sections("changes") ?? [] {
      guard let step = section.integer("from_step", from: 1) else {
        section.fault("from_step", "is missing: the step of the phase, counted from 0, from which on it holds")
        continue
      }
      let batch = section.integer("global_batch", from: 1, to: 1 << 24)
      if let batch { Self.check(batch, microBatch, ranks: ranks, section) }
      let mix = section.string("mix")
      if batch == nil && mix == nil { section.fault("from_step", "changes neither global_batch nor mix") }
      section.rejectUnknownKeys()
      guard step > changes.last?.step ?? 0 else {
        section.fault("from_step", "is not behind the change before")
        continue
      }
      guard step < steps else {
        section.fault("from_step", "\(step) is behind the end of the phase, which has \(steps) steps")
        continue
      }
      changes.append(PhaseChange(step: step, globalBatch: batch, mixName: mix))
      let now = self.batch(at: step)
      steps = step + (max(0, total - sequences(before: step)) + now - 1) / now
    }
  }

  /// Reads a phase; faults go to the reader.
  fileprivate init(_ reader: YAMLReader, kind: JobKind, index: Int, hasTeacher: Bool, ranks: Int) {
    name = reader.string("name") ?? (index == 0 ? kind.rawValue : "\(kind.rawValue)-\(index + 1)")
    // Smaller still, since steps are multiplied by both.
    let most = 1 << 24
    context = reader.integer("context", from: 1, to: most) ?? 0
    if context == 0 { reader.fault("context", "is missing: tokens of a sequence") }
    globalBatch = reader.integer("global_batch", from: 1, to: most) ?? 1
    microBatch = reader.integer("micro_batch", from: 1, to: most) ?? 1
    steps = 0
    let perStep = max(1, globalBatch * context)
    if let budget = reader.tokens("tokens") {
      // A round budget such as 50B ends with a whole step; an exact count must divide.
      steps = (budget.count + perStep - 1) / perStep
      if budget.isExact && budget.count % perStep != 0 {
        reader.fault(
          "tokens",
          "\(budget.count) is not a whole number of steps of \(globalBatch) × \(context) = \(perStep) tokens; "
            + "\(steps * perStep) is")
      }
    } else {
      reader.fault("tokens", "is missing: the budget, such as 20M or 50B")
    }

    let lossSection = reader.section("losses")
    losses = LossWeights(
      mixerOutput: lossSection.number("mixer_output") ?? 0, hidden: lossSection.number("hidden") ?? 0,
      logits: lossSection.number("logits") ?? 0, crossEntropy: lossSection.number("cross_entropy") ?? 0)
    lossSection.rejectUnknownKeys()
    if losses == LossWeights() { losses = kind == .distill ? LossWeights(hidden: 1) : LossWeights(crossEntropy: 1) }
    if losses.needsTeacher && !hasTeacher {
      reader.fault("losses", "compare with a teacher, but model.teacher names none")
    }
    frozen = reader.list("freeze", ParameterGroup.self) ?? (kind == .distill ? [.mlp, .embeddings] : [])

    let peak = reader.number("lr") ?? 1e-3
    schedule = Schedule(
      shape: reader.choice("schedule", Schedule.Shape.self) ?? .cosine, peak: peak,
      floor: reader.number("min_lr") ?? peak / 10, warmupSteps: reader.integer("warmup_steps") ?? 0)
    adam = AdamW.Settings(
      beta1: Float(reader.number("beta1") ?? 0.9), beta2: Float(reader.number("beta2") ?? 0.95),
      epsilon: Float(reader.number("epsilon") ?? 1e-8),
      weightDecay: Float(reader.number("weight_decay") ?? 0))
    clip = reader.number("clip") ?? 1
    checkpointsActivations = reader.boolean("checkpoint_activations") ?? false
    lanes = reader.integer("lanes", from: 1) ?? 8
    compute = reader.choice("compute", ComputePrecision.self) ?? .float32
    Self.check(globalBatch, microBatch, ranks: ranks, reader)
    if lanes & (lanes - 1) != 0 {
      reader.fault("lanes", "\(lanes) is not a power of two")
    } else if lanes % ranks != 0 {
      reader.fault(
        "lanes",
        "\(lanes) lanes, in which gradients add up, cannot be shared by \(ranks) ranks alike: run a power of two of ranks, and "
          + "set lanes to that or more")
    }
    change(reader, ranks: ranks)
  }

  /// Whether `parameter` of `model` trains in this phase.
  package func trains(_ parameter: Parameter, of model: HybridLM) -> Bool {
    !frozen.contains(parameter.group)
  }
}

extension Job {
  /// The `kind` that a job file declares.
  package static func declaredKind(of path: String) throws -> String {
    guard let kind = try mapping(path)["kind"] as? String else {
      throw JobError(.usage, "\(path): kind: is missing: pretrain, distill, finetune or search")
    }
    return kind
  }

  /// The shapes of student and teacher, from their folders or, where those do not exist yet, from the configurations
  /// that the job gives for planning.
  package func configurations() throws -> (student: ModelConfiguration, teacher: ModelConfiguration?) {
    (try studentConfiguration(), try teacher.map { try Self.configuration($0, plannedTeacher) })
  }

  /// The same of the student alone.
  package func studentConfiguration() throws -> ModelConfiguration {
    try Self.configuration(student, plannedStudent)
  }

  private static func configuration(_ path: String, _ planned: String?) throws -> ModelConfiguration {
    let exists = FileManager.default.fileExists(atPath: path)
    return try ModelConfiguration(path: exists ? path : planned ?? path)
  }
}
