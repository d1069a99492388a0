import Foundation
import Tensors

/// One input of an op under test.
package struct TestInput {
  package let name: String
  package let values: [Float]
  package let shape: [Int]

  package init(_ name: String, _ shape: [Int], seed: UInt64, scale: Float = 1, shift: Float = 0) {
    self.name = name
    self.shape = shape
    values = randomFloats(shape.reduce(1, *), seed: seed).map { $0 * scale + shift }
  }
}

/// Relative errors of an op: the largest of its output and gradients on ``TestBackend/fast`` against
/// ``ReferenceBackend``'s, and of the latter's gradients against central differences along random directions.
package struct GradientReport {
  package var output = 0.0
  package var gradients: [String: Double] = [:]
  package var differences: [String: Double] = [:]
}

/// ‖x − y‖ / ‖y‖; a y that vanishes is measured against `least`.
private func relativeError(_ x: [Double], _ y: [Double], least: Double) -> Double {
  let norm = y.reduce(0) { $0 + $1 * $1 }.squareRoot()
  let error = zip(x, y).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }.squareRoot()
  return error.isFinite ? error / max(norm, least, .leastNormalMagnitude) : .infinity
}

/// Runs `op` on a tape with a random cotangent, on ``TestBackend/fast`` and on ``ReferenceBackend``, and compares.
package func checkGradients(_ inputs: [TestInput], op: ([Tensor]) -> Tensor) -> GradientReport {
  let reference = ReferenceBackend()
  var cotangent: [Float] = []
  func run(
    _ backend: any Backend, _ values: (Tensor) -> [Double]
  ) -> (output: [Double], gradients: [[Double]]) {
    let tensors = inputs.map { input in
      var tensor = backend.tensor(input.values, input.shape)
      tensor.slot = GradientSlot(shape: input.shape, backend: backend)
      return tensor
    }
    let (output, tape) = backend.recording { op(tensors) }
    cotangent = randomFloats(output.count, seed: 99)
    output.slot?.accumulate(backend.tensor(cotangent, output.shape))
    tape.backward()
    return (values(output), tensors.map { $0.slot?.gradient.map(values) ?? [] })
  }
  let expected = run(reference, reference.doubles)
  var report = GradientReport()
  // A gradient that vanishes (attention to a single key) is measured against a hundredth of what flows in: it is a
  // difference of terms that large.
  let inflow = cotangent.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot()
  for kind in TestBackend.fast {
    let found = run(kind.make()) { $0.toArray().map(Double.init) }
    report.output = max(report.output, relativeError(found.output, expected.output, least: 0))
    for (index, input) in inputs.enumerated() {
      let (x, y) = (found.gradients[index], expected.gradients[index])
      let error = x.count == y.count && !y.isEmpty ? relativeError(x, y, least: 1e-2 * inflow) : .infinity
      report.gradients[input.name] = max(report.gradients[input.name] ?? 0, error)
    }
  }
  for (index, input) in inputs.enumerated() {
    let gradient = expected.gradients[index]
    guard gradient.count == input.values.count else { continue }
    let norm = gradient.reduce(0) { $0 + $1 * $1 }.squareRoot()
    var worst = norm.isFinite ? 0.0 : .infinity
    for trial in 0..<2 {
      let direction = randomFloats(input.values.count, seed: UInt64(1000 + trial)).map(Double.init)
      let length = direction.reduce(0) { $0 + $1 * $1 }.squareRoot()
      let step = 2e-6
      func loss(_ sign: Double) -> Double {
        let tensors = inputs.enumerated().map { place, input in
          let moved = place == index ? direction.map { sign * step * $0 } : nil
          let values = input.values.indices.map { Double(input.values[$0]) + (moved?[$0] ?? 0) }
          return reference.tensor(doubles: values, input.shape)
        }
        return zip(reference.doubles(op(tensors)), cotangent).reduce(0) { $0 + $1.0 * Double($1.1) }
      }
      let numeric = (loss(1) - loss(-1)) / (2 * step)
      let analytic = zip(gradient, direction).reduce(0) { $0 + $1.0 * $1.1 }
      // A random direction sees a share of about |u| / √n of the gradient's norm.
      let share = length / Double(direction.count).squareRoot()
      worst = max(worst, abs(numeric - analytic) / (max(norm, 1e-2 * inflow) * share))
    }
    report.differences[input.name] = worst
  }
  return report
}

/// Relative errors of what `body` returns against the same on ``ReferenceBackend``: the largest of ``TestBackend/fast``.
package func compareWithReference(_ body: (any Backend) -> [Tensor]) -> [Double] {
  let reference = ReferenceBackend()
  let expected = body(reference).map(reference.doubles)
  return TestBackend.fast.reduce([Double](repeating: 0, count: expected.count)) { worst, kind in
    let found = body(kind.make())
    precondition(found.count == expected.count, "\(found.count) results against \(expected.count)")
    return zip(worst, zip(found, expected)).map { error, pair in
      max(error, relativeError(pair.0.toArray().map(Double.init), pair.1, least: 0))
    }
  }
}
