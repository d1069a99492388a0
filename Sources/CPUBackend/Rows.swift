import Tensors

/// The rows of a float32 tensor in host memory, which may be columns of wider rows.
struct Rows {
  let start: FloatPointer
  /// Elements from one row to the next.
  let stride: Int

  @inline(__always)
  subscript(_ row: Int) -> FloatPointer { start + row * stride }

  var matrix: Matrix { Matrix(start, stride: stride) }

  func matrix(isTransposed: Bool) -> Matrix { Matrix(start, stride: stride, isTransposed: isTransposed) }
}

extension Tensor {
  /// The rows of a float32 tensor, of views of columns too.
  var floatRows: Rows { Rows(start: floatsOfColumns, stride: rowStride) }
}

extension CPUBackend {
  /// Calls `body(row, elements)` for pieces of the tensors' rows: whole slices of dense tensors, else row by row. `body` is
  /// given pointers into each of `x` at the same place.
  @inline(__always)
  func forEachPiece(
    _ x: Tensor, _ y: Tensor, kernel: String = #function, _ body: (FloatPointer, FloatPointer, Int) -> Void
  ) {
    if x.isDense && y.isDense {
      let (source, target) = (x.floats, y.floats)
      return forEachSlice(count: x.count, kernel: kernel) { offset, count in
        body(source + offset, target + offset, count)
      }
    }
    let (source, target, columns) = (x.floatRows, y.floatRows, x.columns)
    forEachSlice(rows: x.rows, columns: columns, kernel: kernel) { rows in
      for n in rows { body(source[n], target[n], columns) }
    }
  }
}
