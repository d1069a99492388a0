import Tensors

/// Root-mean-square normalisation over the last dimension: x / √(mean x² + ε) · w (Zhang and Sennrich, 2019).
///
/// - Parameters:
///   - x: `[N, D]`
///   - weight: `[D]`
package func rmsNorm(_ x: Tensor, weight: Tensor, epsilon: Float) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty(like: x)
  let inverse = backend.empty([x.count / weight.count])
  backend.normalize(x, weight: weight, epsilon: epsilon, into: y, inverse: inverse)
  return backend.record([x, weight], y) { dy in
    func run(_ dx: Tensor?, _ adds: Bool, _ dWeight: Tensor?, _ addsWeight: Bool) {
      backend.normalizeBackward(
        dy, x, weight: weight, inverse: inverse, into: dx, adds: adds, dWeight: dWeight,
        addsWeight: addsWeight)
    }
    x.slot?.accumulate { dx, adds in run(dx, adds, nil, false) }
    weight.slot?.accumulate { dWeight, adds in run(nil, false, dWeight, adds) }
  }
}

/// RMSNorm of every head, times SiLU of a gate: JetBlock's output (RECIPE section 3.5).
///
/// - Parameters:
///   - x: `[N, H, V]`
///   - gate: `[N, H·V]`
///   - weight: `[V]`, one for all heads
/// - Returns: `[N, H·V]`
package func gatedRMSNorm(_ x: Tensor, gate: Tensor, weight: Tensor, epsilon: Float) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty(like: gate)
  let inverse = backend.empty([x.count / weight.count])
  backend.gatedNormalize(x, gate: gate, weight: weight, epsilon: epsilon, into: y, inverse: inverse)
  return backend.record([x, gate, weight], y) { dy in
    let dx = backend.empty(like: x)
    let dGate = gate.gradientRoom()
    func run(_ dWeight: Tensor?, _ adds: Bool) {
      backend.gatedNormalizeBackward(
        dy, x, gate: gate, weight: weight, inverse: inverse, dx: dx, dGate: dGate, dWeight: dWeight,
        addsWeight: adds)
    }
    if let slot = weight.slot { slot.accumulate(run) } else { run(nil, false) }
    x.slot?.accumulate(dx)
    gate.slot?.accumulate(dGate)
  }
}

/// SiLU, then every head scaled to length one: x̂ = a / √(Σa² + ε), a = SiLU(x). Queries and keys of JetBlock.
///
/// - Parameter x: `[N, H, K]`
package func siluNormalize(_ x: Tensor, epsilon: Float = 1e-6) -> Tensor {
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.siluNormalize(x, epsilon: epsilon, into: y)
  return backend.record([x], y) { dy in
    let dx = x.gradientRoom()
    backend.siluNormalizeBackward(dy, x, epsilon: epsilon, into: dx)
    x.slot?.accumulate(dx)
  }
}

/// Every row of the last dimension scaled to length one: x / √(Σ x² + ε).
package func normalizeLength(_ x: Tensor, epsilon: Float = 1e-6) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.normalizeLength(x, epsilon: epsilon, into: y)
  return backend.record([x], y) { dy in
    let dx = backend.empty(like: x)
    backend.normalizeLengthBackward(dy, x, epsilon: epsilon, into: dx)
    x.slot?.accumulate(dx)
  }
}

/// Every row of the last dimension with mean 0 and variance 1: a group norm without its affine part.
package func standardize(_ x: Tensor, epsilon: Float) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty(like: x)
  let inverse = backend.empty(Array(x.shape.dropLast()))
  backend.standardize(x, epsilon: epsilon, into: y, inverse: inverse)
  let value = y
  return backend.record([x], y) { dy in
    let dx = backend.empty(like: x)
    backend.standardizeBackward(dy, y: value, inverse: inverse, into: dx)
    x.slot?.accumulate(dx)
  }
}
