import Tensors

/// Weights that stay bfloat16 in memory: the upper halves of float32. They are widened where they are used; sums are
/// float32.
typealias BFloatPointer = UnsafeMutablePointer<UInt16>

extension UnsafeMutablePointer where Pointee == UInt16 {
  /// Sixteen values at `index` as float32.
  @inline(__always)
  func wide(_ index: Int) -> Lanes {
    let halves = UnsafeRawPointer(self + index).loadUnaligned(as: SIMD16<UInt16>.self)
    return unsafeBitCast(SIMD16<UInt32>(truncatingIfNeeded: halves) &<< 16, to: Lanes.self)
  }

  /// The value at `index` as float32.
  @inline(__always)
  func single(_ index: Int) -> Float { Float(bitPattern: UInt32(self[index]) << 16) }
}

/// out = the `count` values at `source` as float32.
@inline(__always)
func widen(_ source: BFloatPointer, into out: FloatPointer, _ count: Int) {
  let whole = count / laneCount * laneCount
  for i in stride(from: 0, to: whole, by: laneCount) { out.store(source.wide(i), i) }
  for i in whole..<count { out[i] = source.single(i) }
}

extension CPUBackend {
  /// Rows up to which a product reads each weight once for all of them, at the speed of memory.
  private static let fewRows = 16
  /// Weights widened at a time for products of many rows, along the sum.
  private static let panelDepth = 1024

  /// c [rows, columns] = alpha · a op(b), or added to c, with b in bfloat16.
  func multiplyWide(
    _ a: FloatPointer, _ b: BFloatPointer, transposed: Bool, into c: FloatPointer, rows: Int, columns: Int, inner: Int,
    alpha: Float, adds: Bool
  ) {
    if transposed && rows <= Self.fewRows {
      return streamWeights(a, b, into: c, rows: rows, columns: columns, inner: inner, alpha: alpha, adds: adds)
    }
    let eighth = ((columns + 7) / 8 + 63) / 64 * 64
    let tile = min(512, max(128, eighth))
    parallel((columns + tile - 1) / tile, kernel: "multiply") { t in
      let first = t * tile
      let width = min(tile, columns - first)
      let depth = min(Self.panelDepth, inner)
      var scratch = Scratch(Scratch.rounded(width * depth))
      defer { scratch.free() }
      let panel = scratch.take(width * depth)
      for start in stride(from: 0, to: inner, by: depth) {
        let length = min(depth, inner - start)
        let matrix: Matrix
        if transposed {
          for j in 0..<width { widen(b + (first + j) * inner + start, into: panel + j * length, length) }
          matrix = Matrix(panel, stride: length, isTransposed: true)
        } else {
          for i in 0..<length { widen(b + (start + i) * columns + first, into: panel + i * width, width) }
          matrix = Matrix(panel, stride: width)
        }
        gemm(
          rows, width, length, alpha, Matrix(a + start, stride: inner), matrix, adds || start > 0 ? 1 : 0,
          Matrix(c + first, stride: columns))
      }
    }
  }

  /// c = alpha · a bᵀ for a few rows of a, each row of b read once.
  private func streamWeights(
    _ a: FloatPointer, _ b: BFloatPointer, into c: FloatPointer, rows: Int, columns: Int, inner: Int, alpha: Float,
    adds: Bool
  ) {
    let tile = 64
    parallel((columns + tile - 1) / tile, kernel: "multiply") { t in
      for column in t * tile..<min(columns, (t + 1) * tile) {
        let weights = b + column * inner
        var row = 0
        while row < rows {
          let x = a + row * inner
          let count = min(4, rows - row)
          let sums =
            count == 4
            ? Self.fourDots(x, inner, weights)
            : SIMD4(
              Self.dot(x, weights, inner), count > 1 ? Self.dot(x + inner, weights, inner) : 0,
              count > 2 ? Self.dot(x + 2 * inner, weights, inner) : 0, 0)
          for i in 0..<count {
            let out = c + (row + i) * columns + column
            out.pointee = alpha * sums[i] + (adds ? out.pointee : 0)
          }
          row += count
        }
      }
    }
  }

  /// Σ x·w over `count` elements.
  @inline(__always)
  private static func dot(_ x: FloatPointer, _ weights: BFloatPointer, _ count: Int) -> Float {
    var (s0, s1, s2, s3) = (Lanes.zero, Lanes.zero, Lanes.zero, Lanes.zero)
    var i = 0
    while i + 64 <= count {
      s0 = s0.addingProduct(x.lanes(i), weights.wide(i))
      s1 = s1.addingProduct(x.lanes(i + 16), weights.wide(i + 16))
      s2 = s2.addingProduct(x.lanes(i + 32), weights.wide(i + 32))
      s3 = s3.addingProduct(x.lanes(i + 48), weights.wide(i + 48))
      i += 64
    }
    while i + 16 <= count {
      s0 = s0.addingProduct(x.lanes(i), weights.wide(i))
      i += 16
    }
    var sum = ((s0 + s1) + (s2 + s3)).total
    while i < count {
      sum += x[i] * weights.single(i)
      i += 1
    }
    return sum
  }

  /// Four rows of x, `stride` apart, with one row of weights.
  @inline(__always)
  private static func fourDots(_ x: FloatPointer, _ stride: Int, _ weights: BFloatPointer) -> SIMD4<Float> {
    let (x1, x2, x3) = (x + stride, x + 2 * stride, x + 3 * stride)
    var (s0, s1, s2, s3) = (Lanes.zero, Lanes.zero, Lanes.zero, Lanes.zero)
    var i = 0
    while i + 16 <= stride {
      let w = weights.wide(i)
      s0 = s0.addingProduct(x.lanes(i), w)
      s1 = s1.addingProduct(x1.lanes(i), w)
      s2 = s2.addingProduct(x2.lanes(i), w)
      s3 = s3.addingProduct(x3.lanes(i), w)
      i += 16
    }
    var sums = SIMD4(s0.total, s1.total, s2.total, s3.total)
    while i < stride {
      sums += SIMD4(x[i], x1[i], x2[i], x3[i]) * weights.single(i)
      i += 1
    }
    return sums
  }
}
