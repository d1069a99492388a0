import CVector

/// The innermost loop of a product: a few rows of A times a panel of B, sums in registers. A's elements are read where they
/// are, one at a time for all columns; B is packed in panels, `[depth, columns]` each (`PackedProduct.swift`).
///
/// With vectors of sixteen floats, 32 registers hold 8 × 48 sums; with vectors of eight, 16 registers hold 6 × 16.
enum Microkernel {
  private static let hasWideVectors = jettrain_has_wide_vectors == 1
  /// Rows of A at a time.
  static let rows = hasWideVectors ? 8 : 6
  /// Columns of a panel of B; the last one of a matrix is narrower, in steps of sixteen.
  static let columns = hasWideVectors ? 48 : 16

  /// The elements of A: `[rows, depth]`, by distances.
  struct Operand {
    let start: FloatPointer
    /// From one row to the next, and from one step along the sum to the next.
    let row: Int
    let step: Int
  }

  /// Where the sums go.
  struct Target {
    let start: FloatPointer
    let stride: Int
    /// How many of the rows and columns there are.
    let rows: Int
    let columns: Int
    let alpha: Float
    let adds: Bool

    @inline(__always)
    func put(_ sums: Lanes, _ row: Int, _ vector: Int) {
      let count = min(laneCount, columns - laneCount * vector)
      if row >= rows || count <= 0 { return }
      let out = start + row * stride + laneCount * vector
      let value = sums * alpha
      out.store(adds ? out.lanes(0, count) + value : value, 0, count)
    }
  }

  /// target = alpha · a b, or added, for a panel b of `width` columns.
  static func multiply(_ depth: Int, _ a: Operand, _ b: FloatPointer, width: Int, into target: Target) {
    if hasWideVectors {
      switch width {
      case 48: multiply8x48(depth, a, b, into: target)
      case 32: multiply8x32(depth, a, b, into: target)
      default: multiply8x16(depth, a, b, into: target)
      }
    } else {
      multiply6x16(depth, a, b, into: target)
    }
  }

  private static func multiply8x48(_ depth: Int, _ a: Operand, _ b: FloatPointer, into target: Target) {
    var (s00, s01, s02) = (Lanes.zero, Lanes.zero, Lanes.zero)
    var (s10, s11, s12) = (Lanes.zero, Lanes.zero, Lanes.zero)
    var (s20, s21, s22) = (Lanes.zero, Lanes.zero, Lanes.zero)
    var (s30, s31, s32) = (Lanes.zero, Lanes.zero, Lanes.zero)
    var (s40, s41, s42) = (Lanes.zero, Lanes.zero, Lanes.zero)
    var (s50, s51, s52) = (Lanes.zero, Lanes.zero, Lanes.zero)
    var (s60, s61, s62) = (Lanes.zero, Lanes.zero, Lanes.zero)
    var (s70, s71, s72) = (Lanes.zero, Lanes.zero, Lanes.zero)
    let row = a.row
    var x = a.start
    var b = UnsafeRawPointer(b).assumingMemoryBound(to: Lanes.self)
    for _ in 0..<depth {
      let (b0, b1, b2) = (b[0], b[1], b[2])
      let x0 = Lanes(repeating: x[0])
      s00 = s00.addingProduct(x0, b0)
      s01 = s01.addingProduct(x0, b1)
      s02 = s02.addingProduct(x0, b2)
      let x1 = Lanes(repeating: x[row])
      s10 = s10.addingProduct(x1, b0)
      s11 = s11.addingProduct(x1, b1)
      s12 = s12.addingProduct(x1, b2)
      let x2 = Lanes(repeating: x[2 &* row])
      s20 = s20.addingProduct(x2, b0)
      s21 = s21.addingProduct(x2, b1)
      s22 = s22.addingProduct(x2, b2)
      let x3 = Lanes(repeating: x[3 &* row])
      s30 = s30.addingProduct(x3, b0)
      s31 = s31.addingProduct(x3, b1)
      s32 = s32.addingProduct(x3, b2)
      let x4 = Lanes(repeating: x[4 &* row])
      s40 = s40.addingProduct(x4, b0)
      s41 = s41.addingProduct(x4, b1)
      s42 = s42.addingProduct(x4, b2)
      let x5 = Lanes(repeating: x[5 &* row])
      s50 = s50.addingProduct(x5, b0)
      s51 = s51.addingProduct(x5, b1)
      s52 = s52.addingProduct(x5, b2)
      let x6 = Lanes(repeating: x[6 &* row])
      s60 = s60.addingProduct(x6, b0)
      s61 = s61.addingProduct(x6, b1)
      s62 = s62.addingProduct(x6, b2)
      let x7 = Lanes(repeating: x[7 &* row])
      s70 = s70.addingProduct(x7, b0)
      s71 = s71.addingProduct(x7, b1)
      s72 = s72.addingProduct(x7, b2)
      x += a.step
      b += 3
    }
    target.put(s00, 0, 0)
    target.put(s01, 0, 1)
    target.put(s02, 0, 2)
    target.put(s10, 1, 0)
    target.put(s11, 1, 1)
    target.put(s12, 1, 2)
    target.put(s20, 2, 0)
    target.put(s21, 2, 1)
    target.put(s22, 2, 2)
    target.put(s30, 3, 0)
    target.put(s31, 3, 1)
    target.put(s32, 3, 2)
    target.put(s40, 4, 0)
    target.put(s41, 4, 1)
    target.put(s42, 4, 2)
    target.put(s50, 5, 0)
    target.put(s51, 5, 1)
    target.put(s52, 5, 2)
    target.put(s60, 6, 0)
    target.put(s61, 6, 1)
    target.put(s62, 6, 2)
    target.put(s70, 7, 0)
    target.put(s71, 7, 1)
    target.put(s72, 7, 2)
  }

  private static func multiply8x32(_ depth: Int, _ a: Operand, _ b: FloatPointer, into target: Target) {
    var (s00, s01) = (Lanes.zero, Lanes.zero)
    var (s10, s11) = (Lanes.zero, Lanes.zero)
    var (s20, s21) = (Lanes.zero, Lanes.zero)
    var (s30, s31) = (Lanes.zero, Lanes.zero)
    var (s40, s41) = (Lanes.zero, Lanes.zero)
    var (s50, s51) = (Lanes.zero, Lanes.zero)
    var (s60, s61) = (Lanes.zero, Lanes.zero)
    var (s70, s71) = (Lanes.zero, Lanes.zero)
    let row = a.row
    var x = a.start
    var b = UnsafeRawPointer(b).assumingMemoryBound(to: Lanes.self)
    for _ in 0..<depth {
      let (b0, b1) = (b[0], b[1])
      let x0 = Lanes(repeating: x[0])
      s00 = s00.addingProduct(x0, b0)
      s01 = s01.addingProduct(x0, b1)
      let x1 = Lanes(repeating: x[row])
      s10 = s10.addingProduct(x1, b0)
      s11 = s11.addingProduct(x1, b1)
      let x2 = Lanes(repeating: x[2 &* row])
      s20 = s20.addingProduct(x2, b0)
      s21 = s21.addingProduct(x2, b1)
      let x3 = Lanes(repeating: x[3 &* row])
      s30 = s30.addingProduct(x3, b0)
      s31 = s31.addingProduct(x3, b1)
      let x4 = Lanes(repeating: x[4 &* row])
      s40 = s40.addingProduct(x4, b0)
      s41 = s41.addingProduct(x4, b1)
      let x5 = Lanes(repeating: x[5 &* row])
      s50 = s50.addingProduct(x5, b0)
      s51 = s51.addingProduct(x5, b1)
      let x6 = Lanes(repeating: x[6 &* row])
      s60 = s60.addingProduct(x6, b0)
      s61 = s61.addingProduct(x6, b1)
      let x7 = Lanes(repeating: x[7 &* row])
      s70 = s70.addingProduct(x7, b0)
      s71 = s71.addingProduct(x7, b1)
      x += a.step
      b += 2
    }
    target.put(s00, 0, 0)
    target.put(s01, 0, 1)
    target.put(s10, 1, 0)
    target.put(s11, 1, 1)
    target.put(s20, 2, 0)
    target.put(s21, 2, 1)
    target.put(s30, 3, 0)
    target.put(s31, 3, 1)
    target.put(s40, 4, 0)
    target.put(s41, 4, 1)
    target.put(s50, 5, 0)
    target.put(s51, 5, 1)
    target.put(s60, 6, 0)
    target.put(s61, 6, 1)
    target.put(s70, 7, 0)
    target.put(s71, 7, 1)
  }

  private static func multiply8x16(_ depth: Int, _ a: Operand, _ b: FloatPointer, into target: Target) {
    var s00 = Lanes.zero
    var s10 = Lanes.zero
    var s20 = Lanes.zero
    var s30 = Lanes.zero
    var s40 = Lanes.zero
    var s50 = Lanes.zero
    var s60 = Lanes.zero
    var s70 = Lanes.zero
    let row = a.row
    var x = a.start
    var b = UnsafeRawPointer(b).assumingMemoryBound(to: Lanes.self)
    for _ in 0..<depth {
      let b0 = b[0]
      let x0 = Lanes(repeating: x[0])
      s00 = s00.addingProduct(x0, b0)
      let x1 = Lanes(repeating: x[row])
      s10 = s10.addingProduct(x1, b0)
      let x2 = Lanes(repeating: x[2 &* row])
      s20 = s20.addingProduct(x2, b0)
      let x3 = Lanes(repeating: x[3 &* row])
      s30 = s30.addingProduct(x3, b0)
      let x4 = Lanes(repeating: x[4 &* row])
      s40 = s40.addingProduct(x4, b0)
      let x5 = Lanes(repeating: x[5 &* row])
      s50 = s50.addingProduct(x5, b0)
      let x6 = Lanes(repeating: x[6 &* row])
      s60 = s60.addingProduct(x6, b0)
      let x7 = Lanes(repeating: x[7 &* row])
      s70 = s70.addingProduct(x7, b0)
      x += a.step
      b += 1
    }
    target.put(s00, 0, 0)
    target.put(s10, 1, 0)
    target.put(s20, 2, 0)
    target.put(s30, 3, 0)
    target.put(s40, 4, 0)
    target.put(s50, 5, 0)
    target.put(s60, 6, 0)
    target.put(s70, 7, 0)
  }

  private static func multiply6x16(_ depth: Int, _ a: Operand, _ b: FloatPointer, into target: Target) {
    var s00 = Lanes.zero
    var s10 = Lanes.zero
    var s20 = Lanes.zero
    var s30 = Lanes.zero
    var s40 = Lanes.zero
    var s50 = Lanes.zero
    let row = a.row
    var x = a.start
    var b = UnsafeRawPointer(b).assumingMemoryBound(to: Lanes.self)
    for _ in 0..<depth {
      let b0 = b[0]
      let x0 = Lanes(repeating: x[0])
      s00 = s00.addingProduct(x0, b0)
      let x1 = Lanes(repeating: x[row])
      s10 = s10.addingProduct(x1, b0)
      let x2 = Lanes(repeating: x[2 &* row])
      s20 = s20.addingProduct(x2, b0)
      let x3 = Lanes(repeating: x[3 &* row])
      s30 = s30.addingProduct(x3, b0)
      let x4 = Lanes(repeating: x[4 &* row])
      s40 = s40.addingProduct(x4, b0)
      let x5 = Lanes(repeating: x[5 &* row])
      s50 = s50.addingProduct(x5, b0)
      x += a.step
      b += 1
    }
    target.put(s00, 0, 0)
    target.put(s10, 1, 0)
    target.put(s20, 2, 0)
    target.put(s30, 3, 0)
    target.put(s40, 4, 0)
    target.put(s50, 5, 0)
  }

}
