import Foundation
import Tensors

/// Softmax attention in blocks of queries; the backward pass recomputes the probabilities from the saved
/// log-sum-exp (Dao, 2022, equations of section 3.1 and appendix B).
extension CPUBackend {
  private static let queryBlock = 64

  /// Keys that a block of queries may see, and where each query stands among them.
  private struct Block {
    let firstQuery: Int
    let queryCount: Int
    let firstKey: Int
    let keyCount: Int
    /// Position of the first query relative to `firstKey`.
    let diagonal: Int
    private let window: Int?

    init(_ span: AttentionSpan, block: Int) {
      window = span.window
      let offset = block * CPUBackend.queryBlock
      firstQuery = span.queries.lowerBound + offset
      queryCount = min(CPUBackend.queryBlock, span.queries.count - offset)
      let position = span.keys.count - span.queries.count + offset
      let oldest = max(0, position - (window ?? span.keys.count) + 1)
      firstKey = span.keys.lowerBound + oldest
      keyCount = position + queryCount - oldest
      diagonal = position - oldest
    }

    /// Keys that query `i` of the block sees.
    func visible(_ i: Int) -> Range<Int> {
      let last = diagonal + i + 1
      return max(0, last - (window ?? last))..<last
    }
  }

  private static func blocks(_ spans: [AttentionSpan]) -> [Block] {
    spans.flatMap { span in
      (0..<(span.queries.count + queryBlock - 1) / queryBlock).map { Block(span, block: $0) }
    }
  }

  package func attend(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, spans: AttentionSpans, into o: Tensor, logSums: Tensor
  ) {
    let (heads, groups, size) = (q.shape[1], k.shape[1], q.shape[2])
    let (pq, pk, pv, po, lse) = (q.floats, k.floats, v.floatRows, o.floats, logSums.floats)
    let list = spans.list
    if list.allSatisfy({ $0.queries.count == 1 }) { return attendOne(q, k, v, spans: list, into: o, logSums) }
    let scale = 1 / Float(size).squareRoot()
    let (qStride, kStride) = (heads * size, groups * size)
    let blocks = spans.table(TableName.queryBlocks) { Self.blocks(list) }
    parallel(blocks.count * heads) { slice in
      let (block, h) = (blocks[slice / heads], slice % heads)
      let g = h * groups / heads
      let (rows, keys) = (block.queryCount, block.keyCount)
      var scratch = Scratch(Scratch.rounded(rows * keys))
      defer { scratch.free() }
      let scores = scratch.take(rows * keys)
      let keyMatrix = Matrix(pk + block.firstKey * kStride + g * size, stride: kStride)
      gemm(
        rows, keys, size, scale, Matrix(pq + block.firstQuery * qStride + h * size, stride: qStride),
        keyMatrix.transposed, 0, Matrix(scores, stride: keys))
      for i in 0..<rows {
        let row = scores + i * keys
        let visible = block.visible(i)
        let (maximum, sum) = Self.softmax(row, visible, count: keys)
        scaled(1 / sum, row + visible.lowerBound, into: row + visible.lowerBound, visible.count)
        lse[(block.firstQuery + i) * heads + h] = maximum + Self.logarithm(sum)
      }
      gemm(
        rows, size, keys, 1, Matrix(scores, stride: keys),
        Matrix(pv[block.firstKey] + g * size, stride: pv.stride), 0,
        Matrix(po + block.firstQuery * qStride + h * size, stride: qStride))
    }
  }

  /// Keys of one slice while a single query reads them.
  private static let keyBlock = 512

  /// Decoding: one query a span. The keys are cut into blocks, and all heads of a group read a block together, so that
  /// memory is read once; the blocks' sums are joined in their order (Dao et al., 2023, flash decoding).
  private func attendOne(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, spans: [AttentionSpan], into o: Tensor, _ logSums: Tensor
  ) {
    let (heads, groups, size) = (q.shape[1], k.shape[1], q.shape[2])
    let perGroup = heads / groups
    let (pq, pk, pv, po, lse) = (q.floats, k.floats, v.floatRows, o.floats, logSums.floats)
    let scale = 1 / Float(size).squareRoot()
    let stride = groups * size
    let blocks = spans.flatMap { span in
      let first = span.window.map { max(span.keys.lowerBound, span.keys.upperBound - $0) } ?? span.keys.lowerBound
      return Swift.stride(from: first, to: span.keys.upperBound, by: Self.keyBlock).map { start in
        (query: span.queries.lowerBound, keys: start..<min(start + Self.keyBlock, span.keys.upperBound))
      }
    }
    // Of every block and head: the weighted values, the largest score, the sum of exponentials.
    let record = size + 2
    withTemporary(max(1, blocks.count * heads * record)) { partials in
      parallel(blocks.count * groups, kernel: "attend") { slice in
        let ((query, keys), g) = (blocks[slice / groups], slice % groups)
        var scratch = Scratch(Scratch.rounded(keys.count * perGroup))
        defer { scratch.free() }
        let scores = scratch.take(keys.count * perGroup)
        let queries = pq + query * heads * size + g * perGroup * size
        let (keyRows, valueRows) = (pk + keys.lowerBound * stride + g * size, pv[keys.lowerBound] + g * size)
        for r in 0..<perGroup {
          let row = scores + r * keys.count
          Self.dots(queries + r * size, keyRows, stride: stride, count: keys.count, size: size, scale, into: row)
          let out = partials + ((slice / groups) * heads + g * perGroup + r) * record
          (out[size], out[size + 1]) = Self.softmax(row, 0..<keys.count, count: keys.count)
          Self.weightedSum(row, valueRows, stride: pv.stride, count: keys.count, size: size, into: out)
        }
      }
      var first = 0
      while first < blocks.count {
        let query = blocks[first].query
        let end = blocks[first...].firstIndex { $0.query != query } ?? blocks.count
        for h in 0..<heads {
          func part(_ block: Int) -> FloatPointer { partials + (block * heads + h) * record }
          let maximum = (first..<end).map { part($0)[size] }.max() ?? 0
          let out = po + (query * heads + h) * size
          out.update(repeating: 0, count: size)
          var sum: Float = 0
          for block in first..<end {
            let weight = Foundation.exp(part(block)[size] - maximum)
            sum += weight * part(block)[size + 1]
            axpy(weight, part(block), into: out, size)
          }
          scaled(1 / sum, out, into: out, size)
          lse[query * heads + h] = maximum + Self.logarithm(sum)
        }
        first = end
      }
    }
  }

  /// out[j] = scale · query · key j, four keys at a time.
  private static func dots(
    _ query: FloatPointer, _ keys: FloatPointer, stride: Int, count: Int, size: Int, _ scale: Float,
    into out: FloatPointer
  ) {
    let whole = count / 4 * 4
    for j in Swift.stride(from: 0, to: whole, by: 4) {
      let (k0, k1) = (keys + j * stride, keys + (j + 1) * stride)
      let (k2, k3) = (keys + (j + 2) * stride, keys + (j + 3) * stride)
      var (s0, s1, s2, s3) = (Lanes.zero, Lanes.zero, Lanes.zero, Lanes.zero)
      sweep(size) { i, n in
        let q = query.lanes(i, n)
        s0 = s0.addingProduct(q, k0.lanes(i, n))
        s1 = s1.addingProduct(q, k1.lanes(i, n))
        s2 = s2.addingProduct(q, k2.lanes(i, n))
        s3 = s3.addingProduct(q, k3.lanes(i, n))
      }
      let sums = pairSums(pairSums(quarter(s0), quarter(s1)), pairSums(quarter(s2), quarter(s3))) * scale
      UnsafeMutableRawPointer(out + j).storeBytes(of: sums, as: SIMD4<Float>.self)
    }
    for j in whole..<count { out[j] = dot(query, keys + j * stride, size) * scale }
  }

  /// Sixteen lanes added up to four.
  @inline(__always)
  private static func quarter(_ x: Lanes) -> SIMD4<Float> {
    let half = x.lowHalf + x.highHalf
    return half.lowHalf + half.highHalf
  }

  /// a₀ + a₁, a₂ + a₃, b₀ + b₁, b₂ + b₃
  @inline(__always)
  private static func pairSums(_ a: SIMD4<Float>, _ b: SIMD4<Float>) -> SIMD4<Float> {
    let both = SIMD8(lowHalf: a, highHalf: b)
    return both.evenHalf + both.oddHalf
  }

  /// out = Σ_j weights[j] · value j, 64 channels at a time so that their sums stay in registers.
  private static func weightedSum(
    _ weights: FloatPointer, _ values: FloatPointer, stride: Int, count: Int, size: Int, into out: FloatPointer
  ) {
    let whole = size / 64 * 64
    for c in Swift.stride(from: 0, to: whole, by: 64) {
      var (s0, s1, s2, s3) = (Lanes.zero, Lanes.zero, Lanes.zero, Lanes.zero)
      for j in 0..<count {
        let (weight, row) = (Lanes(repeating: weights[j]), values + j * stride + c)
        s0 = s0.addingProduct(weight, row.lanes(0))
        s1 = s1.addingProduct(weight, row.lanes(16))
        s2 = s2.addingProduct(weight, row.lanes(32))
        s3 = s3.addingProduct(weight, row.lanes(48))
      }
      out.store(s0, c)
      out.store(s1, c + 16)
      out.store(s2, c + 32)
      out.store(s3, c + 48)
    }
    sweep(size - whole) { i, n in
      var sum = Lanes.zero
      for j in 0..<count {
        sum = sum.addingProduct(Lanes(repeating: weights[j]), (values + j * stride + whole).lanes(i, n))
      }
      out.store(sum, whole + i, n)
    }
  }

  /// Replaces the visible scores by e^(score − maximum) and the others by zero.
  private static func softmax(
    _ row: FloatPointer, _ visible: Range<Int>, count: Int
  ) -> (maximum: Float, sum: Float) {
    let first = row + visible.lowerBound
    var most = Lanes(repeating: -.infinity)
    sweep(visible.count) { i, n in
      let x = first.lanes(i, n, fill: -.infinity)
      most = most.replacing(with: x, where: x .> most)
    }
    let maximum = most.max()
    var sum = Lanes.zero
    sweep(visible.count) { i, n in
      let e = (first.lanes(i, n, fill: -.infinity) - maximum).exponential
      sum += e
      first.store(e, i, n)
    }
    clear(row, outside: visible, count: count)
    return (maximum, sum.total)
  }

  private static func clear(_ row: FloatPointer, outside visible: Range<Int>, count: Int) {
    row.update(repeating: 0, count: visible.lowerBound)
    (row + visible.upperBound).update(repeating: 0, count: count - visible.upperBound)
  }

  /// Spans that share keys, together.
  private static func clusters(_ spans: [AttentionSpan]) -> [[AttentionSpan]] {
    var clusters: [[AttentionSpan]] = []
    var end = 0
    for span in spans.sorted(by: { $0.keys.lowerBound < $1.keys.lowerBound }) {
      if span.keys.lowerBound < end, !clusters.isEmpty {
        clusters[clusters.count - 1].append(span)
      } else {
        clusters.append([span])
      }
      end = max(end, span.keys.upperBound)
    }
    return clusters
  }

  package func attendBackward(
    _ dO: Tensor, _ q: Tensor, _ k: Tensor, _ v: Tensor, _ o: Tensor, logSums: Tensor,
    spans: AttentionSpans, dQ: Tensor, dK: Tensor, dV: Tensor
  ) {
    let (heads, groups, size) = (q.shape[1], k.shape[1], q.shape[2])
    let (pq, pk, pv, po, lse) = (q.floats, k.floats, v.floatRows, o.floats, logSums.floats)
    let (pdo, pdq, pdk, pdv) = (dO.floats, dQ.floats, dK.floats, dV.floatRows)
    let scale = 1 / Float(size).squareRoot()
    let (qStride, kStride) = (heads * size, groups * size)
    let perGroup = heads / groups
    fill(dK, with: 0)
    fill(dV, with: 0)
    let clusters = Self.clusters(spans.list)
    // One slice owns the keys of one group of heads, so that their gradients add up in a fixed order.
    parallel(clusters.count * groups) { slice in
      let (cluster, g) = (clusters[slice / groups], slice % groups)
      let capacity = Scratch.rounded(Self.queryBlock * (cluster.map(\.keys.count).max() ?? 0))
      var scratch = Scratch(2 * capacity)
      defer { scratch.free() }
      let (p, dS) = (scratch.take(capacity), scratch.take(capacity))
      for h in g * perGroup..<(g + 1) * perGroup {
        for block in Self.blocks(cluster) {
          let (rows, keys) = (block.queryCount, block.keyCount)
          let queryOffset = block.firstQuery * qStride + h * size
          let keyOffset = block.firstKey * kStride + g * size
          let queryMatrix = Matrix(pq + queryOffset, stride: qStride)
          let keyMatrix = Matrix(pk + keyOffset, stride: kStride)
          let gradient = Matrix(pdo + queryOffset, stride: qStride)
          gemm(rows, keys, size, scale, queryMatrix, keyMatrix.transposed, 0, Matrix(p, stride: keys))
          gemm(
            rows, keys, size, 1, gradient, Matrix(pv[block.firstKey] + g * size, stride: pv.stride).transposed, 0,
            Matrix(dS, stride: keys))
          for i in 0..<rows {
            let visible = block.visible(i)
            let row = p + i * keys + visible.lowerBound
            let dRow = dS + i * keys + visible.lowerBound
            let logSum = lse[(block.firstQuery + i) * heads + h]
            let delta = dot(pdo + queryOffset + i * qStride, po + queryOffset + i * qStride, size)
            sweep(visible.count) { j, n in
              let probability = (row.lanes(j, n) - logSum).exponential
              row.store(probability, j, n)
              dRow.store(probability * (dRow.lanes(j, n) - delta) * scale, j, n)
            }
            Self.clear(p + i * keys, outside: visible, count: keys)
            Self.clear(dS + i * keys, outside: visible, count: keys)
          }
          gemm(rows, size, keys, 1, Matrix(dS, stride: keys), keyMatrix, 0, Matrix(pdq + queryOffset, stride: qStride))
          gemm(
            keys, size, rows, 1, Matrix(dS, stride: keys).transposed, queryMatrix, 1,
            Matrix(pdk + keyOffset, stride: kStride))
          gemm(
            keys, size, rows, 1, Matrix(p, stride: keys).transposed, gradient, 1,
            Matrix(pdv[block.firstKey] + g * size, stride: pdv.stride))
        }
      }
    }
  }
}
