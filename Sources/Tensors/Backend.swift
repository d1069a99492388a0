/// What a device can compute. Ops enqueue; storage may live elsewhere; no code outside a backend touches
/// elements but through ``Memory``'s copies.
///
/// N counts tokens, H heads, K and V key and value channels of a head, D channels, O output channels.
/// `adds` says whether a result is added to its destination or replaces it. Every method is order-stable: the
/// same inputs give the same bits at any number of threads.
package protocol Backend: Memory {
  /// The tape that records the ops now running; nil when no gradient is asked.
  var tape: Tape? { get set }
  /// What computes, in a few words: `2 threads`.
  var deviceDescription: String { get }
  /// What decides the last bits of its results beside the program and its inputs, for example the kernels that a library
  /// chose for this processor.
  var kernelIdentity: String { get }

  func fill(_ x: Tensor, with value: Float)
  /// y = x; bfloat16 is widened to float32.
  func copy(_ x: Tensor, into y: Tensor)
  /// y += scale · x
  func add(_ x: Tensor, scale: Float, into y: Tensor)
  /// out = x + y
  func sum(_ x: Tensor, _ y: Tensor, into out: Tensor)

  /// c = alpha · op(a) op(b), or added to c; matrices by their first dimension and the rest. b may be bfloat16 where
  /// a is not transposed.
  func multiply(
    _ a: Tensor, transposed aTransposed: Bool, _ b: Tensor, transposed bTransposed: Bool, into c: Tensor,
    alpha: Float, adds: Bool)
  /// y[n, o] += bias[o]
  func addBias(_ bias: Tensor, to y: Tensor)
  /// sums[d] = Σ_n x[n, d]
  func sumRows(_ x: Tensor, into sums: Tensor, adds: Bool)

  /// out[n] = table[ids[n]]; the table may be bfloat16.
  func gather(_ table: Tensor, _ ids: Tensor, into out: Tensor)
  /// table[ids[n]] += x[n], in the order of n
  func scatterAdd(_ x: Tensor, _ ids: Tensor, into table: Tensor)

  /// y = x / rms(x) · weight over the last dimension; `inverse` [rows] keeps 1 / rms.
  func normalize(_ x: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor)
  func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, into dx: Tensor?, adds: Bool,
    dWeight: Tensor?, addsWeight: Bool)

  /// y = normalize(x) · SiLU(gate), rows of one head each.
  func gatedNormalize(
    _ x: Tensor, gate: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor)
  func gatedNormalizeBackward(
    _ dy: Tensor, _ x: Tensor, gate: Tensor, weight: Tensor, inverse: Tensor, dx: Tensor, dGate: Tensor,
    dWeight: Tensor?, addsWeight: Bool)

  /// y = SiLU(x)
  func silu(_ x: Tensor, into y: Tensor)
  func siluBackward(_ dy: Tensor, _ x: Tensor, into dx: Tensor)
  /// y = SiLU(gate) · up
  func swiGLU(gate: Tensor, up: Tensor, into y: Tensor)
  func swiGLUBackward(_ dy: Tensor, gate: Tensor, up: Tensor, dGate: Tensor, dUp: Tensor)
  /// y = f(x), element by element.
  func apply(_ function: ElementFunction, _ x: Tensor, into y: Tensor)
  /// dx = dy · f′(x); y = f(x).
  func applyBackward(_ function: ElementFunction, _ dy: Tensor, x: Tensor, y: Tensor, into dx: Tensor)
  /// out = x · y, element by element, or added.
  func product(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool)
  /// y[m] = scales[m] · x[m], rows of the last dimension; or added.
  func scaleRows(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool)
  /// out[m] = x[m] · y[m], the inner products of rows of the last dimension.
  func rowProducts(_ x: Tensor, _ y: Tensor, into out: Tensor)
  /// y[n, c] = scales[c / (C / S)] · x[n, c] for x [N, C] and scales [S]; or added.
  func scaleColumns(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool)
  /// out[s] = Σ_n Σ of its columns x[n, c] · y[n, c], for out [S].
  func columnProducts(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool)
  /// y = x / √(Σ x² + epsilon) over the last dimension.
  func normalizeLength(_ x: Tensor, epsilon: Float, into y: Tensor)
  func normalizeLengthBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor)
  /// y = (x − mean) / √(variance + epsilon) over the last dimension; `inverse` [rows] keeps 1 / √….
  func standardize(_ x: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor)
  func standardizeBackward(_ dy: Tensor, y: Tensor, inverse: Tensor, into dx: Tensor)
  /// y[t, c] = SiLU(bias[c] + Σ_w weight[c, w] · x[t − W + 1 + w, c]) within each segment; `history` as for
  /// `dynamicConvolve`.
  func shortConvolve(
    _ x: Tensor, weight: Tensor, bias: Tensor?, segments: Segments, history: Tensor?, into y: Tensor)
  func shortConvolveBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, bias: Tensor?, segments: Segments, dx: Tensor, dWeight: Tensor,
    dBias: Tensor?)
  /// y[t] = x[t − 1] − x[t] within each segment; before its first token is zero, or the last row of its `history`
  /// [segments, 1, C].
  func shiftTokens(_ x: Tensor, segments: Segments, history: Tensor?, into y: Tensor)
  func shiftTokensBackward(_ dy: Tensor, segments: Segments, into dx: Tensor)
  /// y = columns `range` of x [N, C].
  func copyColumns(_ x: Tensor, _ range: Range<Int>, into y: Tensor)
  /// Columns `range` of dx become dy, or have it added; the others become zero unless it is added.
  func addColumns(_ dy: Tensor, into dx: Tensor, _ range: Range<Int>, adds: Bool)
  /// y[n, h] = x[n, h · G / H] for x [N, G, K] and y [N, H, K].
  func repeatHeads(_ x: Tensor, into y: Tensor)
  func repeatHeadsBackward(_ dy: Tensor, into dx: Tensor)

  /// y = SiLU(x) / √(Σ SiLU(x)² + epsilon) over each head of x [N, H, K].
  func siluNormalize(_ x: Tensor, epsilon: Float, into y: Tensor)
  func siluNormalizeBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor)

  /// Rotates the halves of every head of x [N, H, D] by position · θ^(−2i/D); `direction` −1 undoes it.
  func rotate(_ x: Tensor, positions: [Int32], theta: Float, direction: Float, into y: Tensor)

  /// Softmax attention. q [N, H, D], k and v [M, G, D] with G dividing H; `logSums` [N, H] keeps the
  /// log-sum-exp of each row. Spans may share keys.
  func attend(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, spans: [AttentionSpan], into o: Tensor, logSums: Tensor)
  func attendBackward(
    _ dO: Tensor, _ q: Tensor, _ k: Tensor, _ v: Tensor, _ o: Tensor, logSums: Tensor,
    spans: [AttentionSpan], dQ: Tensor, dK: Tensor, dV: Tensor)

  /// y[t, c] = SiLU(Σ_w kernels[t, c, w] · x[t − W + 1 + w, c]) within each segment; `history`
  /// [segments, W, C], when given, holds the inputs before each, newest last.
  func dynamicConvolve(
    _ x: Tensor, kernels: Tensor, segments: Segments, history: Tensor?, into y: Tensor)
  func dynamicConvolveBackward(
    _ dy: Tensor, _ x: Tensor, kernels: Tensor, segments: Segments, dx: Tensor, dKernels: Tensor)

  /// g = −exp(aLog) · softplus(a + dtBias), beta = sigmoid(b); a, b, g, beta [N, H].
  func decayGate(a: Tensor, b: Tensor, aLog: Tensor, dtBias: Tensor, g: Tensor, beta: Tensor)
  func decayGateBackward(
    dG: Tensor, dBeta: Tensor, a: Tensor, beta: Tensor, aLog: Tensor, dtBias: Tensor, dA: Tensor,
    dB: Tensor, dALog: Tensor, dDtBias: Tensor)

  /// The gated delta rule in chunks (see `Ops/GatedDeltaRule.swift`). q, k [N, H, K], v, o [N, H, V], g, beta
  /// [N, H]. `initial` and `final` [segments, H, K, V] when given; `saved` keeps what backward needs.
  func gatedDeltaRule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float, segments: Segments,
    initial: Tensor?, o: Tensor, final: Tensor?, saved: GatedDeltaRuleState?)
  func gatedDeltaRuleBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float,
    segments: Segments, saved: GatedDeltaRuleState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor,
    dBeta: Tensor, dInitial: Tensor?)

  /// Linear attention whose state decays, in chunks (see `Ops/DecayedAttention.swift`). q, k [N, H, K], v, o [N, H, V],
  /// g [N, H] or [N, H, K]; `initial` and `final` [segments, H, K, V] and `starts` [chunks, H, K, V] when given.
  func decayedAttention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, segments: Segments, initial: Tensor?, o: Tensor,
    final: Tensor?, starts: Tensor?)
  func decayedAttentionBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, segments: Segments,
    starts: Tensor, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor, dInitial: Tensor?)

  /// The diagonal plus low rank recurrence (see `Ops/DiagonalPlusLowRank.swift`). q, k, alpha, beta, g [N, H, K], v, o
  /// [N, H, V]; states as above.
  func diagonalPlusLowRank(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float, segments: Segments,
    initial: Tensor?, o: Tensor, final: Tensor?, starts: Tensor?)
  func diagonalPlusLowRankBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float,
    segments: Segments, starts: Tensor, dQ: Tensor, dK: Tensor, dV: Tensor, dAlpha: Tensor, dBeta: Tensor, dG: Tensor,
    dInitial: Tensor?)

  /// Turns `logits` [R, V] into their gradient, in place, and writes each row's losses: cross-entropy against
  /// `labels` (negative: none) and forward KL from `teacherLogits`, which become scratch.
  func vocabularyLoss(
    logits: Tensor, teacherLogits: Tensor?, labels: Tensor, crossEntropyScale: Float, klScale: Float,
    crossEntropy: Tensor, kl: Tensor)

  /// losses[n] = mean_d (x − target)²; dx = seed · 2 (x − target) / D, or added.
  func squaredError(
    _ x: Tensor, target: Tensor, seed: Float, losses: Tensor, into dx: Tensor?, adds: Bool)

  /// One AdamW step on equally long flat arrays.
  func adamW(
    parameters: Tensor, gradients: Tensor, moment1: Tensor, moment2: Tensor, step: AdamWStep)
  /// Sums of squares of each `blockSize` elements, in double precision.
  func sumsOfSquares(_ x: Tensor, blockSize: Int) -> [Double]

  /// Float multiply-adds times two that this backend was asked for since it began.
  var operations: Double { get }
}

/// Functions of one element.
package enum ElementFunction: Sendable {
  case sigmoid
  /// log sigmoid(x) · scale
  case logSigmoid(scale: Float)
  /// log(1 + e^x)
  case softplus
  case tanh
  /// −e^x
  case negativeExponential
  /// scale · sigmoid(x)
  case scaledSigmoid(scale: Float)
  /// sigmoid(x) − 1
  case sigmoidMinusOne
}

/// What the backward pass of a gated delta rule reads again.
package struct GatedDeltaRuleState {
  /// State at the start of every chunk, `[chunks, H, K, V]`.
  package let starts: Tensor
  /// The corrected values u of every token, `[N, H, V]`.
  package let corrected: Tensor

  package init(starts: Tensor, corrected: Tensor) {
    self.starts = starts
    self.corrected = corrected
  }

  /// Tokens of one chunk.
  package static let chunkLength = 64

  /// Chunks in all segments; a segment's last chunk may be short.
  package static func chunkCount(_ segments: Segments) -> Int {
    segments.ranges.reduce(0) { $0 + ($1.count + chunkLength - 1) / chunkLength }
  }
}

/// The scalars of one AdamW update (Loshchilov and Hutter, 2019), bias corrections included.
package struct AdamWStep: Sendable {
  package var learningRate: Float
  package var beta1: Float
  package var beta2: Float
  package var epsilon: Float
  package var weightDecay: Float
  /// 1 − beta1^t and 1 − beta2^t.
  package var correction1: Float
  package var correction2: Float
  /// Multiplies every gradient first: the token mean and the clipping factor.
  package var gradientScale: Float

  package init(
    learningRate: Float, beta1: Float, beta2: Float, epsilon: Float, weightDecay: Float, step: Int,
    gradientScale: Float
  ) {
    self.learningRate = learningRate
    self.beta1 = beta1
    self.beta2 = beta2
    self.epsilon = epsilon
    self.weightDecay = weightDecay
    self.gradientScale = gradientScale
    correction1 = Float(1 - Double.pow(Double(beta1), step))
    correction2 = Float(1 - Double.pow(Double(beta2), step))
  }
}

extension Double {
  /// `base` to a whole power, by squaring: no dependence on the C library's `pow`.
  fileprivate static func pow(_ base: Double, _ exponent: Int) -> Double {
    var result = 1.0
    var factor = base
    var rest = exponent
    while rest > 0 {
      if rest & 1 == 1 { result *= factor }
      factor *= factor
      rest >>= 1
    }
    return result
  }
}

extension Backend {
  /// A float32 tensor of zeros.
  package func zeros(_ shape: [Int]) -> Tensor {
    let tensor = empty(shape)
    fill(tensor, with: 0)
    return tensor
  }
}
