import Models
import Tensors
import TokenStreams
import Training

/// Losses of a model on held-out text.
package struct Evaluation: Sendable {
  /// Mean cross-entropy per counted token, in nats.
  package let loss: Double
  /// Mean KL(teacher ‖ model), where a teacher was given.
  package let kl: Double?
  package let labels: Int

  /// Runs `model` on `batches`, one at a time.
  package init(model: HybridLM, teacher: HybridLM?, batches: [SequenceBatch], backend: any Backend) {
    let losses = MicroBatchLosses(
      student: model, teacher: teacher,
      weights: LossWeights(logits: teacher == nil ? 0 : 1, crossEntropy: 1), checkpointing: false,
      backend: backend)
    var sums = LossSums()
    var counts = TokenCounts(labels: 0, tokens: 0)
    for batch in batches {
      sums = LossSums(values: zip(sums.values, losses(batch, gradientsOver: nil).values).map(+))
      counts.labels += batch.countedLabels
      counts.tokens += batch.tokens.count
    }
    let means = sums.means(counts)
    loss = means.crossEntropy
    kl = teacher == nil ? nil : means.logits
    labels = counts.labels
  }

  /// Sequences of the held-out shards of `plan`, spread over them.
  package static func heldOut(_ plan: DataPlan, sequences: Int) throws -> [SequenceBatch] {
    let places = plan.validation(count: sequences)
    guard !places.isEmpty else {
      throw JobError(.data, "the held-out shards of \(plan.mix.name) have no whole sequence of \(plan.context) tokens")
    }
    return try places.map { place in
      var batch = SequenceBatch()
      try plan.sources[place.source].holdout.read(place.sequence, into: &batch)
      return batch
    }
  }
}
