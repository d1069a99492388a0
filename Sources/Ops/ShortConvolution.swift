import Tensors

/// SiLU of a causal depthwise convolution: u[t, c] = bias[c] + Σ_w weight[c, w] · x[t − 3 + w, c].
///
/// - Parameters:
///   - x: `[N, C]`
///   - weight: `[C, 1, 4]`, tap 3 for the current token
///   - bias: `[C]`
///   - layout: segments, runs of tokens that see only themselves
///   - history: `[segments, 4, C]`, the inputs before each segment, newest last; no gradient flows there
package func shortConvolution(
  _ x: Tensor, weight: Tensor, bias: Tensor? = nil, layout: Layout, history: Tensor? = nil
) -> Tensor {
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.shortConvolve(x, weight: weight, bias: bias, layout: layout, history: history, into: y)
  return backend.record(
    y, from: [x, weight] + (bias.map { [$0] } ?? []),
    saving: (x: x.saved, weight: weight.saved, bias: bias?.saved, layout: layout)
  ) { saved in
    let x = saved.x.value
    let y = x.backend.empty(like: x)
    x.backend.shortConvolve(
      x, weight: saved.weight.value, bias: saved.bias?.value, layout: saved.layout, history: nil, into: y)
    return y
  } backward: { [isContinued = history != nil] node in
    precondition(!isContinued, "a convolution that continues a cache has no backward pass")
    let (backend, saved) = (node.backend, node.saved)
    let (dx, dWeight) = (node[0].room(on: backend), node[1].room(on: backend))
    let dBias = saved.bias.map { _ in node[2].room(on: backend) }
    backend.shortConvolveBackward(
      node.dy, saved.x.value, weight: saved.weight.value, bias: saved.bias?.value, layout: saved.layout, dx: dx,
      dWeight: dWeight, dBias: dBias)
    node[0].add(dx)
    node[1].add(dWeight)
    if let dBias { node[2].add(dBias) }
  }
}

/// What the token before differs by: y[t] = x[t − 1] − x[t] within each segment (RWKV's token shift).
///
/// - Parameters:
///   - x: `[N, C]`
///   - history: `[segments, 1, C]`, the token before each segment; zero when nil. No gradient flows there.
package func tokenShift(_ x: Tensor, layout: Layout, history: Tensor? = nil) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.shiftTokens(x, layout: layout, history: history, into: y)
  return backend.record(y, from: [x], saving: layout) { node in
    let dx = node[0].room(on: node.backend)
    node.backend.shiftTokensBackward(node.dy, layout: node.saved, into: dx)
    node[0].add(dx)
  }
}
