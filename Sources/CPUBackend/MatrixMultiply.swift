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
    if b.dtype == .bfloat16 {
      precondition(!aTransposed, "a transposed matrix times weights in bfloat16")
      return multiplyWide(
        a.floatRows, b.bfloats, transposed: bTransposed, into: c.floatRows, rows: rows, columns: columns, inner: inner,
        alpha: alpha, adds: adds)
    }
    let (pa, pb, pc) = (a.floatRows, b.floatRows, c.floatRows)
    let beta: Float = adds ? 1 : 0
    // Rows of c follow rows of a, its columns those of b; the longer side is cut.
    let cutsRows = rows >= columns
    let tile = Self.tile(cutsRows ? rows : columns)
    parallel((max(rows, columns) + tile - 1) / tile) { t in
      let first = t * tile
      let (row, column) = cutsRows ? (first, 0) : (0, first)
      gemm(
        cutsRows ? min(tile, rows - first) : rows, cutsRows ? columns : min(tile, columns - first), inner,
        alpha,
        Matrix(aTransposed ? pa.start + row : pa[row], stride: pa.stride, isTransposed: aTransposed),
        Matrix(bTransposed ? pb[column] : pb.start + column, stride: pb.stride, isTransposed: bTransposed),
        beta, Matrix(pc[row] + column, stride: pc.stride))
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
