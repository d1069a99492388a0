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

  /// `count` values at `index` as float32, then zeros; 16 is the whole vector.
  @inline(__always)
  func wide(_ index: Int, _ count: Int) -> Lanes {
    if count == laneCount { return wide(index) }
    var vector = Lanes.zero
    for lane in 0..<count { vector[lane] = single(index + lane) }
    return vector
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

/// out = the `count` values at `source` as bfloat16: to nearest, ties to even, NaN stays NaN.
@inline(__always)
func round(_ source: FloatPointer, into out: BFloatPointer, _ count: Int) {
  let whole = count / laneCount * laneCount
  for i in stride(from: 0, to: whole, by: laneCount) {
    let value = source.lanes(i)
    let bits = unsafeBitCast(value, to: SIMD16<UInt32>.self)
    let halves = bits &>> 16
    // A NaN whose payload lies below would become infinity: it is made quiet.
    let rounded = ((bits &+ 0x7FFF &+ (halves & 1)) &>> 16).replacing(with: halves | 0x40, where: value .!= value)
    UnsafeMutableRawPointer(out + i).storeBytes(
      of: SIMD16<UInt16>(truncatingIfNeeded: rounded), as: SIMD16<UInt16>.self)
  }
  for i in whole..<count {
    let (bits, half) = (source[i].bitPattern, source[i].bitPattern >> 16)
    out[i] = UInt16(truncatingIfNeeded: source[i].isNaN ? half | 0x40 : (bits &+ 0x7FFF &+ (half & 1)) >> 16)
  }
}

extension CPUBackend {
  /// c = alpha · a bᵀ for a few rows of a, each row of b read once.
  ///
  /// Two neighbours of bfloat16 are one 32-bit word: its upper half is the second as it stands, a shift makes the first.
  /// So the rows of a are laid out in blocks of 32, the sixteen even elements before the sixteen odd ones.
  func streamWeights(
    _ a: Rows, _ b: BFloatPointer, into c: Rows, rows: Int, columns: Int, inner: Int, alpha: Float, adds: Bool
  ) {
    let whole = inner / 32 * 32
    withTemporary(rows * inner) { parted in
      for row in 0..<rows {
        let (source, target) = (a[row], parted + row * inner)
        for i in stride(from: 0, to: whole, by: 32) {
          let (low, high) = (source.lanes(i), source.lanes(i + 16))
          target.store(Lanes(lowHalf: low.evenHalf, highHalf: high.evenHalf), i)
          target.store(Lanes(lowHalf: low.oddHalf, highHalf: high.oddHalf), i + 16)
        }
        for i in whole..<inner { target[i] = source[i] }
      }
      let tile = 64
      parallel((columns + tile - 1) / tile, kernel: "multiply") { t in
        for column in t * tile..<min(columns, (t + 1) * tile) {
          let weights = b + column * inner
          var row = 0
          while row < rows {
            let x = parted + row * inner
            let count = rows - row >= 4 ? 4 : 1
            let sums = count == 4 ? Self.fourDots(x, inner, weights) : SIMD4(Self.dot(x, inner, weights), 0, 0, 0)
            for i in 0..<count {
              let out = c[row + i] + column
              out.pointee = alpha * sums[i] + (adds ? out.pointee : 0)
            }
            row += count
          }
        }
      }
    }
  }

  /// The even and odd ones of 32 weights.
  @inline(__always)
  private static func pairs(_ weights: BFloatPointer, _ index: Int) -> (even: Lanes, odd: Lanes) {
    let words = UnsafeRawPointer(weights + index).loadUnaligned(as: SIMD16<UInt32>.self)
    return (
      unsafeBitCast(words &<< 16, to: Lanes.self),
      unsafeBitCast(words & SIMD16<UInt32>(repeating: 0xFFFF_0000), to: Lanes.self)
    )
  }

  /// Σ x·w over `count` elements, x parted.
  @inline(__always)
  private static func dot(_ x: FloatPointer, _ count: Int, _ weights: BFloatPointer) -> Float {
    var (s0, s1, s2, s3) = (Lanes.zero, Lanes.zero, Lanes.zero, Lanes.zero)
    var i = 0
    while i + 64 <= count {
      let (first, second) = (pairs(weights, i), pairs(weights, i + 32))
      s0 = s0.addingProduct(x.lanes(i), first.even)
      s1 = s1.addingProduct(x.lanes(i + 16), first.odd)
      s2 = s2.addingProduct(x.lanes(i + 32), second.even)
      s3 = s3.addingProduct(x.lanes(i + 48), second.odd)
      i += 64
    }
    if i + 32 <= count {
      let pair = pairs(weights, i)
      s0 = s0.addingProduct(x.lanes(i), pair.even)
      s1 = s1.addingProduct(x.lanes(i + 16), pair.odd)
      i += 32
    }
    var sum = ((s0 + s1) + (s2 + s3)).total
    while i < count {
      sum += x[i] * weights.single(i)
      i += 1
    }
    return sum
  }

  /// Four rows of x, parted, `stride` apart, with one row of weights.
  @inline(__always)
  private static func fourDots(_ x: FloatPointer, _ stride: Int, _ weights: BFloatPointer) -> SIMD4<Float> {
    let (x1, x2, x3) = (x + stride, x + 2 * stride, x + 3 * stride)
    var (s0, s1, s2, s3) = (Lanes.zero, Lanes.zero, Lanes.zero, Lanes.zero)
    var i = 0
    while i + 32 <= stride {
      let (even, odd) = pairs(weights, i)
      s0 = s0.addingProduct(x.lanes(i), even).addingProduct(x.lanes(i + 16), odd)
      s1 = s1.addingProduct(x1.lanes(i), even).addingProduct(x1.lanes(i + 16), odd)
      s2 = s2.addingProduct(x2.lanes(i), even).addingProduct(x2.lanes(i + 16), odd)
      s3 = s3.addingProduct(x3.lanes(i), even).addingProduct(x3.lanes(i + 16), odd)
      i += 32
    }
    var sums = SIMD4(s0.total, s1.total, s2.total, s3.total)
    while i < stride {
      sums += SIMD4(x[i], x1[i], x2[i], x3[i]) * weights.single(i)
      i += 1
    }
    return sums
  }
}
