import CPUBackend
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

/// Relative errors of an op against its naive twin: of its output, and of its gradients against central differences of
/// the twin along random directions.
package struct GradientReport {
  package var output = 0.0
  package var gradients: [String: Double] = [:]
}

/// Runs `op` on a tape with a random cotangent and compares with `twin`, in double precision.
package func checkGradients(
  _ inputs: [TestInput], threads: Int = 2, op: ([Tensor]) -> Tensor, twin: ([[Double]]) -> [Double]
) -> GradientReport {
  let backend = CPUBackend(threads: threads)
  backend.poisonsNewTensors = true
  let tensors = inputs.map { input in
    var tensor = backend.tensor(input.values, input.shape)
    tensor.slot = GradientSlot(shape: input.shape, backend: backend)
    return tensor
  }
  let (output, tape) = backend.recording { op(tensors) }
  let values = inputs.map { $0.values.map(Double.init) }
  let expected = twin(values)
  var report = GradientReport()
  report.output = relativeError(output.toArray(), expected.map(Float.init))
  let cotangent = randomFloats(output.count, seed: 99)
  output.slot?.accumulate(backend.tensor(cotangent, output.shape))
  tape.backward()
  let inflow = cotangent.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot()
  for (index, input) in inputs.enumerated() {
    guard let gradient = tensors[index].slot?.gradient?.toArray() else {
      report.gradients[input.name] = .infinity
      continue
    }
    let norm = gradient.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot()
    var worst = norm.isFinite ? 0.0 : .infinity
    for trial in 0..<3 {
      let direction = randomFloats(input.values.count, seed: UInt64(1000 + trial)).map(Double.init)
      let length = direction.reduce(0) { $0 + $1 * $1 }.squareRoot()
      let step = 1e-5
      func loss(_ sign: Double) -> Double {
        var moved = values
        for i in direction.indices { moved[index][i] += sign * step * direction[i] }
        return zip(twin(moved), cotangent).reduce(0) { $0 + $1.0 * Double($1.1) }
      }
      let numeric = (loss(1) - loss(-1)) / (2 * step)
      let analytic = zip(gradient, direction).reduce(0) { $0 + Double($1.0) * $1.1 }
      // A random direction sees a share of about |u| / √n of the gradient's norm. A gradient that vanishes (attention
      // to a single key) is measured against a hundredth of what flows in: it is a difference of terms that large.
      let share = length / Double(direction.count).squareRoot()
      worst = max(worst, abs(numeric - analytic) / (max(norm, 1e-2 * inflow) * share))
    }
    report.gradients[input.name] = worst
  }
  return report
}
