import CUDA
import Tensors

/// Generation: rows of caches, attention over them, the step of the delta rule, the choice of the next token. Nothing here
/// depends on how far the sequences have come, which the card counts: a step that was recorded once is repeated.
extension CUDABackend {
  private enum DecodingTable: Hashable {
    case ends
  }

  private func cacheKernel(_ symbol: String, sharedMemory: Int = 0) -> Kernel {
    kernel("Caches.cu", symbol, sharedMemory: sharedMemory)
  }

  package func copyRows(_ x: Tensor, into y: Tensor, _ moves: [RowMove]) {
    let moves = moves.filter { $0.count > 0 }
    guard !moves.isEmpty else { return }
    let table = tensor(moves.flatMap { [Int32($0.from), Int32($0.to), Int32($0.count)] })
    let rows = min(moves.map(\.count).max() ?? 1, max(1, 8 * device.multiprocessors / moves.count))
    let kernel = cacheKernel("copyRowMoves")
    run("copyRows") {
      try kernel.launch(
        grid: (moves.count, rows, 1), threads: 128,
        [x.values, y.values, table.integers, A(x.columns), A(wide: x.rowStride)])
    }
  }

  package func remember(_ x: Tensor, layout: Layout, in history: Tensor) {
    let ends = layout.table(DecodingTable.ends) {
      tensor([0] + layout.segments.ranges.map { Int32($0.upperBound) })
    }
    let kernel = cacheKernel("remember")
    run("remember") {
      try kernel.launch(
        grid: ((history.shape[2] + 127) / 128, history.rows, 1), threads: 128,
        [x.values, history.values, ends.integers, A(history.shape[1]), A(history.shape[2]), A(wide: x.rowStride)])
    }
  }

  package func storeRows(_ x: Tensor, at positions: Tensor, in cache: Tensor) {
    let kernel = cacheKernel("storeRows")
    run("storeRows") {
      try kernel.launch(
        grid: (x.rows, 1, 1), threads: 128,
        [x.values, cache.values, positions.integers, A(cache.shape[1]), A(x.columns), A(wide: x.rowStride)])
    }
  }

  package func advance(_ positions: Tensor) {
    let kernel = cacheKernel("advancePositions")
    run("advance") {
      try kernel.launch(
        grid: ((positions.count + 127) / 128, 1, 1), threads: 128, [positions.integers, A(positions.count)])
    }
  }

  // MARK: - Attention over caches

  /// Rows of a cache that a block takes: by its size alone, so that a sequence is computed alike beside whatever others.
  private static func rowsPerBlock(room: Int) -> Int { room <= 32_768 ? 512 : room <= 65_536 + 64 ? 1024 : 2048 }

  /// Bytes a sequence of what blocks find in a layer before it is joined.
  package static func cachePartBytes(heads: Int, size: Int, room: Int) -> Int {
    let rows = rowsPerBlock(room: room)
    return heads * ((room + rows - 1) / rows) * (size + 2) * 4
  }

  package func attendCache(_ q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, into o: Tensor) {
    let (count, heads, size) = (q.rows, q.shape[1], q.shape[2])
    let (room, groups) = (keys.shape[1], keys.shape[2])
    require(size <= 256, "heads of \(size) channels: attention on cards takes at most 256")
    let rows = Self.rowsPerBlock(room: room)
    let parts = (room + rows - 1) / rows
    let outputs = empty([count, heads, parts, size])
    let sums = empty([count, heads, parts, 2])
    let scale = 1 / Float(size).squareRoot()
    let isFast =
      (size == 64 || size == 128)
      && [q, keys, values].allSatisfy { $0.dtype == .bfloat16 && $0.isDense && $0.deviceView.address % 16 == 0 }
    run("attention of caches") {
      if isFast {
        let kernel = kernel("CacheAttention.cu", "cacheAttention", size: size, sharedMemory: 32 * size * 4)
        let packs = (heads / groups + 7) / 8
        try kernel.launch(
          grid: (parts, groups * packs, count), threads: 128,
          [
            q.address(of: .bfloat16), keys.address(of: .bfloat16), values.address(of: .bfloat16), positions.integers,
            A(heads), A(groups), A(room), A(rows), A(scale), outputs.floats, sums.floats,
          ])
      } else {
        let q = dense(q)
        try cacheKernel("cacheAttentionExact", sharedMemory: 4 * 256 * 4).launch(
          grid: (parts, heads, count), threads: 128,
          [
            q.values, keys.values, values.values, positions.integers, A(groups), A(room), A(rows), A(size), A(scale),
            outputs.floats, sums.floats,
          ])
      }
    }
    let join = cacheKernel("joinCacheParts")
    run("attention of caches") {
      try join.launch(
        grid: (heads, count, 1), threads: 128,
        [outputs.floats, sums.floats, positions.integers, A(room), A(rows), A(parts), A(size), o.values])
    }
  }

  // MARK: - The delta rule

  /// One token of every sequence, on states in place; false where there is no kernel for these sizes.
  func deltaRuleStep(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float, state: Tensor, o: Tensor
  ) -> Bool {
    let (keys, values) = (q.shape[2], v.shape[2])
    guard keys <= 256, values % 4 == 0, q.rows <= 65_535 else { return false }
    let kernel = stepKernel("DeltaRuleStep.cu", "deltaRuleStep", elements: v.dtype, state)
    run("deltaRuleStep") {
      try kernel.launch(
        grid: ((values + 127) / 128, q.shape[1], q.rows), threads: keys <= 128 ? 128 : 256,
        [
          A(q.deviceView), A(k.deviceView), A(v.deviceView), g.floats, beta.floats, A(scale),
          A(state.deviceView), A(o.deviceView),
        ])
    }
    return true
  }

  /// One token of every sequence through a JetBlock: all activations of one type, weights in float32.
  package func jetStep(_ step: JetStep, layout: Layout, into o: Tensor) {
    let inputs = [step.q, step.k, step.v, step.a, step.b]
    let (type, values) = (o.dtype, step.valueSize)
    guard step.keySize <= 256, values % 4 == 0, step.sequences <= 65_535,
      (inputs + [step.taps, step.history]).allSatisfy({ $0.dtype == type }),
      inputs.allSatisfy({ $0.rowStride == step.q.rowStride }), step.taps.isDense
    else { return composedJetStep(step, layout: layout, into: o) }
    let kernel = stepKernel("JetStep.cu", "jetStep", elements: type, step.state)
    run("jetStep") {
      try kernel.launch(
        grid: ((values + 127) / 128, step.heads, step.sequences), threads: step.keySize <= 128 ? 128 : 256,
        inputs.map { A($0.deviceView) } + [
          A(wide: step.q.rowStride), A(step.taps.deviceView), step.tapBias.floats, step.aLog.floats, step.dtBias.floats,
          A(step.epsilon), A(step.scale), A(step.history.deviceView), A(step.state.deviceView),
          A(o.deviceView),
        ])
    }
  }

  /// Compiled for the sizes of the state [S, H, K, V].
  private func stepKernel(_ file: String, _ symbol: String, elements: DType, _ state: Tensor) -> Kernel {
    let name = StepName(
      file: file, keys: state.shape[2], values: state.shape[3], elements: elements, states: state.dtype)
    if let known = stepKernels[name] { return known }
    func spelled(_ type: DType) -> String { type == .bfloat16 ? "bf16" : "float" }
    return must {
      let module = try library.module(
        file,
        defines: [
          "KEY_SIZE": "\(name.keys)", "VALUE_SIZE": "\(name.values)", "ELEMENT": spelled(elements),
          "STATE": spelled(state.dtype),
        ])
      let made = try module.kernel(symbol)
      stepKernels[name] = made
      return made
    }
  }

  struct StepName: Hashable {
    let file: String
    let keys, values: Int
    let elements, states: DType
  }

  // MARK: - The next token

  package func chooseTokens(_ logits: Tensor, _ sampling: Sampling, uniforms: Tensor, into tokens: Tensor) {
    let kernel = kernel("Sampling.cu", "chooseTokens")
    run("chooseTokens") {
      try kernel.launch(
        grid: (logits.rows, 1, 1), threads: 512,
        [
          logits.values, uniforms.floats, tokens.integers, A(logits.columns), A(sampling.sharpness),
          A(sampling.topK), A(sampling.topP),
        ])
    }
  }
}
