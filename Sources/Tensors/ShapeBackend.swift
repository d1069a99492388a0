/// A backend that computes nothing: it counts the memory and the operations that a program would take. What
/// `plan` runs a training step on, for models of any size. Memory is that of the CPU's kernels, or of a card's.
package final class ShapeBackend: Backend {
  package var tape: Tape?
  package private(set) var liveBytes = 0
  package private(set) var peakBytes = 0
  package private(set) var operations = 0.0

  /// Whose memory is counted: what kernels keep for their backward passes is theirs, and activations may be bfloat16 on a card.
  package enum Counted: Sendable {
    case cpu, card
  }

  package let counted: Counted
  private var type = DType.float32
  package var activationType: DType {
    get { type }
    set { type = counted == .card ? newValue : .float32 }
  }

  package init(_ counted: Counted = .cpu) { self.counted = counted }

  package func vocabularyRows(_ vocabulary: Int) -> Int { counted == .card ? 2048 : max(512, (1 << 21) / vocabulary) }

  /// Forgets the peak, so that the next one can be told apart.
  package func resetPeak() { peakBytes = liveBytes }

  package var deviceDescription: String { "shapes only" }
  package var kernelIdentity: String { "none" }
  package var takesColumnViews: Bool { true }
  package func companion() -> any Backend { self }

  /// Memory that is counted and not there.
  private final class CountedStorage: Storage {
    let counter: ShapeBackend
    let byteCount: Int
    var backend: any Backend { counter }

    init(_ counter: ShapeBackend, byteCount: Int) { (self.counter, self.byteCount) = (counter, byteCount) }

    deinit { counter.liveBytes -= byteCount }
  }

  package func allocate(byteCount: Int) -> any Storage {
    liveBytes += byteCount
    peakBytes = max(peakBytes, liveBytes)
    return CountedStorage(self, byteCount: byteCount)
  }

  package func upload(_ bytes: UnsafeRawBufferPointer, into x: Tensor) -> any Event { PassedEvent() }

  /// There are no elements: zeros.
  package func download(_ x: Tensor, into bytes: UnsafeMutableRawBufferPointer) -> any Event {
    bytes.initializeMemory(as: UInt8.self, repeating: 0)
    return PassedEvent()
  }

  package func multiply(
    _ a: Tensor, transposed aTransposed: Bool, _ b: Tensor, transposed bTransposed: Bool, into c: Tensor,
    alpha: Float, adds: Bool
  ) {
    operations += 2 * Double(c.rows) * Double(c.columns) * Double(aTransposed ? a.rows : a.columns)
  }

  package func attend(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, spans: AttentionSpans, into o: Tensor, logSums: Tensor
  ) {
    operations += 4 * pairs(spans.list) * Double(q.columns)
  }

  package func attendBackward(
    _ dO: Tensor, _ q: Tensor, _ k: Tensor, _ v: Tensor, _ o: Tensor, logSums: Tensor,
    spans: AttentionSpans, dQ: Tensor, dK: Tensor, dV: Tensor
  ) {
    operations += 10 * pairs(spans.list) * Double(q.columns)
  }

  /// Pairs of a query and a key it sees.
  private func pairs(_ spans: [AttentionSpan]) -> Double {
    spans.reduce(0) { sum, span in
      let (queries, keys) = (Double(span.queries.count), Double(span.keys.count))
      let all = queries * (keys - queries) + queries * (queries + 1) / 2
      return sum + min(all, queries * Double(span.window ?? span.keys.count))
    }
  }

  package func gatedDeltaRule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float, layout: Layout,
    initial: Tensor?, o: Tensor, final: Tensor?, saves: Bool
  ) -> SavedState? {
    operations += deltaRuleOperations(q, v, stateProducts: 3, chunkProducts: (2, 2))
    guard saves else { return nil }
    guard counted == .card, v.dtype == .bfloat16 else {
      return SavedState([chunkStates(layout, q, v), empty(v.shape)])
    }
    // Records of keys, queries, W, T, P and gates; states at the starts of chunks; values as they were written.
    let (length, keys) = (Self.chunkLength, q.shape[2])
    let cells = chunkCount(layout) * q.shape[1]
    let record = 3 * length * keys + 22 * 256
    return SavedState(
      [record, keys * v.shape[2], length * v.shape[2]].map { empty([cells, $0], .bfloat16) })
  }

  package func gatedDeltaRuleBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float,
    layout: Layout, saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor,
    dBeta: Tensor, dInitial: Tensor?
  ) {
    operations += deltaRuleOperations(q, v, stateProducts: 7, chunkProducts: (6, 4))
  }

  package func decayedAttention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, layout: Layout, initial: Tensor?, o: Tensor,
    final: Tensor?, saves: Bool
  ) -> SavedState? {
    operations += deltaRuleOperations(q, v, stateProducts: 2, chunkProducts: (1, 1))
    return saves ? SavedState([chunkStates(layout, q, v)]) : nil
  }

  package func decayedAttentionBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, layout: Layout,
    saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor, dInitial: Tensor?
  ) {
    operations += deltaRuleOperations(q, v, stateProducts: 4, chunkProducts: (3, 2))
  }

  package func diagonalPlusLowRank(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float, layout: Layout,
    initial: Tensor?, o: Tensor, final: Tensor?, saves: Bool
  ) -> SavedState? {
    operations += deltaRuleOperations(q, v, stateProducts: 4, chunkProducts: (0, 0))
    return saves ? SavedState([chunkStates(layout, q, v)]) : nil
  }

  package func diagonalPlusLowRankBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float,
    layout: Layout, saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dAlpha: Tensor, dBeta: Tensor, dG: Tensor,
    dInitial: Tensor?
  ) {
    operations += deltaRuleOperations(q, v, stateProducts: 14, chunkProducts: (0, 0))
  }

  /// Tokens of a chunk, as CPUBackend's kernels have it.
  private static let chunkLength = 64

  /// The states at the starts of all chunks.
  private func chunkStates(_ layout: Layout, _ q: Tensor, _ v: Tensor) -> Tensor {
    empty([chunkCount(layout), q.shape[1], q.shape[2], v.shape[2]])
  }

  private func chunkCount(_ layout: Layout) -> Int {
    layout.segments.ranges.reduce(0) { $0 + ($1.count + Self.chunkLength - 1) / Self.chunkLength }
  }

  /// Products per chunk: with the state [C, K, V], inside the chunk over keys [C, C, K] and values [C, C, V].
  private func deltaRuleOperations(
    _ q: Tensor, _ v: Tensor, stateProducts: Double, chunkProducts: (keys: Double, values: Double)
  ) -> Double {
    let (tokens, heads) = (Double(q.shape[0]), Double(q.shape[1]))
    let (keys, values) = (Double(q.shape[2]), Double(v.shape[2]))
    let chunk = Double(Self.chunkLength)
    return 2 * tokens * heads
      * (stateProducts * keys * values + chunk * (chunkProducts.keys * keys + chunkProducts.values * values))
  }

  package func dynamicConvolveBackward(
    _ dy: Tensor, _ x: Tensor, kernels: Tensor, layout: Layout, dx: Tensor, dKernels: Tensor
  ) {
    _ = empty([x.rows + 1, x.columns])
  }

  /// On the CPU taps and their gradients exist by strips, on a card whole, and stay where nothing is recomputed; making them
  /// again is not counted, as no recomputation is.
  package func generatedConvolve(
    _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, history: Tensor?, into y: Tensor,
    saves: Bool
  ) -> SavedState? {
    operations += 2 * Double(x.rows) * Double(weight.count)
    guard counted == .card else { return nil }
    let taps = empty([x.rows, weight.rows], inner.dtype)
    return saves ? SavedState([taps]) : nil
  }
  package func generatedConvolveBackward(
    _ dy: Tensor, _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, saved: SavedState?,
    dx: Tensor, dInner: Tensor, dWeight: Tensor?, addsWeight: Bool, dBias: Tensor?, addsBias: Bool
  ) {
    if counted == .cpu { _ = empty([min(256, x.rows), weight.rows]) }
    let taps =
      counted == .card ? (0..<(saved == nil ? 2 : 1)).map { _ in empty([x.rows, weight.rows], inner.dtype) } : []
    withExtendedLifetime(taps) {}
    operations += 2 * Double(x.rows) * Double(weight.count) * (dWeight == nil ? 1 : 2)
  }

  // The rest moves data and allocates nothing.
  package func fill(_ x: Tensor, with value: Float) {}
  package func copyRows(_ x: Tensor, into y: Tensor, _ moves: [RowMove]) {}
  package func remember(_ x: Tensor, layout: Layout, in history: Tensor) {}
  package func jetStep(_ step: JetStep, layout: Layout, into o: Tensor) {}
  package func storeRows(_ x: Tensor, at positions: Tensor, in cache: Tensor) {}
  package func attendCache(_ q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, into o: Tensor) {}
  package func chooseTokens(_ logits: Tensor, _ sampling: Sampling, uniforms: Tensor, into tokens: Tensor) {}
  package func copy(_ x: Tensor, into y: Tensor) {}
  package func add(_ x: Tensor, scale: Float, into y: Tensor) {}
  package func sum(_ x: Tensor, _ y: Tensor, into out: Tensor) {}
  package func addBias(_ bias: Tensor, to y: Tensor) {}
  package func sumRows(_ x: Tensor, into sums: Tensor, adds: Bool) {}
  package func gather(_ table: Tensor, _ ids: Tensor, into out: Tensor) {}
  package func scatterAdd(_ x: Tensor, _ ids: Tensor, into table: Tensor) {}
  package func normalize(
    _ x: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor
  ) {}
  package func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, into dx: Tensor?, adds: Bool,
    dWeight: Tensor?, addsWeight: Bool
  ) {}
  package func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, onto base: Tensor, into dx: Tensor,
    dWeight: Tensor?, addsWeight: Bool
  ) {}
  package func gatedNormalize(
    _ x: Tensor, gate: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor
  ) {}
  package func gatedNormalizeBackward(
    _ dy: Tensor, _ x: Tensor, gate: Tensor, weight: Tensor, inverse: Tensor, dx: Tensor, dGate: Tensor,
    dWeight: Tensor?, addsWeight: Bool
  ) {}
  package func swiGLU(gate: Tensor, up: Tensor, into y: Tensor) {}
  package func swiGLUBackward(_ dy: Tensor, gate: Tensor, up: Tensor, dGate: Tensor, dUp: Tensor) {}
  package func siluNormalize(_ x: Tensor, epsilon: Float, into y: Tensor) {}
  package func siluNormalizeBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor) {}
  package func rotate(
    _ x: Tensor, layout: Layout, angles: RotaryAngles, direction: Float, into y: Tensor
  ) {}
  package func convolve(_ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor?, into u: Tensor) {}
  package func convolveBackward(
    _ du: Tensor, _ x: Tensor, kernels: Tensor, layout: Layout, dx: Tensor, dKernels: Tensor?
  ) {
    _ = empty([x.rows + 1, x.columns])
  }
  package func dynamicConvolve(
    _ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor?, into y: Tensor
  ) {}
  package func decayGate(a: Tensor, b: Tensor, aLog: Tensor, dtBias: Tensor, g: Tensor, beta: Tensor) {}
  package func decayGateBackward(
    dG: Tensor, dBeta: Tensor, a: Tensor, beta: Tensor, aLog: Tensor, dtBias: Tensor, dA: Tensor,
    dB: Tensor, dALog: Tensor, dDtBias: Tensor
  ) {}
  package func vocabularyLoss(
    logits: Tensor, teacherLogits: Tensor?, labels: Tensor, crossEntropyScale: Float, klScale: Float,
    crossEntropy: Tensor, kl: Tensor
  ) {}
  package func squaredError(
    _ x: Tensor, target: Tensor, seed: Float, losses: Tensor, into dx: Tensor?, adds: Bool
  ) {}
  package func adamW(
    parameters: Tensor, gradients: Tensor, moment1: Tensor, moment2: Tensor, step: AdamWStep
  ) {}
  package func sumElements(_ x: Tensor, scale: Double, into sum: Tensor) {}
  package func sumsOfSquares(_ x: Tensor, blockSize: Int, into sums: Tensor) {}
  package func apply(_ function: ElementFunction, _ x: Tensor, into y: Tensor) {}
  package func applyBackward(_ function: ElementFunction, _ dy: Tensor, x: Tensor, y: Tensor, into dx: Tensor) {}
  package func product(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool) {}
  package func scaleRows(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool) {}
  package func rowProducts(_ x: Tensor, _ y: Tensor, into out: Tensor) {}
  package func scaleColumns(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool) {}
  package func columnProducts(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool) {}
  package func normalizeLength(_ x: Tensor, epsilon: Float, into y: Tensor) {}
  package func normalizeLengthBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor) {}
  package func standardize(_ x: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor) {}
  package func standardizeBackward(_ dy: Tensor, y: Tensor, inverse: Tensor, into dx: Tensor) {}
  package func shortConvolve(
    _ x: Tensor, weight: Tensor, bias: Tensor?, layout: Layout, history: Tensor?, into y: Tensor
  ) {}
  package func shortConvolveBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, bias: Tensor?, layout: Layout, dx: Tensor, dWeight: Tensor,
    dBias: Tensor?
  ) {
    _ = empty([x.rows + 1, x.columns])
  }
  package func shiftTokens(_ x: Tensor, layout: Layout, history: Tensor?, into y: Tensor) {}
  package func shiftTokensBackward(_ dy: Tensor, layout: Layout, into dx: Tensor) {}
  package func copyColumns(_ x: Tensor, _ range: Range<Int>, into y: Tensor) {}
  package func addColumns(_ dy: Tensor, into dx: Tensor, _ range: Range<Int>, adds: Bool) {}
  package func repeatHeads(_ x: Tensor, into y: Tensor) {}
  package func repeatHeadsBackward(_ dy: Tensor, into dx: Tensor) {}
}
