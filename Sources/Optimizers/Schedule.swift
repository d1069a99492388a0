import Foundation

/// How the learning rate goes over a phase: a linear warm-up, then one of three shapes down to a floor.
package struct Schedule: Sendable, Equatable {
  /// What comes after the warm-up.
  package enum Shape: String, Sendable, CaseIterable {
    case constant
    /// Half a cosine from the peak to the floor.
    case cosine
    /// Warm-up, stable, decay: linear to the floor over the last fifth (Hu et al., 2024).
    case wsd
  }

  package var shape: Shape
  package var peak: Double
  package var floor: Double
  package var warmupSteps: Int

  package init(shape: Shape, peak: Double, floor: Double, warmupSteps: Int) {
    self.shape = shape
    self.peak = peak
    self.floor = floor
    self.warmupSteps = warmupSteps
  }

  /// The rate of step `step`, counted from 0, of `total`.
  package func rate(step: Int, of total: Int) -> Double {
    rate(step: step, progress: Double(step - warmupSteps) / Double(max(1, total - warmupSteps)))
  }

  /// The rate of step `step`, counted from 0.
  ///
  /// - Parameter progress: the share of what follows the warm-up that is done
  package func rate(step: Int, progress: Double) -> Double {
    if step < warmupSteps { return peak * Double(step + 1) / Double(warmupSteps) }
    let progress = min(1, progress)
    switch shape {
    case .constant: return peak
    case .cosine: return floor + (peak - floor) * 0.5 * (1 + cos(progress * .pi))
    case .wsd: return progress < 0.8 ? peak : floor + (peak - floor) * (1 - (progress - 0.8) / 0.2)
    }
  }
}
