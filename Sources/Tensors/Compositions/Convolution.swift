/// Convolutions composed of the core's, whose taps differ from token to token: fixed taps are the same for each.
extension Backend {
  package func dynamicConvolve(_ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor?, into y: Tensor) {
    convolve(x, kernels: kernels, layout: layout, history: history, into: y)
    apply(.silu, y, into: y)
  }

  package func dynamicConvolveBackward(
    _ dy: Tensor, _ x: Tensor, kernels: Tensor, layout: Layout, dx: Tensor, dKernels: Tensor
  ) {
    let du = empty(x.shape)
    convolve(x, kernels: kernels, layout: layout, history: nil, into: du)
    applyBackward(.silu, dy, x: du, y: activated(du), into: du)
    convolveBackward(du, x, kernels: kernels, layout: layout, dx: dx, dKernels: dKernels)
  }

  package func generatedConvolve(
    _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, history: Tensor?, into y: Tensor,
    saves: Bool
  ) -> SavedState? {
    composedGeneratedConvolve(
      x, inner: inner, weight: weight, bias: bias, layout: layout, history: history, into: y)
    return nil
  }

  /// By taps that exist whole, also for backends with a kernel of their own where tokens are few.
  package func composedGeneratedConvolve(
    _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, history: Tensor?, into y: Tensor
  ) {
    dynamicConvolve(x, kernels: kernels(inner, weight, bias), layout: layout, history: history, into: y)
  }

  /// Taps by token and channel, `[N, C, 4]`.
  private func kernels(_ inner: Tensor, _ weight: Tensor, _ bias: Tensor) -> Tensor {
    let kernels = empty([inner.rows, weight.rows], inner.dtype)
    project(inner, [weight], biases: [bias], onto: nil, into: kernels)
    return kernels.reshaped([inner.rows, weight.rows / 4, 4])
  }

  package func generatedConvolveBackward(
    _ dy: Tensor, _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, saved: SavedState?,
    dx: Tensor, dInner: Tensor, dWeight: Tensor?, addsWeight: Bool, dBias: Tensor?, addsBias: Bool
  ) {
    let kernels = kernels(inner, weight, bias)
    let dKernels = empty(like: kernels)
    dynamicConvolveBackward(dy, x, kernels: kernels, layout: layout, dx: dx, dKernels: dKernels)
    let rows = dKernels.reshaped([inner.rows, weight.rows])
    projectBackward(rows, [weight], into: dInner, adds: false)
    if let dWeight {
      multiply(rows, transposed: true, inner, transposed: false, into: dWeight, alpha: 1, adds: addsWeight)
    }
    if let dBias { sumRows(rows, into: dBias, adds: addsBias) }
  }

  package func shortConvolve(
    _ x: Tensor, weight: Tensor, bias: Tensor?, layout: Layout, history: Tensor?, into y: Tensor
  ) {
    convolve(x, kernels: everywhere(weight, x.rows), layout: layout, history: history, into: y)
    if let bias { addBias(bias, to: y) }
    apply(.silu, y, into: y)
  }

  package func shortConvolveBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, bias: Tensor?, layout: Layout, dx: Tensor, dWeight: Tensor,
    dBias: Tensor?
  ) {
    let kernels = everywhere(weight, x.rows)
    let (du, dKernels) = (empty(x.shape), empty(kernels.shape))
    convolve(x, kernels: kernels, layout: layout, history: nil, into: du)
    if let bias { addBias(bias, to: du) }
    applyBackward(.silu, dy, x: du, y: activated(du), into: du)
    convolveBackward(du, x, kernels: kernels, layout: layout, dx: dx, dKernels: dKernels)
    sumRows(dKernels, into: dWeight, adds: false)
    if let dBias { sumRows(du, into: dBias, adds: false) }
  }

  package func shiftTokens(_ x: Tensor, layout: Layout, history: Tensor?, into y: Tensor) {
    // The convolution knows four tokens before a segment, the shift one.
    let padded = history.map { history in
      let (sequences, channels) = (history.rows, history.columns)
      let padded = empty([sequences, 4 * channels])
      addColumns(history.reshaped([sequences, channels]), into: padded, 3 * channels..<4 * channels, adds: false)
      return padded.reshaped([sequences, 4, channels])
    }
    convolve(x, kernels: shiftTaps(x), layout: layout, history: padded, into: y)
  }

  package func shiftTokensBackward(_ dy: Tensor, layout: Layout, into dx: Tensor) {
    convolveBackward(dy, dy, kernels: shiftTaps(dy), layout: layout, dx: dx, dKernels: nil)
  }

  /// One tap of the token before, minus one of the token itself.
  private func shiftTaps(_ x: Tensor) -> Tensor {
    let taps = empty([x.columns, 4])
    addColumns(filled([x.columns, 1], with: 1), into: taps, 2..<3, adds: false)
    addColumns(filled([x.columns, 1], with: -1), into: taps, 3..<4, adds: true)
    return everywhere(taps, x.rows)
  }

  /// The taps `[C, …, 4]` for each of `tokens` tokens.
  private func everywhere(_ taps: Tensor, _ tokens: Int) -> Tensor {
    let kernels = empty([tokens, taps.count])
    multiply(
      filled([tokens, 1], with: 1), transposed: false, taps.reshaped([1, taps.count]), transposed: false,
      into: kernels, alpha: 1, adds: false)
    return kernels.reshaped([tokens, taps.count / 4, 4])
  }
}
