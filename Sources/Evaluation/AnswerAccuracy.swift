import Models
import Tensors
import TokenStreams
import Training

/// How many answers a model would generate: of each run of labels, whether every token is the most likely one after what
/// stands before it.
package struct AnswerAccuracy: Sendable {
  package let answers: Int
  package let right: Int

  package var wrongShare: Double { answers == 0 ? 0 : 1 - Double(right) / Double(answers) }

  /// Runs `model` on the batches of `text`, one at a time.
  ///
  /// - Throws: `JobError` where the text has ids that the model has no rows for
  package init(_ model: HybridLM, _ text: EvaluationText, backend: any Backend) throws {
    try text.vocabulary.check(fits: model.configuration)
    var (answers, right) = (0, 0)
    for batch in text.batches {
      let places = batch.labels.indices.filter { batch.labels[$0] >= 0 }
      guard !places.isEmpty else { continue }
      let best = try Self.mostLikely(model, batch, at: places, backend: backend)
      // Two texts end to end are two answers.
      let starts = Set(batch.segments.map(\.lowerBound))
      var isRight = true
      for (index, place) in places.enumerated() {
        isRight = isRight && best[index] == batch.labels[place]
        if index + 1 == places.count || places[index + 1] != place + 1 || starts.contains(place + 1) {
          answers += 1
          right += isRight ? 1 : 0
          isRight = true
        }
      }
    }
    (self.answers, self.right) = (answers, right)
  }

  private static func mostLikely(
    _ model: HybridLM, _ batch: SequenceBatch, at places: [Int], backend: any Backend
  ) throws -> [Int32] {
    try backend.withoutRecording {
      let hidden = model(Batch(tokens: backend.tensor(batch.tokens), segments: Segments(batch.segments)))
      let chosen = backend.empty([places.count, hidden.columns])
      for (row, place) in places.enumerated() {
        backend.copy(hidden.rows(place..<place + 1), into: chosen.rows(row..<row + 1))
      }
      let logits = model.logits(chosen)
      let (values, size) = (logits.toArray(), logits.columns)
      guard values.allSatisfy(\.isFinite) else { throw model.unusable("the model's output") }
      return places.indices.map { row in
        let scores = values[row * size..<(row + 1) * size]
        return Int32(scores.indices.max { scores[$0] < scores[$1] }! - row * size)
      }
    }
  }
}
