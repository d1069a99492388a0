import Foundation
import MPI
import Models
import Reporting
import Tensors
import TokenStreams

/// Measures the student on held-out sequences, over all ranks together.
struct Validation {
  /// Means per token, and the labels they are over.
  let losses: LossSums
  let labels: Int

  /// - Parameters:
  ///   - plan: gives the sequences, always the same
  ///   - wantsStop: asked after every round; a wish of any rank ends it early
  /// - Returns: nil when it was ended early
  init?(
    of student: HybridLM, teacher: HybridLM?, weights: LossWeights, plan: DataPlan, sequences: Int,
    world: Communicator, backend: any Backend, wantsStop: () -> Bool
  ) throws {
    let losses = MicroBatchLosses(
      student: student, teacher: teacher, weights: weights, backend: backend)
    let places = plan.validation(count: sequences)
    var sums = LossSums()
    var counts = TokenCounts(labels: 0, tokens: 0)
    // In rounds, after each of which the ranks look whether to go on. Each rank takes every size-th sequence; the sums are
    // added in the order of the sequences.
    let width = LossSums.names.count + 2
    let round = 4 * world.size
    for first in stride(from: 0, to: places.count, by: round) {
      let indices = (first..<min(first + round, places.count)).filter { $0 % world.size == world.rank }
      let batches = try indices.map { index in
        var batch = SequenceBatch()
        try plan.sources[places[index].source].validation.read(places[index].sequence, into: &batch)
        return batch
      }
      var mine = losses.sums(of: batches).enumerated().flatMap { index, sums in
        sums.values + [Double(batches[index].countedLabels), Double(batches[index].tokens.count)]
      }
      mine += [Double](repeating: 0, count: 4 * width - mine.count)
      let all = try world.allGather(mine + [wantsStop() ? 1 : 0])
      for index in 0..<min(round, places.count - first) {
        let row = index % world.size * (4 * width + 1) + index / world.size * width
        sums = LossSums(values: zip(sums.values, all[row..<row + width - 2]).map(+))
        counts.labels += Int(all[row + width - 2])
        counts.tokens += Int(all[row + width - 1])
      }
      if (0..<world.size).contains(where: { all[($0 + 1) * (4 * width + 1) - 1] > 0 }) { return nil }
    }
    self.losses = sums.means(counts)
    labels = counts.labels
  }
}

/// Validation of the run as it stands.
extension Trainer {
  /// Whether the log lacks the validation of the step where the run stands.
  func isValidationDue(_ metrics: MetricsLog?) throws -> Bool {
    guard job.validationEvery > 0, isDue(job.validationEvery) || position.step == job.totalSteps else { return false }
    var isMissing = [Int64(0)]
    if let metrics, !metrics.validatedSteps.contains(position.step) { isMissing[0] = 1 }
    try world.sum(&isMissing)
    return isMissing[0] > 0
  }

  /// Measures the student and logs it.
  ///
  /// - Returns: whether it came to its end; a wish to stop ends it early and leaves nothing in the log
  func validate(_ metrics: MetricsLog?, _ stop: StopRequest?) throws -> Bool {
    watchdog.enter(.validate, step: position.step)
    try runner.waitForParameters()
    // A supernet is measured by one path, always the same.
    models.student.path = path(at: 0)
    var weights = phase.losses
    weights.crossEntropy = 1
    if models.teacher != nil { weights.logits = max(weights.logits, 1) }
    let validation = try loader.exclusively {
      try Validation(
        of: models.student, teacher: models.teacher, weights: weights,
        plan: inputs.plans[position.phase].part(of: position.sequences), sequences: job.validationSequences,
        world: world, backend: backend
      ) { stop?.reason(looking: watchdog.speaksForHost) != nil }
    }
    guard let validation else { return false }
    let losses = validation.losses
    try metrics?.write([
      "step": position.step, "phase": phase.name, "validation": losses.named(weights),
      "labels": validation.labels,
    ])
    let kl = models.teacher == nil ? "" : String(format: "  KL %.4f", losses.logits)
    say("validation at step \(position.step): cross-entropy \(String(format: "%.4f", losses.crossEntropy))\(kl)")
    return true
  }
}
