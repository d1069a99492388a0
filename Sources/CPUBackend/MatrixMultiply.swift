import COpenBLAS
import Tensors

/// A row-major matrix in host memory: where it begins, the distance between rows, and whether it is read as its
/// transpose.
struct Matrix {
  let start: FloatPointer
  let stride: Int
  private(set) var isTransposed = false

  init(_ start: FloatPointer, stride: Int, isTransposed: Bool = false) {
    self.start = start
    self.stride = stride
    self.isTransposed = isTransposed
  }

  var transposed: Matrix { Matrix(start, stride: stride, isTransposed: !isTransposed) }
}

/// c [rows, columns] = alpha · a b + beta · c, on the calling thread.
@inline(__always)
func gemm(
  _ rows: Int, _ columns: Int, _ inner: Int, _ alpha: Float, _ a: Matrix, _ b: Matrix, _ beta: Float,
  _ c: Matrix
) {
  if rows == 0 || columns == 0 { return }
  if rows == 1 && !a.isTransposed {
    cblas_sgemv(
      CblasRowMajor, b.isTransposed ? CblasNoTrans : CblasTrans, Int32(b.isTransposed ? columns : inner),
      Int32(b.isTransposed ? inner : columns), alpha, b.start, Int32(b.stride), a.start, 1, beta, c.start, 1)
    return
  }
  cblas_sgemm(
    CblasRowMajor, a.isTransposed ? CblasTrans : CblasNoTrans, b.isTransposed ? CblasTrans : CblasNoTrans,
    Int32(rows), Int32(columns), Int32(inner), alpha, a.start, Int32(a.stride), b.start, Int32(b.stride),
    beta, c.start, Int32(c.stride))
}

/// Solves (I + L) x = b in place for `columns` right-hand sides, L strictly lower [size, size]; the transposed
/// system when asked.
@inline(__always)
func solveUnitLower(
  _ size: Int, _ columns: Int, _ lower: Matrix, transposed: Bool, _ b: Matrix
) {
  cblas_strsm(
    CblasRowMajor, CblasLeft, CblasLower, transposed ? CblasTrans : CblasNoTrans, CblasUnit, Int32(size),
    Int32(columns), 1, lower.start, Int32(lower.stride), b.start, Int32(b.stride))
}

extension CPUBackend {
  package func multiply(
    _ a: Tensor, transposed aTransposed: Bool, _ b: Tensor, transposed bTransposed: Bool, into c: Tensor,
    alpha: Float, adds: Bool
  ) {
    let (aRows, aColumns) = (a.rows, a.columns)
    let (bRows, bColumns) = (b.rows, b.columns)
    let rows = aTransposed ? aColumns : aRows
    let inner = aTransposed ? aRows : aColumns
    let columns = bTransposed ? bRows : bColumns
    precondition(
      inner == (bTransposed ? bColumns : bRows) && c.rows == rows && c.columns == columns,
      "multiply of \(a.shape)\(aTransposed ? "ᵀ" : "") and \(b.shape)\(bTransposed ? "ᵀ" : "") into \(c.shape)")
    operations += 2 * Double(rows) * Double(columns) * Double(inner)
    precondition(b.dtype == .float32 || !aTransposed, "a transposed matrix times weights in bfloat16")
    if b.dtype == .bfloat16 && bTransposed && rows <= Self.fewRows {
      return streamWeights(
        a.floatRows, b.bfloats, into: c.floatRows, rows: rows, columns: columns, inner: inner, alpha: alpha, adds: adds)
    }
    if b.dtype == .float32 && (min(rows, columns) < Self.fewRows || inner == 0) {
      return multiplyNarrow(
        a.floatRows.matrix(isTransposed: aTransposed), b.floatRows.matrix(isTransposed: bTransposed), into: c.floatRows,
        rows, columns, inner, alpha: alpha, adds: adds)
    }
    packedProduct(a, transposed: aTransposed, b, transposed: bTransposed, into: c, alpha: alpha, adds: adds)
      .run(on: self, kernel: "multiply")
  }

  /// Rows up to which a product reads each weight once for all of them, at the speed of memory.
  private static let fewRows = 16

  private func packedProduct(
    _ a: Tensor, transposed aTransposed: Bool, _ b: Tensor, transposed bTransposed: Bool, into c: Tensor, alpha: Float,
    adds: Bool
  ) -> PackedProduct {
    PackedProduct(
      rows: c.rows, columns: c.columns, inner: aTransposed ? a.rows : a.columns,
      a: a.floatRows.matrix(isTransposed: aTransposed),
      b: b.dtype == .bfloat16
        ? .bfloat16(b.bfloats, stride: b.columns, isTransposed: bTransposed)
        : .float32(b.floatRows.matrix(isTransposed: bTransposed)),
      c: c.floatRows, alpha: alpha, adds: adds)
  }

  /// Products of few rows or columns, which are not worth packing: OpenBLAS, in tiles of the longer side.
  private func multiplyNarrow(
    _ a: Matrix, _ b: Matrix, into c: Rows, _ rows: Int, _ columns: Int, _ inner: Int, alpha: Float, adds: Bool
  ) {
    let cutsRows = rows >= columns
    let tile = Self.tile(cutsRows ? rows : columns)
    parallel((max(rows, columns) + tile - 1) / tile, kernel: "multiply") { t in
      let first = t * tile
      let (row, column) = cutsRows ? (first, 0) : (0, first)
      gemm(
        cutsRows ? min(tile, rows - first) : rows, cutsRows ? columns : min(tile, columns - first), inner, alpha,
        Matrix(a.start + row * (a.isTransposed ? 1 : a.stride), stride: a.stride, isTransposed: a.isTransposed),
        Matrix(b.start + column * (b.isTransposed ? b.stride : 1), stride: b.stride, isTransposed: b.isTransposed),
        adds ? 1 : 0, Matrix(c[row] + column, stride: c.stride))
    }
  }

  /// With the bias added while a tile is in cache, where all weights lie together.
  package func project(_ x: Tensor, _ weights: [Tensor], biases: [Tensor], onto base: Tensor?, into y: Tensor) {
    guard weights.count == 1, biases.count == 1, base == nil, min(y.rows, y.columns) > Self.fewRows else {
      return composedProject(x, weights, biases: biases, onto: base, into: y)
    }
    operations += 2 * Double(y.rows) * Double(weights[0].count)
    let (rows, bias) = (y.floatRows, biases[0].floats)
    packedProduct(x, transposed: false, weights[0], transposed: true, into: y, alpha: 1, adds: false)
      .run(on: self, kernel: "multiply") { tile, columns in
        for n in tile {
          axpy(1, bias + columns.lowerBound, into: rows[n] + columns.lowerBound, columns.count)
        }
      }
  }

  /// Rows or columns of one tile: an eighth of the whole, in steps of 64, at least 64. Depends on the shape alone.
  private static func tile(_ size: Int) -> Int {
    let eighth = (size + 7) / 8
    return max(64, (eighth + 63) / 64 * 64)
  }

  package func addBias(_ bias: Tensor, to y: Tensor) {
    let (b, p, columns) = (bias.floats, y.floatRows, y.columns)
    forEachSlice(rows: y.rows, columns: columns) { rows in
      for n in rows { axpy(1, b, into: p[n], columns) }
    }
  }

  package func sumRows(_ x: Tensor, into sums: Tensor, adds: Bool) {
    let (p, columns, rows, out) = (x.floats, x.columns, x.rows, sums.floats)
    let strip = 64
    parallel((columns + strip - 1) / strip) { s in
      let first = s * strip
      let width = min(strip, columns - first)
      if !adds { (out + first).update(repeating: 0, count: width) }
      for n in 0..<rows { axpy(1, p + n * columns + first, into: out + first, width) }
    }
  }
}
