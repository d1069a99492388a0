import Models
import NN
import Optimizers
import Reporting
import Tensors

extension Phase {
  private static func check(_ batch: Int, _ microBatch: Int, ranks: Int, _ reader: YAMLReader) {
    if batch % microBatch != 0 {
      reader.fault("micro_batch", "\(microBatch) sequences do not divide the global batch of \(batch)")
    } else if batch / microBatch % ranks != 0 {
      reader.fault(
        "global_batch",
        "\(Format.counted(batch, "sequence")) in micro-batches of \(microBatch) do not divide over \(Format.counted(ranks, "rank")): make it a "
          + "multiple of \(microBatch * ranks), or the micro-batch smaller")
    }
  }

  /// Takes over the changes of `reader` and the number of steps that they lead to.
  private mutating func change(_ reader: YAMLReader, ranks: Int) {
    let total = sequences(before: steps)
    for section in reader.sections("changes") ?? [] {
      guard let step = section.integer("from_step", from: 1) else {
        section.demand("from_step", "the step of the phase, counted from 0, from which on it holds")
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
        section.fault("from_step", "\(step) is behind the end of the phase, which has \(Format.counted(steps, "step"))")
        continue
      }
      changes.append(PhaseChange(step: step, globalBatch: batch, mixName: mix))
      let now = self.batch(at: step)
      steps = step + (max(0, total - sequences(before: step)) + now - 1) / now
    }
  }

  /// Reads a phase; faults go to the reader.
  init(_ reader: YAMLReader, kind: JobKind, index: Int, hasTeacher: Bool, ranks: Int) {
    name = reader.string("name") ?? (index == 0 ? kind.rawValue : "\(kind.rawValue)-\(index + 1)")
    // Smaller still, since steps are multiplied by both.
    let most = 1 << 24
    context = reader.integer("context", from: 1, to: most) ?? 0
    reader.demand("context", "tokens of a sequence")
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
      reader.demand("tokens", "the budget, such as 20M or 50B")
    }

    let lossSection = reader.section("losses")
    losses = LossWeights(
      mixerOutput: lossSection.number("mixer_output") ?? 0, hidden: lossSection.number("hidden") ?? 0,
      logits: lossSection.number("logits") ?? 0, crossEntropy: lossSection.number("cross_entropy") ?? 0)
    lossSection.rejectUnknownKeys()
    if losses == LossWeights() {
      if reader.isGiven("losses"), !lossSection.isMisplaced {
        reader.fault("losses", "all weights are 0: nothing would be learned")
      }
      losses = kind == .distill ? LossWeights(hidden: 1) : LossWeights(crossEntropy: 1)
    }
    if losses.needsTeacher && !hasTeacher {
      reader.fault("losses", "compare with a teacher, but model.teacher names none")
    }
    frozen = reader.list("freeze", ParameterGroup.self) ?? (kind == .distill ? [.mlp, .embeddings] : [])
    if Set(frozen).count == ParameterGroup.allCases.count {
      reader.fault("freeze", "freezes everything: nothing would be learned")
    }

    let peak = reader.number("lr") ?? 1e-3
    let floor = reader.number("min_lr") ?? peak / 10
    if floor > peak { reader.fault("min_lr", "\(floor) is above lr, which is \(peak)") }
    schedule = Schedule(
      shape: reader.choice("schedule", Schedule.Shape.self) ?? .cosine, peak: peak,
      floor: floor, warmupSteps: reader.integer("warmup_steps") ?? 0)
    if schedule.warmupSteps > max(1, steps) {
      reader.fault("warmup_steps", "\(schedule.warmupSteps) are more steps than the phase has, \(steps)")
    }
    // Of 1 and more, averages would never forget, and moments grow without bound.
    let most1 = 1.0.nextDown
    adam = AdamW.Settings(
      beta1: Float(reader.number("beta1", to: most1) ?? 0.9), beta2: Float(reader.number("beta2", to: most1) ?? 0.95),
      epsilon: Float(reader.number("epsilon", from: 1e-20) ?? 1e-8),
      weightDecay: Float(reader.number("weight_decay") ?? 0))
    clip = reader.number("clip") ?? 1
    if let older = reader.boolean("checkpoint_activations") {
      reader.fault("checkpoint_activations", "is recompute now: write recompute: \(older ? "layer" : "none")")
    }
    let all = reader.choice("recompute", Recomputation.self) ?? .none
    recompute = LayerRecomputation(mixer: all, mlp: reader.choice("recompute_mlp", Recomputation.self) ?? all)
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
}
