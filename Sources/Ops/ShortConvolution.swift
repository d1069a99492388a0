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
  return backend.record([x, weight, bias], y) { dy in
    precondition(history == nil, "a convolution that continues a cache has no backward pass")
    let (dx, dWeight) = (x.gradientRoom(), backend.empty(like: weight))
    let dBias = bias.map { backend.empty(like: $0) }
    backend.shortConvolveBackward(
      dy, x, weight: weight, bias: bias, layout: layout, dx: dx, dWeight: dWeight, dBias: dBias)
    x.slot?.accumulate(dx)
    weight.slot?.accumulate(dWeight)
    if let dBias { bias?.slot?.accumulate(dBias) }
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
  return backend.record([x], y) { dy in
    let dx = backend.empty(like: x)
    backend.shiftTokensBackward(dy, layout: layout, into: dx)
    x.slot?.accumulate(dx)
  }
}
