import Models
import NN
import Optimizers

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
  /// What the backward pass computes again to save memory.
  package var recompute: LayerRecomputation

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

extension Phase {
  /// Whether gradients cross layers, so that what all of them keep exists at once.
  package var crossesLayers: Bool { losses.hidden + losses.logits + losses.crossEntropy > 0 }

  /// Whether `parameter` of `model` trains in this phase.
  package func trains(_ parameter: Parameter, of model: HybridLM) -> Bool {
    !frozen.contains(parameter.group)
  }
}
