/// What backends compute in one go where they can. Each has a composition of ``Kernels`` to begin with
/// (Sources/Tensors/Compositions), so that a new backend runs everything and grows; conventions are those of the core.
/// Columns of wider rows may be, where a backend takes them: y of `addBias`, gate and up of `swiGLU`, gate of `gatedNormalize`, x of
/// `siluNormalize`, `dynamicConvolve`, `generatedConvolve` and `shortConvolve`, a and b of `decayGate`, and the gradients of all these.
package protocol FusedKernels: AnyObject {
  /// y = base + x Wᵀ + b for x [N, I] and y [N, O]. The rows of W are those of `weights` [O_i, I], one behind the other, and
  /// the elements of b those of `biases`, if there are any.
  func project(_ x: Tensor, _ weights: [Tensor], biases: [Tensor], onto base: Tensor?, into y: Tensor)
  /// dx = dy W, or added.
  func projectBackward(_ dy: Tensor, _ weights: [Tensor], into dx: Tensor, adds: Bool)
  /// out = x + y
  func sum(_ x: Tensor, _ y: Tensor, into out: Tensor)
  /// y[n, o] += bias[o]
  func addBias(_ bias: Tensor, to y: Tensor)
  /// sums[d] = Σ_n x[n, d]
  func sumRows(_ x: Tensor, into sums: Tensor, adds: Bool)
  /// y = SiLU(gate) · up
  func swiGLU(gate: Tensor, up: Tensor, into y: Tensor)
  func swiGLUBackward(_ dy: Tensor, gate: Tensor, up: Tensor, dGate: Tensor, dUp: Tensor)
  /// y[n, h] = x[n, h · G / H] for x [N, G, K] and y [N, H, K].
  func repeatHeads(_ x: Tensor, into y: Tensor)
  func repeatHeadsBackward(_ dy: Tensor, into dx: Tensor)
  /// losses[n] = mean_d (x − target)²; dx = seed · 2 (x − target) / D, or added.
  func squaredError(
    _ x: Tensor, target: Tensor, seed: Float, losses: Tensor, into dx: Tensor?, adds: Bool)

  /// One AdamW step, after which `copy`, of any type, holds the parameters too.
  func adamW(
    parameters: Tensor, gradients: Tensor, moment1: Tensor, moment2: Tensor, step: AdamWStep, copy: Tensor)

  /// Copies rows of x to rows of y, which share no memory.
  func copyRows(_ x: Tensor, into y: Tensor, _ moves: [RowMove])
  /// history[s] = the newest rows of what was there and then of segment s of x, for history [segments, taps, C].
  func remember(_ x: Tensor, layout: Layout, in history: Tensor)

  // Decoding: one token of each of S sequences, whose positions [S] int32 are counted on the device.

  /// Row positions[s] mod R of sequence s of `cache` [S, R, …] = x[s].
  func storeRows(_ x: Tensor, at positions: Tensor, in cache: Tensor)
  /// Softmax attention of one query a sequence, q and o [S, H, D], over the rows that its cache has: the first
  /// min(positions[s] + 1, R) of `keys` and `values` [S, R, G, D], in whatever order they are.
  func attendCache(_ q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, into o: Tensor)
  /// o [S, H, V] of a step of the layout's one token a sequence; history and state take it in.
  func jetStep(_ step: JetStep, layout: Layout, into o: Tensor)
  /// positions[s] += 1
  func advance(_ positions: Tensor)
  /// tokens[s] = a token drawn from row s of `logits` [S, V] by the number uniforms[s] in [0, 1) (``Sampling``), −1 where the
  /// row is not finite; tokens [S] int32.
  func chooseTokens(_ logits: Tensor, _ sampling: Sampling, uniforms: Tensor, into tokens: Tensor)

  /// y = x / rms(x) · weight over the last dimension; `inverse` [rows] keeps 1 / rms.
  func normalize(_ x: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor)
  func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, into dx: Tensor?, adds: Bool,
    dWeight: Tensor?, addsWeight: Bool)
  /// dx = base + the gradient of `normalize`: what flows past a norm and what flows through it.
  func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, onto base: Tensor, into dx: Tensor,
    dWeight: Tensor?, addsWeight: Bool)
  /// y = normalize(x) · SiLU(gate), rows of one head each.
  func gatedNormalize(
    _ x: Tensor, gate: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor)
  func gatedNormalizeBackward(
    _ dy: Tensor, _ x: Tensor, gate: Tensor, weight: Tensor, inverse: Tensor, dx: Tensor, dGate: Tensor,
    dWeight: Tensor?, addsWeight: Bool)
  /// y = x / √(Σ x² + epsilon) over the last dimension.
  func normalizeLength(_ x: Tensor, epsilon: Float, into y: Tensor)
  func normalizeLengthBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor)
  /// y = SiLU(x) / √(Σ SiLU(x)² + epsilon) over the last dimension.
  func siluNormalize(_ x: Tensor, epsilon: Float, into y: Tensor)
  func siluNormalizeBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor)
  /// y = (x − mean) / √(variance + epsilon) over the last dimension; `inverse` [rows] keeps 1 / √….
  func standardize(_ x: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor)
  func standardizeBackward(_ dy: Tensor, y: Tensor, inverse: Tensor, into dx: Tensor)

  /// y[t, c] = SiLU(Σ_w kernels[t, c, w] · x[t − 3 + w, c]) within each segment; `history` as for `convolve`.
  func dynamicConvolve(_ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor?, into y: Tensor)
  func dynamicConvolveBackward(
    _ dy: Tensor, _ x: Tensor, kernels: Tensor, layout: Layout, dx: Tensor, dKernels: Tensor)
  /// The same where the kernels are inner weightᵀ + bias, for inner [N, R], weight [4·C, R] and bias [4·C].
  ///
  /// - Parameter saves: whether a backward pass will come for which memory may be spent
  /// - Returns: what it would else make again, of a backend that has it at hand
  func generatedConvolve(
    _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, history: Tensor?, into y: Tensor,
    saves: Bool
  ) -> SavedState?
  func generatedConvolveBackward(
    _ dy: Tensor, _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, saved: SavedState?,
    dx: Tensor, dInner: Tensor, dWeight: Tensor?, addsWeight: Bool, dBias: Tensor?, addsBias: Bool)
  /// y[t, c] = SiLU(bias[c] + Σ_w weight[c, w] · x[t − 3 + w, c]) within each segment; `history` as for `convolve`.
  func shortConvolve(
    _ x: Tensor, weight: Tensor, bias: Tensor?, layout: Layout, history: Tensor?, into y: Tensor)
  func shortConvolveBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, bias: Tensor?, layout: Layout, dx: Tensor, dWeight: Tensor,
    dBias: Tensor?)
  /// y[t] = x[t − 1] − x[t] within each segment; before its first token is zero, or the last row of its `history`
  /// [segments, 1, C].
  func shiftTokens(_ x: Tensor, layout: Layout, history: Tensor?, into y: Tensor)
  func shiftTokensBackward(_ dy: Tensor, layout: Layout, into dx: Tensor)

  /// g = −exp(aLog) · softplus(a + dtBias), beta = sigmoid(b); a, b, g, beta [N, H].
  func decayGate(a: Tensor, b: Tensor, aLog: Tensor, dtBias: Tensor, g: Tensor, beta: Tensor)
  func decayGateBackward(
    dG: Tensor, dBeta: Tensor, a: Tensor, beta: Tensor, aLog: Tensor, dtBias: Tensor, dA: Tensor,
    dB: Tensor, dALog: Tensor, dDtBias: Tensor)

  /// The gated delta rule (see `Ops/GatedDeltaRule.swift`). q, k [N, H, K], v, o [N, H, V], g, beta [N, H]; states and
  /// the returned value as for `diagonalPlusLowRank`.
  func gatedDeltaRule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float, layout: Layout, initial: Tensor?,
    o: Tensor, final: Tensor?, saves: Bool
  ) -> SavedState?
  func gatedDeltaRuleBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float,
    layout: Layout, saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor, dBeta: Tensor,
    dInitial: Tensor?)

  /// Linear attention whose state decays (see `Ops/DecayedAttention.swift`). q, k [N, H, K], v, o [N, H, V], g [N, H] or
  /// [N, H, K]; states and the returned value as for `diagonalPlusLowRank`.
  func decayedAttention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, layout: Layout, initial: Tensor?, o: Tensor,
    final: Tensor?, saves: Bool
  ) -> SavedState?
  func decayedAttentionBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, layout: Layout,
    saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor, dInitial: Tensor?)
}
