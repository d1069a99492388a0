import NN
import Tensors

/// The optimizer state of the part of an arena that this rank owns.
package final class AdamW {
  /// The settings of a phase.
  package struct Settings: Sendable, Equatable {
    package var beta1: Float
    package var beta2: Float
    package var epsilon: Float
    package var weightDecay: Float

    package init(beta1: Float, beta2: Float, epsilon: Float, weightDecay: Float) {
      self.beta1 = beta1
      self.beta2 = beta2
      self.epsilon = epsilon
      self.weightDecay = weightDecay
    }
  }

  package let arena: Arena
  /// Elements of the arena that this rank updates.
  package let slice: Range<Int>
  package let moment1: Tensor
  package let moment2: Tensor
  private let settings: Settings

  /// Moments of zero for the elements `slice` of `arena`.
  package init(_ arena: Arena, slice: Range<Int>, settings: Settings) {
    self.arena = arena
    self.slice = slice
    self.settings = settings
    let backend = arena.values.backend
    moment1 = backend.zeros([slice.count])
    moment2 = backend.zeros([slice.count])
  }

  /// Updates the slice from its gradients, each multiplied by `gradientScale`; `step` counts from 1.
  package func update(step: Int, learningRate: Double, gradientScale: Double) {
    for (range, decays) in arena.decayRuns(slice) {
      let local = range.lowerBound - slice.lowerBound..<range.upperBound - slice.lowerBound
      arena.values.backend.adamW(
        parameters: arena.values.rows(range), gradients: arena.gradients.rows(range),
        moment1: moment1.rows(local), moment2: moment2.rows(local),
        step: AdamWStep(
          learningRate: Float(learningRate), beta1: settings.beta1, beta2: settings.beta2,
          epsilon: settings.epsilon, weightDecay: decays ? settings.weightDecay : 0, step: step,
          gradientScale: Float(gradientScale)))
    }
  }
}
