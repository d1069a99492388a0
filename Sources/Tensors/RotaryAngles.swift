import Foundation

/// How fast the rotary angles of a layer grow: by position · θ^(−2i/D), stretched for contexts longer than a model was
/// trained on.
package struct RotaryAngles: Hashable, Sendable {
  package var theta: Float
  package var scaling: Scaling

  package init(theta: Float, scaling: Scaling = .none) {
    (self.theta, self.scaling) = (theta, scaling)
  }

  /// Kinds of stretching, by the names of transformers' `rope_type`.
  package enum Scaling: Hashable, Sendable {
    case none
    /// All frequencies divided.
    case linear(factor: Double)
    /// Slow frequencies divided, fast ones as they are, between the two bounds a mixture (Llama 3.1).
    case llama3(factor: Double, lowFactor: Double, highFactor: Double, originalContext: Double)
    /// Slow frequencies divided, fast ones as they are, between `low` and `high` turns a mixture; queries and keys are
    /// multiplied by `magnitude` (Peng et al., 2024).
    case yarn(
      factor: Double, fast: Double, slow: Double, originalContext: Double, magnitude: Double, truncates: Bool)
  }

  /// What queries and keys are multiplied by as they are rotated.
  package var magnitude: Double { if case .yarn(_, _, _, _, let magnitude, _) = scaling { magnitude } else { 1 } }

  /// The frequency of pair `i` of `half`, in radians a position, of which `frequency` is the one before stretching.
  package func stretched(_ frequency: Double, _ i: Int, of half: Int) -> Double {
    switch scaling {
    case .none: return frequency
    case .linear(let factor): return frequency / factor
    case .llama3(let factor, let lowFactor, let highFactor, let context):
      let wavelength = 2 * Double.pi / frequency
      if wavelength > context / lowFactor { return frequency / factor }
      if wavelength < context / highFactor { return frequency }
      let share = (context / wavelength - lowFactor) / (highFactor - lowFactor)
      return (1 - share) * frequency / factor + share * frequency
    case .yarn(let factor, let fast, let slow, let context, _, let truncates):
      /// The pair that turns so often in the original context.
      func pair(turns: Double) -> Double {
        Double(half) * log(context / (turns * 2 * Double.pi)) / log(Double(theta))
      }
      let (first, last) = (pair(turns: fast), pair(turns: slow))
      let low = max(truncates ? first.rounded(.down) : first, 0)
      var high = min(truncates ? last.rounded(.up) : last, Double(2 * half - 1))
      if high == low { high += 0.001 }
      let share = min(max((Double(i) - low) / (high - low), 0), 1)
      return share * frequency / factor + (1 - share) * frequency
    }
  }
}
