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

  /// The progress line, which fits 80 columns: where figures are long, without the share of the products' rate, which
  /// `metrics.jsonl` has, as it has the learning rate and the tokens so far. `data` is the share of the step that was spent
  /// waiting for it, where that is worth a look.
  var line: String {
    let left = Double(totalSteps - position.step) * total
    let waited = Int((100 * (seconds["data"] ?? 0) / total).rounded())
    let figures =
      "step \(position.step)/\(totalSteps)  loss \(Format.figure(result.loss))  grad \(Format.figure(result.gradientNorm))"
      + "  \(Format.count(tokensPerSecond)) tok/s" + (waited < 5 ? "" : "  data \(waited)%")
    let (share, end) = ("  MFU \(Int(utilization * 100))%", "  ETA \(Format.duration(left))")
    let line = figures + share + end
    return line.count <= 80 ? line : figures + end
  }
}
