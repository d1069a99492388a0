import CUDA
import Tensors

/// Softmax attention: on tensor cores for bfloat16 heads of a multiple of 16 channels up to 128, else in plain float32.
extension CUDABackend {
  private enum TableName: Hashable {
    case tiles(Int)
    case spans
  }

  /// Spans and runs of `tile` queries, on the card.
  private func tables(_ spans: AttentionSpans, tile: Int) -> (spans: Tensor, tiles: Tensor) {
    let list = spans.list
    let table = spans.table(TableName.spans) {
      tensor(
        list.flatMap { span -> [Int32] in
          [
            Int32(span.queries.lowerBound), Int32(span.queries.count), Int32(span.keys.lowerBound),
            Int32(span.keys.count), Int32(span.window ?? 1 << 30),
          ]
        })
    }
    let tiles = spans.table(TableName.tiles(tile)) {
      let all = list.enumerated().flatMap { index, span in
        stride(from: 0, to: span.queries.count, by: tile).map { (span: index, first: $0, keys: span.keys.count + $0) }
      }
      // Those that see most keys first, so that no block is left alone at the end.
      return tensor(
        all.sorted { ($0.keys, $0.span) > ($1.keys, $1.span) }.flatMap { [Int32($0.span), Int32($0.first)] })
    }
    return (table, tiles)
  }

  /// How an attention of this shape runs.
  private struct Plan {
    /// The products of warpgroups (Hopper), those of warps, or plain float32 arithmetic.
    enum Way { case warpgroups, warps, exact }

    let heads, groups, size: Int
    let way: Way

    init(_ q: Tensor, _ k: Tensor, spans: AttentionSpans, on device: Device, all tensors: [Tensor]) {
      (heads, groups, size) = (q.shape[1], k.shape[1], q.shape[2])
      require(size <= 256, "heads of \(size) channels: attention on cards takes at most 256")
      guard
        size % 16 == 0 && size <= 128
          && tensors.allSatisfy({ $0.dtype == .bfloat16 && $0.deviceView.address % 16 == 0 && $0.rowStride % 8 == 0 })
      else {
        way = .exact
        return
      }
      // Few queries, as of decoding, fill no block of the warpgroups' kernels.
      way =
        size == 128 && device.capability.major == 9 && q.rows >= 192 * spans.list.count ? .warpgroups : .warps
    }

    var file: String { way == .exact ? "AttentionExact.cu" : "Attention.cu" }
    var tile: Int { way == .warps ? 64 : size <= 128 ? 32 : 16 }
    var threads: Int { way == .warps ? 128 : tile * 8 }
    var scale: Float { 1 / Float(size).squareRoot() }

    /// Bytes of shared memory: on tensor cores always four tiles' worth; else of so many tiles of rows and of products.
    func sharedMemory(rows: Int, products: Int) -> Int {
      way == .warps ? 4 * tile * size * 2 + 512 : 4 * tile * (rows * (size + 1) + products * (tile + 1))
    }

    /// Where elements lie, with their type for the kernels that take any.
    func place(_ x: Tensor) -> KernelArgument { way == .exact ? x.values : x.address(of: .bfloat16) }
  }

  /// The kernels of AttentionHopper.cu and AttentionHopperBackward.cu, with the rows that a block takes and its threads.
  struct WarpgroupAttention {
    let forward, backwardQueries, backwardKeys: Kernel
    let queries, threads, backwardRows, backwardThreads: Int

    init(_ library: KernelLibrary) throws {
      let module = try library.module("AttentionHopper.cu", defines: [:])
      let sizes = try module.constants("attentionSizes")
      (queries, threads) = (sizes[0], sizes[1])
      forward = try module.kernel("attentionForward", sharedMemory: sizes[2])
      let backward = try library.module("AttentionHopperBackward.cu", defines: [:])
      let rows = try backward.constants("attentionBackwardSizes")
      (backwardRows, backwardThreads) = (rows[0], rows[1])
      backwardQueries = try backward.kernel("attentionBackwardQueries", sharedMemory: rows[2])
      backwardKeys = try backward.kernel("attentionBackwardKeys", sharedMemory: rows[3])
    }
  }

  package func attend(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, spans: AttentionSpans, into o: Tensor, logSums: Tensor
  ) {
    let plan = Plan(q, k, spans: spans, on: device, all: [q, k, v, o])
    let byWarpgroups = plan.way == .warpgroups ? warpgroupAttention : nil
    let (table, tiles) = tables(spans, tile: byWarpgroups?.queries ?? plan.tile)
    let kernel =
      byWarpgroups?.forward
      ?? kernel(plan.file, "attentionForward", size: plan.size, sharedMemory: plan.sharedMemory(rows: 2, products: 1))
    run("attention") {
      try kernel.launch(
        grid: byWarpgroups == nil ? (tiles.count / 2, plan.heads, 1) : (tiles.count / 2 * plan.heads, 1, 1),
        threads: byWarpgroups?.threads ?? plan.threads,
        [
          plan.place(q), plan.place(k), plan.place(v), tiles.integers, table.integers, A(plan.heads), A(plan.groups),
          A(v.rowStride), A(plan.scale), plan.place(o), logSums.floats,
        ])
    }
  }

  package func attendBackward(
    _ dO: Tensor, _ q: Tensor, _ k: Tensor, _ v: Tensor, _ o: Tensor, logSums: Tensor, spans: AttentionSpans,
    dQ: Tensor, dK: Tensor, dV: Tensor
  ) {
    let plan = Plan(q, k, spans: spans, on: device, all: [dO, q, k, v, dQ, dK, dV])
    let byWarpgroups = plan.way == .warpgroups ? warpgroupAttention : nil
    let (rows, threads) = (byWarpgroups?.backwardRows ?? plan.tile, byWarpgroups?.backwardThreads ?? plan.threads)
    let (table, tiles) = tables(spans, tile: rows)
    let dots = empty([q.rows, plan.heads])
    rowProducts(dO, o, into: dots)
    let queries =
      byWarpgroups?.backwardQueries
      ?? kernel(
        plan.file, "attentionBackwardQueries", size: plan.size, sharedMemory: plan.sharedMemory(rows: 3, products: 1))
    let keys =
      byWarpgroups?.backwardKeys
      ?? kernel(
        plan.file, "attentionBackwardKeys", size: plan.size, sharedMemory: plan.sharedMemory(rows: 4, products: 2))
    // Of tiles by heads, or tiles times heads.
    func grid(_ tiles: Int, _ heads: Int) -> (Int, Int, Int) {
      byWarpgroups == nil ? (tiles, heads, 1) : (tiles * heads, 1, 1)
    }
    let inputs = [plan.place(dO), plan.place(q), plan.place(k), plan.place(v), logSums.floats, dots.floats]
    let keyTiles = (k.rows + rows - 1) / rows
    run("attention backward") {
      try queries.launch(
        grid: grid(tiles.count / 2, plan.heads), threads: threads,
        inputs + [
          tiles.integers, table.integers, A(plan.heads), A(plan.groups), A(v.rowStride), A(plan.scale), plan.place(dQ),
        ])
      guard plan.way == .exact else { return }
      try keys.launch(
        grid: grid(keyTiles, plan.groups), threads: threads,
        inputs + [
          table.integers, A(spans.list.count), A(k.rows), A(plan.heads), A(plan.groups), A(v.rowStride),
          A(plan.scale), plan.place(dK), plan.place(dV), A(dV.rowStride),
        ])
    }
    guard plan.way != .exact else { return }
    // Each head's share by itself, so that there are blocks enough; those of a group are added up then.
    let shares = [k.rows, plan.heads, plan.size]
    let (keyShares, valueShares) = (empty(shares), empty(shares))
    run("attention backward") {
      try keys.launch(
        grid: grid(keyTiles, plan.heads), threads: threads,
        inputs + [
          table.integers, A(spans.list.count), A(k.rows), A(plan.heads), A(plan.groups), A(v.rowStride),
          A(plan.scale), keyShares.floats, valueShares.floats,
        ])
    }
    repeatHeadsBackward(keyShares, into: dK)
    repeatHeadsBackward(valueShares, into: dV)
  }
}
