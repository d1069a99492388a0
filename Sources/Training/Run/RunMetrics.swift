import Foundation
import Reporting

/// What a step did, as `metrics.jsonl` and the progress line tell it.
struct RunMetrics {
  let position: Position
  let totalSteps: Int
  let phase: Phase
  let result: StepResult
  let learningRate: Double
  /// Of the phase's plan.
  let sequences: Range<Int>
  /// Of the parts of the step, and of the whole.
  let seconds: [String: Double]
  let total: Double
  /// Operations of the model in the step, what is recomputed not counted, over those that the ranks' matrix products
  /// could have done meanwhile.
  let utilization: Double

  private var tokensPerSecond: Double { Double(sequences.count * phase.context) / total }

  /// A line of `metrics.jsonl`.
  var fields: [String: Any] {
    [
      "step": position.step, "phase": phase.name, "tokens": position.tokens, "loss": result.loss,
      "losses": result.losses.named(phase.losses), "lr": learningRate, "grad_norm": result.gradientNorm,
      "seconds": seconds, "tokens_per_s": tokensPerSecond, "mfu": utilization, "peak_memory": Machine.peakMemory,
      "sequences": [sequences.lowerBound, sequences.upperBound], "skipped": result.isSkipped,
      "operations": result.operations.named,
    ]
  }

  /// The progress line; `data` is the share of the step that was spent waiting for it.
  var line: String {
    let left = Double(totalSteps - position.step) * total
    return
      "step \(position.step)/\(totalSteps)  tokens \(Format.count(Double(position.tokens)))  loss \(String(format: "%.5g", result.loss))  "
      + "lr \(String(format: "%.2e", learningRate))  grad \(String(format: "%.3f", result.gradientNorm))  "
      + "\(Format.count(tokensPerSecond)) tok/s  data \(Int((100 * (seconds["data"] ?? 0) / total).rounded()))%  MFU \(Int(utilization * 100))%  ETA \(Format.duration(left))"
  }
}
