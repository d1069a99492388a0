/// The unit of the kernels: sixteen floats, which the compiler maps to one AVX-512 or two AVX registers.
typealias Lanes = SIMD16<Float>

/// Floats in one ``Lanes``.
let laneCount = 16

typealias FloatPointer = UnsafeMutablePointer<Float>

extension UnsafeMutablePointer where Pointee == Float {
  /// `count` floats at `index`, the missing ones filled; 16 is the whole vector.
  @inline(__always)
  func lanes(_ index: Int, _ count: Int = laneCount, fill: Float = 0) -> Lanes {
    if count == laneCount {
      return UnsafeRawPointer(self + index).loadUnaligned(as: Lanes.self)
    }
    var vector = Lanes(repeating: fill)
    for lane in 0..<count { vector[lane] = self[index + lane] }
    return vector
  }

  /// Writes the first `count` lanes at `index`.
  @inline(__always)
  func store(_ vector: Lanes, _ index: Int, _ count: Int = laneCount) {
    if count == laneCount {
      UnsafeMutableRawPointer(self + index).storeBytes(of: vector, as: Lanes.self)
    } else {
      for lane in 0..<count { self[index + lane] = vector[lane] }
    }
  }
}

/// Calls `body(offset, lanes)` over `count` elements: whole vectors, then the tail.
@inline(__always)
func sweep(_ count: Int, _ body: (_ offset: Int, _ lanes: Int) -> Void) {
  var offset = 0
  while offset + laneCount <= count {
    body(offset, laneCount)
    offset += laneCount
  }
  if offset < count { body(offset, count - offset) }
}

extension SIMD16 where Scalar == Float {
  /// e^x to 2 units in the last place; 0 below −87.3, about 1.7e38 above 88.
  ///
  /// Range reduction by the rounding constant 1.5·2^23, then a polynomial of degree 6 (Cephes).
  @inline(__always)
  var exponential: Lanes {
    let low = self .< -87.3
    let x = self.replacing(with: 88, where: self .> 88)
    let magic: Float = 12_582_912
    let shifted = Lanes(repeating: magic).addingProduct(x, Lanes(repeating: 1.442_695_04))
    let n = shifted - magic
    let r = x.addingProduct(n, Lanes(repeating: -0.693_359_375)).addingProduct(
      n, Lanes(repeating: 2.121_944_4e-4))
    var p = Lanes(repeating: 1.987_569_15e-4)
    p = Lanes(repeating: 1.398_199_95e-3).addingProduct(p, r)
    p = Lanes(repeating: 8.333_451_9e-3).addingProduct(p, r)
    p = Lanes(repeating: 4.166_579_6e-2).addingProduct(p, r)
    p = Lanes(repeating: 1.666_666_55e-1).addingProduct(p, r)
    p = Lanes(repeating: 5.000_000_1e-1).addingProduct(p, r)
    let e = (r + 1).addingProduct(p, r * r)
    let bits =
      unsafeBitCast(shifted, to: SIMD16<Int32>.self)
      &- SIMD16<Int32>(repeating: 0x4B40_0000 - 127)
    let power = unsafeBitCast(bits &<< 23, to: Lanes.self)
    return (e * power).replacing(with: 0, where: low)
  }

  /// 1 / (1 + e^−x)
  @inline(__always)
  var sigmoid: Lanes { 1 / (1 + (-self).exponential) }

  /// The sum of all lanes, pairwise.
  @inline(__always)
  var total: Float {
    let a = lowHalf + highHalf
    let b = a.lowHalf + a.highHalf
    let c = b.lowHalf + b.highHalf
    return c.x + c.y
  }
}

/// Σ a·b over `count` elements.
@inline(__always)
func dot(_ a: FloatPointer, _ b: FloatPointer, _ count: Int) -> Float {
  var sum = Lanes.zero
  sweep(count) { i, n in sum = sum.addingProduct(a.lanes(i, n), b.lanes(i, n)) }
  return sum.total
}

/// y += scale · x over `count` elements.
@inline(__always)
func axpy(_ scale: Float, _ x: FloatPointer, into y: FloatPointer, _ count: Int) {
  let factor = Lanes(repeating: scale)
  sweep(count) { i, n in y.store(y.lanes(i, n).addingProduct(factor, x.lanes(i, n)), i, n) }
}

/// y = scale · x over `count` elements.
@inline(__always)
func scaled(_ scale: Float, _ x: FloatPointer, into y: FloatPointer, _ count: Int) {
  sweep(count) { i, n in y.store(x.lanes(i, n) * scale, i, n) }
}
