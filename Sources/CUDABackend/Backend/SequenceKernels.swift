import CUDA
import Tensors

/// What moves information between tokens but for attention: convolutions and recurrences.
extension CUDABackend {
  private enum TableName: Hashable {
    case places
  }

  /// Where tokens stand in their documents, on the card.
  final class Places {
    /// The first token of each token's segment, and the segment's index, `[N]` int32.
    let starts, segments: Tensor
    let chunks: ChunkTable

    init(_ layout: Layout, _ backend: CUDABackend) {
      var (starts, segments): ([Int32], [Int32]) = ([], [])
      for (index, range) in layout.segments.ranges.enumerated() {
        starts += repeatElement(Int32(range.lowerBound), count: range.count)
        segments += repeatElement(Int32(index), count: range.count)
      }
      self.starts = backend.tensor(starts)
      self.segments = backend.tensor(segments)
      chunks = ChunkTable(segments: layout.segments.ranges) { backend.tensor($0).deviceView }
    }
  }

  func places(_ layout: Layout) -> Places { layout.table(TableName.places) { Places(layout, self) } }

  // MARK: - Convolutions

  package func convolve(_ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor?, into u: Tensor) {
    convolve(x, taps: kernels, stride: x.columns * 4, bias: nil, layout, history, activates: false, into: u)
  }

  private func convolve(
    _ x: Tensor, taps: Tensor, stride: Int, bias: Tensor?, _ layout: Layout, _ history: Tensor?, activates: Bool,
    into y: Tensor
  ) {
    let (x, places) = (dense(x), places(layout))
    launch(
      .convolution, "convolve", threads: x.count,
      [
        x.values, taps.values, A(wide: stride), A(values: bias), A(values: history), places.starts.integers,
        places.segments.integers, A(x.count), A(x.columns), A(activates ? 1 : 0), y.values,
      ])
  }

  package func convolveBackward(
    _ du: Tensor, _ x: Tensor, kernels: Tensor, layout: Layout, dx: Tensor, dKernels: Tensor?
  ) {
    convolveBackward(du, x, taps: kernels, stride: x.columns * 4, layout, dx: dx, dTaps: dKernels)
  }

  private func convolveBackward(
    _ du: Tensor, _ x: Tensor, taps: Tensor, stride: Int, _ layout: Layout, dx: Tensor, dTaps: Tensor?
  ) {
    let x = dense(x)
    writing(dx, as: dx.dtype, isDense: true) { dx in
      launch(
        .convolution, "convolveBackward", threads: x.count,
        [
          du.values, x.values, taps.values, A(wide: stride), places(layout).starts.integers, A(x.count), A(x.rows),
          A(x.columns), dx.values, A(values: dTaps),
        ])
    }
  }

  /// The gradient at the input of SiLU.
  private func slope(
    _ dy: Tensor, _ x: Tensor, taps: Tensor, stride: Int, bias: Tensor?, _ layout: Layout
  ) -> Tensor {
    let (x, du, places) = (dense(x), empty(x.shape), places(layout))
    launch(
      .convolution, "convolutionSlope", threads: x.count,
      [
        dy.values, x.values, taps.values, A(wide: stride), A(values: bias), places.starts.integers,
        places.segments.integers, A(x.count), A(x.columns), du.floats,
      ])
    return du
  }

  /// The type that all of these have, where kernels take it.
  private func elements(_ tensors: Tensor...) -> RowKernels.Elements? {
    guard let first = tensors.first, tensors.allSatisfy({ $0.dtype == first.dtype }) else { return nil }
    return first.dtype == .bfloat16 ? .bfloat16 : first.dtype == .float32 ? .float32 : nil
  }

  package func dynamicConvolve(_ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor?, into y: Tensor) {
    dynamicConvolve(x, kernels, bias: nil, layout, history, into: y)
  }

  /// Whether the kernel takes these.
  private func dynamicallyConvolves(_ x: Tensor, _ kernels: Tensor, _ bias: Tensor?, _ y: Tensor) -> Bool {
    (kernels.deviceView.address | (bias?.deviceView.address ?? 0)) % 16 == 0 && elements(x, kernels, y) != nil
  }

  /// With the bias [C, 4] of the taps, which is added on the way.
  private func dynamicConvolve(
    _ x: Tensor, _ kernels: Tensor, bias: Tensor?, _ layout: Layout, _ history: Tensor?, into y: Tensor
  ) {
    guard history == nil, let type = elements(x, kernels, y), dynamicallyConvolves(x, kernels, bias, y) else {
      if let bias { addBias(bias, to: kernels.reshaped([x.rows, bias.count])) }
      return convolve(x, taps: kernels, stride: x.columns * 4, bias: nil, layout, history, activates: true, into: y)
    }
    let places = places(layout)
    run("dynamicConvolution") {
      try rows(type).dynamicConvolution(
        x.deviceView, stride: x.rowStride, taps: kernels.deviceView, bias: bias?.deviceView,
        starts: places.starts.deviceView, tokens: x.rows,
        channels: x.columns, into: y.deviceView)
    }
  }

  package func dynamicConvolveBackward(
    _ dy: Tensor, _ x: Tensor, kernels: Tensor, layout: Layout, dx: Tensor, dKernels: Tensor
  ) {
    dynamicConvolveBackward(dy, x, kernels, bias: nil, layout, dx: dx, dKernels: dKernels, dBias: nil, addsBias: false)
  }

  private func dynamicConvolveBackward(
    _ dy: Tensor, _ x: Tensor, _ kernels: Tensor, bias: Tensor?, _ layout: Layout, dx: Tensor, dKernels: Tensor,
    dBias: Tensor?, addsBias: Bool
  ) {
    guard (kernels.deviceView.address | dKernels.deviceView.address | (bias?.deviceView.address ?? 0)) % 16 == 0,
      let type = elements(dy, x, kernels, dx, dKernels)
    else {
      if let bias { addBias(bias, to: kernels.reshaped([x.rows, bias.count])) }
      let du = slope(dy, x, taps: kernels, stride: x.columns * 4, bias: nil, layout)
      convolveBackward(du, x, kernels: kernels, layout: layout, dx: dx, dKernels: dKernels)
      if let dBias { sumRows(dKernels.reshaped([x.rows, dBias.count]), into: dBias, adds: addsBias) }
      return
    }
    let places = places(layout)
    let workspace = dBias.map { _ in
      empty([RowKernels.convolutionWorkspaceCount(tokens: x.rows, channels: x.columns)])
    }
    run("dynamicConvolutionBackward") {
      try rows(type).dynamicConvolutionBackward(
        dy.deviceView, x.deviceView, stride: x.rowStride, taps: kernels.deviceView, bias: bias?.deviceView,
        starts: places.starts.deviceView, tokens: x.rows, channels: x.columns, dx: dx.deviceView, dStride: dx.rowStride,
        dTaps: dKernels.deviceView, dBias: dBias?.deviceView, addsBias: addsBias, workspace: workspace?.deviceView)
    }
  }

  package func generatedConvolve(
    _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, history: Tensor?, into y: Tensor,
    saves: Bool
  ) -> SavedState? {
    let taps = taps(inner, weight)
    dynamicConvolve(x, taps, bias: bias, layout, history, into: y)
    // Where the bias cannot be added on the way, it is in the taps now: they are made again.
    return saves && dynamicallyConvolves(x, taps, bias, y) ? SavedState([taps]) : nil
  }

  /// Taps without their bias, `[N, C, 4]`.
  private func taps(_ inner: Tensor, _ weight: Tensor) -> Tensor {
    let taps = empty([inner.rows, weight.rows], inner.dtype)
    multiply(inner, transposed: false, weight, transposed: true, into: taps, alpha: 1, adds: false)
    return taps.reshaped([inner.rows, weight.rows / 4, 4])
  }

  package func generatedConvolveBackward(
    _ dy: Tensor, _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, saved: SavedState?,
    dx: Tensor, dInner: Tensor, dWeight: Tensor?, addsWeight: Bool, dBias: Tensor?, addsBias: Bool
  ) {
    let taps = saved?.tensors[0] ?? taps(inner, weight)
    let dTaps = empty(like: taps)
    dynamicConvolveBackward(
      dy, x, taps, bias: bias, layout, dx: dx, dKernels: dTaps, dBias: dBias, addsBias: addsBias)
    let rows = dTaps.reshaped([inner.rows, weight.rows])
    multiply(rows, transposed: false, weight, transposed: false, into: dInner, alpha: 1, adds: false)
    if let dWeight {
      multiply(rows, transposed: true, inner, transposed: false, into: dWeight, alpha: 1, adds: addsWeight)
    }
  }

  package func shortConvolve(
    _ x: Tensor, weight: Tensor, bias: Tensor?, layout: Layout, history: Tensor?, into y: Tensor
  ) {
    convolve(x, taps: weight, stride: 0, bias: bias, layout, history, activates: true, into: y)
  }

  package func shortConvolveBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, bias: Tensor?, layout: Layout, dx: Tensor, dWeight: Tensor,
    dBias: Tensor?
  ) {
    let x = dense(x)
    let du = slope(dy, x, taps: weight, stride: 0, bias: bias, layout)
    convolveBackward(du, x, taps: weight, stride: 0, layout, dx: dx, dTaps: nil)
    let tokensPerPart = max(32, (x.rows + 255) / 256)
    let parts = (x.rows + tokensPerPart - 1) / tokensPerPart
    let partial = empty([max(1, parts), x.columns * 4])
    launch(
      .convolution, "convolutionTapParts", grid: ((x.columns + 255) / 256, parts),
      [du.values, x.values, places(layout).starts.integers, A(x.rows), A(x.columns), A(tokensPerPart), partial.floats])
    launch(
      .rowsAndColumns, "addColumnParts", grid: ((dWeight.count + 7) / 8, 1),
      [partial.floats, A(parts), A(dWeight.count), A(1), dWeight.values, A(0)])
    if let dBias { sumRows(du, into: dBias, adds: false) }
  }

  package func shiftTokens(_ x: Tensor, layout: Layout, history: Tensor?, into y: Tensor) {
    let places = places(layout)
    launch(
      .convolution, "shiftTokens", threads: x.count,
      [
        x.values, A(values: history), places.starts.integers, places.segments.integers, A(x.count), A(x.columns),
        y.values,
      ])
  }

  package func shiftTokensBackward(_ dy: Tensor, layout: Layout, into dx: Tensor) {
    launch(
      .convolution, "shiftTokensBackward", threads: dy.count,
      [dy.values, places(layout).starts.integers, A(dy.count), A(dy.rows), A(dy.columns), dx.values])
  }

  // MARK: - The gated delta rule

  private func widened(_ state: Tensor) -> Tensor { converted(state, to: .float32) }

  /// Memory for what kernels keep, as a tensor.
  private func bytes(_ count: Int) -> Tensor { empty([(count + 3) / 4]) }

  package func gatedDeltaRule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float, layout: Layout, initial: Tensor?,
    o: Tensor, final: Tensor?, saves: Bool
  ) -> SavedState? {
    let type = v.dtype
    let (q, k, v) = (dense(converted(q, to: type)), dense(converted(k, to: type)), dense(v))
    let (g, beta) = (converted(g, to: .float32), converted(beta, to: .float32))
    if layout.isDecoding, !saves, let state = final, initial?.storage === state.storage, o.dtype == type,
      deltaRuleStep(q: q, k: k, v: v, g: g, beta: beta, scale: scale, state: state, o: o)
    {
      return nil
    }
    // Only steps know states of another type.
    if let final, final.dtype != .float32 {
      let wide = empty(final.shape)
      let saved = gatedDeltaRule(
        q: q, k: k, v: v, g: g, beta: beta, scale: scale, layout: layout, initial: initial.map(widened), o: o,
        final: wide, saves: saves)
      copy(wide, into: final)
      return saved
    }
    let rule = rule(
      heads: q.shape[1], keys: q.shape[2], values: v.shape[2], type == .bfloat16 ? .bfloat16 : .float32)
    let chunks = places(layout).chunks
    let sizes = rule.savedByteCounts(chunks)
    let tensors = saves ? ([sizes.starts, sizes.corrected] + [sizes.records].compactMap { $0 }).map(bytes) : []
    let workspace = bytes(rule.workspaceByteCount(chunks))
    writing(o, as: type) { o in
      run("gatedDeltaRule") {
        try rule.forward(
          q: q.deviceView, k: k.deviceView, v: v.deviceView, g: g.deviceView, beta: beta.deviceView, scale: scale,
          chunks: chunks, initial: initial?.deviceView, o: o.deviceView, final: final?.deviceView,
          saved: saves ? saved(tensors) : nil, workspace: workspace.deviceView)
      }
    }
    return saves ? SavedState(tensors) : nil
  }

  private func saved(_ tensors: [Tensor]) -> GatedDeltaRule.Saved {
    GatedDeltaRule.Saved(
      records: tensors.count > 2 ? tensors[2].deviceView : nil, starts: tensors[0].deviceView,
      corrected: tensors[1].deviceView)
  }

  package func gatedDeltaRuleBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float,
    layout: Layout, saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor, dBeta: Tensor,
    dInitial: Tensor?
  ) {
    let type = v.dtype
    let (q, k, v) = (dense(converted(q, to: type)), dense(converted(k, to: type)), dense(v))
    let dO = dense(converted(dO, to: type))
    let (g, beta) = (converted(g, to: .float32), converted(beta, to: .float32))
    let rule = rule(
      heads: q.shape[1], keys: q.shape[2], values: v.shape[2], type == .bfloat16 ? .bfloat16 : .float32)
    let chunks = places(layout).chunks
    let workspace = bytes(rule.workspaceByteCount(chunks))
    writing(dQ, as: type) { dQ in
      writing(dK, as: type) { dK in
        writing(dV, as: type) { dV in
          writing(dG, as: .float32) { dG in
            writing(dBeta, as: .float32) { dBeta in
              run("gatedDeltaRuleBackward") {
                try rule.backward(
                  dO: dO.deviceView, dFinal: dFinal?.deviceView, q: q.deviceView, k: k.deviceView, v: v.deviceView,
                  g: g.deviceView, beta: beta.deviceView, scale: scale, chunks: chunks,
                  saved: self.saved(saved.tensors), dQ: dQ.deviceView, dK: dK.deviceView, dV: dV.deviceView,
                  dG: dG.deviceView, dBeta: dBeta.deviceView, dInitial: dInitial?.deviceView,
                  workspace: workspace.deviceView)
              }
            }
          }
        }
      }
    }
  }

  // MARK: - Diagonal plus low rank

  package func diagonalPlusLowRank(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float, layout: Layout,
    initial: Tensor?, o: Tensor, final: Tensor?, saves: Bool
  ) -> SavedState? {
    if let final, final.dtype != .float32 {
      let wide = empty(final.shape)
      let saved = diagonalPlusLowRank(
        q: q, k: k, v: v, alpha: alpha, beta: beta, g: g, scale: scale, layout: layout, initial: initial.map(widened),
        o: o, final: wide, saves: saves)
      copy(wide, into: final)
      return saved
    }
    let (heads, keys, values) = (q.shape[1], q.shape[2], v.shape[2])
    let chunks = places(layout).chunks
    let starts = saves ? empty([max(1, chunks.chunkCount), heads, keys, values]) : nil
    let kernel = kernel("Recurrence.cu", "recurrenceForward", size: keys)
    run("recurrence") {
      try kernel.launch(
        grid: ((values + 31) / 32, heads, layout.segments.ranges.count), threads: 256,
        [
          q.values, k.values, v.values, alpha.values, beta.values, g.values, A(scale), A(chunks.chunks),
          A(chunks.firstChunks), A(heads), A(values), A(floats: initial), o.values, A(floats: final), A(floats: starts),
        ])
    }
    return starts.map { SavedState([$0]) }
  }

  package func diagonalPlusLowRankBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float,
    layout: Layout, saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dAlpha: Tensor, dBeta: Tensor, dG: Tensor,
    dInitial: Tensor?
  ) {
    let (heads, keys, values, tokens) = (q.shape[1], q.shape[2], v.shape[2], q.rows)
    let chunks = places(layout).chunks
    let (slices, segments) = ((values + 31) / 32, layout.segments.ranges.count)
    let blocks = min(slices * heads * segments, 2 * device.multiprocessors)
    guard blocks > 0, tokens > 0 else { return }
    let count = tokens * heads * keys
    let partial = empty([slices, 5, count])
    let states = empty([blocks, 64 * keys * 32])
    let kernel = kernel("Recurrence.cu", "recurrenceBackward", size: keys)
    run("recurrence backward") {
      try kernel.launch(
        grid: (blocks, 1, 1), threads: 256,
        [
          dO.values, A(floats: dFinal), q.values, k.values, v.values, alpha.values, beta.values, g.values, A(scale),
          A(chunks.chunks), A(chunks.firstChunks), A(segments), A(heads), A(values), A(tokens),
          saved.tensors[0].floats, dV.values, A(floats: dInitial), partial.floats, states.floats,
        ])
    }
    let add = self.kernel("Recurrence.cu", "addSlices", size: keys)
    for (index, gradient) in [dQ, dK, dAlpha, dBeta, dG].enumerated() {
      run("recurrence backward") {
        try add.launch(
          grid: ((count + 255) / 256, 1, 1), threads: 256,
          [partial.floats, A(slices), A(index), A(wide: count), gradient.values])
      }
    }
  }
}
