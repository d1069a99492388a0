import Foundation
import Tensors

/// ‖x − reference‖ / ‖reference‖ in double precision.
package func relativeError(_ x: [Float], _ reference: [Float]) -> Double {
  precondition(x.count == reference.count, "\(x.count) values against \(reference.count)")
  var (difference, norm) = (0.0, 0.0)
  for (a, b) in zip(x, reference) {
    guard a.isFinite else { return .infinity }
    difference += pow(Double(a) - Double(b), 2)
    norm += pow(Double(b), 2)
  }
  return norm == 0 ? difference.squareRoot() : (difference / norm).squareRoot()
}

/// Deterministic values in [−1, 1).
package func randomFloats(_ count: Int, seed: UInt64) -> [Float] {
  var state = seed &* 0x9E37_79B9_7F4A_7C15 &+ 1
  return (0..<count).map { _ in
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return Float(state >> 40) * 0x1p-23 - 1
  }
}
