import Models
import Tensors
import TokenStreams
import Training

/// Text to measure models on, as tokens, and what they are ids of.
package struct EvaluationText: Sendable {
  package let batches: [SequenceBatch]
  package let vocabulary: Vocabulary

  package init(batches: [SequenceBatch], vocabulary: Vocabulary) {
    (self.batches, self.vocabulary) = (batches, vocabulary)
  }

  /// Sequences of the held-out shards of `plan`, spread over them.
  package init(heldOut plan: DataPlan, sequences: Int) throws {
    let places = plan.validation(count: sequences)
    guard !places.isEmpty else {
      throw JobError(.data, "the held-out shards of \(plan.mix.name) have no whole sequence of \(plan.context) tokens")
    }
    batches = try places.map { place in
      var batch = SequenceBatch()
      try plan.sources[place.source].validation.read(place.sequence, into: &batch)
      return batch
    }
    vocabulary = Vocabulary(of: plan.manifest)
  }

  /// Tokens of one reading.
  package var tokens: Int { batches.reduce(0) { $0 + $1.tokens.count } }
}

/// Losses of a model on held-out text.
package struct Evaluation: Sendable {
  /// Mean cross-entropy per counted token, in nats.
  package let loss: Double
  /// Mean KL(teacher ‖ model), where a teacher was given.
  package let kl: Double?
  package let labels: Int

  /// Runs `model` on the batches of `text`, one at a time, and reads their losses back at the end.
  ///
  /// - Throws: `JobError` where the text has ids that the models have no rows for, or a loss is not finite
  package init(model: HybridLM, teacher: HybridLM?, text: EvaluationText, backend: any Backend) throws {
    try text.vocabulary.check(fits: model.configuration, teacher: teacher?.configuration)
    let losses = MicroBatchLosses(
      student: model, teacher: teacher,
      weights: LossWeights(logits: teacher == nil ? 0 : 1, crossEntropy: 1),
      backend: backend)
    var sums = LossSums()
    var counts = TokenCounts(labels: 0, tokens: 0)
    for (batch, found) in zip(text.batches, losses.sums(of: text.batches)) {
      sums = LossSums(values: zip(sums.values, found.values).map(+))
      counts.labels += batch.countedLabels
      counts.tokens += batch.tokens.count
    }
    let means = sums.means(counts)
    guard means.crossEntropy.isFinite else { throw model.unusable("the loss") }
    loss = means.crossEntropy
    kl = teacher == nil ? nil : means.logits
    labels = counts.labels
    if let kl, !kl.isFinite { throw (teacher ?? model).unusable("the KL to the teacher") }
  }
}
