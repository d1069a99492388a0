import Foundation

/// Scalar functions of the C library, which only small per-head and per-position work calls.
extension CPUBackend {
  /// base^−exponent
  static func inversePower(_ base: Double, _ exponent: Double) -> Double { pow(base, -exponent) }

  static func sineCosine(_ angle: Double) -> (sine: Double, cosine: Double) { (sin(angle), cos(angle)) }

  static func exponential(_ x: Float) -> Float { expf(x) }

  static func logarithm(_ x: Float) -> Float { logf(x) }

  /// log(1 + e^x) without overflow.
  static func softplus(_ x: Float) -> Float { x > 20 ? x : log1pf(expf(x)) }

  static func sigmoid(_ x: Float) -> Float { 1 / (1 + expf(-x)) }
}
