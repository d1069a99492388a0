/// The scalars of one AdamW update (Loshchilov and Hutter, 2019), bias corrections included.
package struct AdamWStep: Sendable {
  package var learningRate: Float
  package var beta1: Float
  package var beta2: Float
  package var epsilon: Float
  package var weightDecay: Float
  /// 1 − beta1^t and 1 − beta2^t.
  package var correction1: Float
  package var correction2: Float
  /// Multiplies every gradient first: the token mean and the clipping factor.
  package var gradientScale: Float

  package init(
    learningRate: Float, beta1: Float, beta2: Float, epsilon: Float, weightDecay: Float, step: Int,
    gradientScale: Float
  ) {
    self.learningRate = learningRate
    self.beta1 = beta1
    self.beta2 = beta2
    self.epsilon = epsilon
    self.weightDecay = weightDecay
    self.gradientScale = gradientScale
    correction1 = Float(1 - Double.pow(Double(beta1), step))
    correction2 = Float(1 - Double.pow(Double(beta2), step))
  }
}

extension Double {
  /// `base` to a whole power, by squaring: no dependence on the C library's `pow`.
  fileprivate static func pow(_ base: Double, _ exponent: Int) -> Double {
    var result = 1.0
    var factor = base
    var rest = exponent
    while rest > 0 {
      if rest & 1 == 1 { result *= factor }
      factor *= factor
      rest >>= 1
    }
    return result
  }
}
