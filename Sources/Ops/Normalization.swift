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
  return backend.record(
    y, from: [x, weight], saving: (x: x.saved, weight: weight.saved, inverse: inverse)
  ) { saved in
    let x = saved.x.value
    let y = x.backend.empty(like: x)
    x.backend.normalize(x, weight: saved.weight.value, epsilon: epsilon, into: y, inverse: saved.inverse)
    return y
  } backward: { node in
    let saved = node.saved
    func run(_ dx: Tensor?, onto base: Tensor?, _ dWeight: Tensor?, _ addsWeight: Bool) {
      if let dx, let base {
        node.backend.normalizeBackward(
          node.dy, saved.x.value, weight: saved.weight.value, inverse: saved.inverse, onto: base, into: dx,
          dWeight: dWeight, addsWeight: addsWeight)
      } else {
        node.backend.normalizeBackward(
          node.dy, saved.x.value, weight: saved.weight.value, inverse: saved.inverse, into: dx, adds: false,
          dWeight: dWeight, addsWeight: addsWeight)
      }
    }
    func withWeight(_ dWeight: Tensor?, _ addsWeight: Bool) {
      guard node[0].isAsked else { return run(nil, onto: nil, dWeight, addsWeight) }
      node[0].write { dx, base in run(dx, onto: base, dWeight, addsWeight) }
    }
    if node[1].isAsked {
      node[1].accumulate { dWeight, adds in withWeight(dWeight, adds) }
    } else {
      withWeight(nil, false)
    }
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
  return backend.record(
    y, from: [x, gate, weight],
    saving: (x: x.saved, gate: gate.saved, weight: weight.saved, inverse: inverse)
  ) { saved in
    let (x, gate) = (saved.x.value, saved.gate.value)
    let y = x.backend.empty(like: gate)
    x.backend.gatedNormalize(
      x, gate: gate, weight: saved.weight.value, epsilon: epsilon, into: y, inverse: saved.inverse)
    return y
  } backward: { node in
    let (backend, saved) = (node.backend, node.saved)
    let (dx, dGate) = (node[0].room(on: backend), node[1].room(on: backend))
    func run(_ dWeight: Tensor?, _ adds: Bool) {
      backend.gatedNormalizeBackward(
        node.dy, saved.x.value, gate: saved.gate.value, weight: saved.weight.value, inverse: saved.inverse, dx: dx,
        dGate: dGate, dWeight: dWeight, addsWeight: adds)
    }
    if node[2].isAsked { node[2].accumulate { dWeight, adds in run(dWeight, adds) } } else { run(nil, false) }
    node[0].add(dx)
    node[1].add(dGate)
  }
}

/// SiLU, then every head scaled to length one: x̂ = a / √(Σa² + ε), a = SiLU(x). Queries and keys of JetBlock.
///
/// - Parameter x: `[N, H, K]`
package func siluNormalize(_ x: Tensor, epsilon: Float = 1e-6) -> Tensor {
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.siluNormalize(x, epsilon: epsilon, into: y)
  return backend.record(y, from: [x], saving: x.saved) { saved in
    let x = saved.value
    let y = x.backend.empty(like: x)
    x.backend.siluNormalize(x, epsilon: epsilon, into: y)
    return y
  } backward: { node in
    let dx = node[0].room(on: node.backend)
    node.backend.siluNormalizeBackward(node.dy, node.saved.value, epsilon: epsilon, into: dx)
    node[0].add(dx)
  }
}

/// Every row of the last dimension scaled to length one: x / √(Σ x² + ε).
package func normalizeLength(_ x: Tensor, epsilon: Float = 1e-6) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.normalizeLength(x, epsilon: epsilon, into: y)
  return backend.record(y, from: [x], saving: x.saved) { saved in
    let x = saved.value
    let y = x.backend.empty(like: x)
    x.backend.normalizeLength(x, epsilon: epsilon, into: y)
    return y
  } backward: { node in
    let dx = node[0].room(on: node.backend)
    node.backend.normalizeLengthBackward(node.dy, node.saved.value, epsilon: epsilon, into: dx)
    node[0].add(dx)
  }
}

/// Every row of the last dimension with mean 0 and variance 1: a group norm without its affine part.
package func standardize(_ x: Tensor, epsilon: Float) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty(like: x)
  let inverse = backend.empty(Array(x.shape.dropLast()))
  backend.standardize(x, epsilon: epsilon, into: y, inverse: inverse)
  return backend.record(y, from: [x], saving: (y: y, inverse: inverse)) { node in
    let dx = node[0].room(on: node.backend)
    node.backend.standardizeBackward(node.dy, y: node.saved.y, inverse: node.saved.inverse, into: dx)
    node[0].add(dx)
  }
}
