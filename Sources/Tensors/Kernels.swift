/// The core: what every backend must compute. ``FusedKernels`` are made of it until a backend has its own.
///
/// N counts tokens, H heads, K and V key and value channels of a head, D channels, O output channels.
/// `adds` says whether a result is added to its destination or replaces it. Every method is order-stable: the
/// same inputs give the same bits at any number of threads. Element by element, row by row, and column by column,
/// a destination may be one of the inputs.
///
/// Where a backend says so (``Backend/takesColumnViews``), these may be columns of wider rows: x and y of `copy`, `add`,
/// `fill`, `apply`, `applyBackward` and `rotate`; a, b and c of `multiply`; v and dV of `attend`.
package protocol Kernels: AnyObject {
  func fill(_ x: Tensor, with value: Float)
  /// y = x; bfloat16 is widened to float32, and float32 rounded to a bfloat16 y: to nearest, ties to even, NaN stays NaN.
  func copy(_ x: Tensor, into y: Tensor)
  /// y += scale · x
  func add(_ x: Tensor, scale: Float, into y: Tensor)
  /// out = x · y, element by element, or added.
  func product(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool)
  /// y = f(x), element by element.
  func apply(_ function: ElementFunction, _ x: Tensor, into y: Tensor)
  /// dx = dy · f′(x); y = f(x). Read is y where ``ElementFunction/slopeReadsOutput`` says so, else x.
  func applyBackward(_ function: ElementFunction, _ dy: Tensor, x: Tensor, y: Tensor, into dx: Tensor)

  /// y[m] = scales[m] · x[m], for as many rows as there are scales; or added.
  func scaleRows(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool)
  /// out[m] = x[m] · y[m], the inner products of as many rows as out has elements.
  func rowProducts(_ x: Tensor, _ y: Tensor, into out: Tensor)
  /// y[n, c] = scales[c / (C / S)] · x[n, c] for x [N, C] and scales [S]; or added.
  func scaleColumns(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool)
  /// out[s] = Σ_n Σ of its columns x[n, c] · y[n, c], for out [S].
  func columnProducts(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool)
  /// y = columns `range` of x [N, C].
  func copyColumns(_ x: Tensor, _ range: Range<Int>, into y: Tensor)
  /// Columns `range` of dx become dy, or have it added; the others become zero unless it is added.
  func addColumns(_ dy: Tensor, into dx: Tensor, _ range: Range<Int>, adds: Bool)

  /// c = alpha · op(a) op(b), or added to c; matrices by their first dimension and the rest. b may be bfloat16 where
  /// a is not transposed.
  func multiply(
    _ a: Tensor, transposed aTransposed: Bool, _ b: Tensor, transposed bTransposed: Bool, into c: Tensor,
    alpha: Float, adds: Bool)
  /// out[n] = table[ids[n]]; the table may be bfloat16.
  func gather(_ table: Tensor, _ ids: Tensor, into out: Tensor)
  /// table[ids[n]] += x[n], in the order of n
  func scatterAdd(_ x: Tensor, _ ids: Tensor, into table: Tensor)

  /// Rotates the halves of every head of x [N, H, D] by position · the frequency of each pair; `direction` −1 undoes it.
  func rotate(_ x: Tensor, layout: Layout, angles: RotaryAngles, direction: Float, into y: Tensor)

  /// Softmax attention. q [N, H, D], k and v [M, G, D] with G dividing H; `logSums` [N, H] keeps the
  /// log-sum-exp of each row.
  func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor, spans: AttentionSpans, into o: Tensor, logSums: Tensor)
  func attendBackward(
    _ dO: Tensor, _ q: Tensor, _ k: Tensor, _ v: Tensor, _ o: Tensor, logSums: Tensor, spans: AttentionSpans,
    dQ: Tensor, dK: Tensor, dV: Tensor)

  /// u[t, c] = Σ_w kernels[t, c, w] · x[t − 3 + w, c] within each segment, four taps; `history` [segments, 4, C], when
  /// given, holds the inputs before each, newest last.
  func convolve(_ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor?, into u: Tensor)
  /// x is read for dKernels alone.
  func convolveBackward(
    _ du: Tensor, _ x: Tensor, kernels: Tensor, layout: Layout, dx: Tensor, dKernels: Tensor?)

  /// The diagonal plus low rank recurrence, of which all linear attention is a kind (see
  /// `Ops/DiagonalPlusLowRank.swift`). q, k, alpha, beta, g [N, H, K], v, o [N, H, V]; `initial` and `final`
  /// [segments, H, K, V] when given, which may be one tensor.
  ///
  /// - Returns: what its backward pass reads again, where `saves`
  func diagonalPlusLowRank(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float, layout: Layout,
    initial: Tensor?, o: Tensor, final: Tensor?, saves: Bool
  ) -> SavedState?
  func diagonalPlusLowRankBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float,
    layout: Layout, saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dAlpha: Tensor, dBeta: Tensor, dG: Tensor,
    dInitial: Tensor?)

  /// Turns `logits` [R, V] into their gradient, in place, and writes each row's losses: cross-entropy against
  /// `labels` (negative: none) and forward KL from `teacherLogits`, which become scratch.
  func vocabularyLoss(
    logits: Tensor, teacherLogits: Tensor?, labels: Tensor, crossEntropyScale: Float, klScale: Float,
    crossEntropy: Tensor, kl: Tensor)

  /// One AdamW step on equally long flat arrays.
  func adamW(
    parameters: Tensor, gradients: Tensor, moment1: Tensor, moment2: Tensor, step: AdamWStep)

  /// sum = scale · Σ x, in double precision: sum is one float64, x float32 or float64. Of no elements it is zero.
  func sumElements(_ x: Tensor, scale: Double, into sum: Tensor)
  /// sums[b] = the sum of squares of the elements of x from b · blockSize on, of which the last block may have fewer, in
  /// double precision: sums are float64.
  func sumsOfSquares(_ x: Tensor, blockSize: Int, into sums: Tensor)
}

/// Functions of one element.
package enum ElementFunction: Sendable, Hashable {
  /// x · sigmoid(x)
  case silu
  /// x · sigmoid(2u) with u = √(2/π) (x + 0.044715 x³), which is ½ x (1 + tanh u)
  case gelu
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
  /// 1 / √(scale · x + epsilon)
  case inverseRoot(scale: Float, epsilon: Float)
}

/// What a recurrence keeps for its backward pass: the kernel that makes it decides what.
package struct SavedState {
  package let tensors: [Tensor]

  package init(_ tensors: [Tensor]) { self.tensors = tensors }
}

extension ElementFunction {
  /// Whether the slope is computed from f(x) rather than x (``Kernels/applyBackward(_:_:x:y:into:)``).
  package var slopeReadsOutput: Bool {
    switch self {
    case .silu, .gelu, .logSigmoid, .softplus: false
    case .sigmoid, .tanh, .negativeExponential, .scaledSigmoid, .sigmoidMinusOne, .inverseRoot: true
    }
  }
}
