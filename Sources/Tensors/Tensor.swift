/// A row-major array on a backend, contiguous but for views of columns. A value: copies share the storage.
///
/// Reshape, leading-dimension slices, and columns of a matrix are views; everything else is an op.
package struct Tensor {
  package let storage: any Storage
  /// Where this view begins, in elements.
  package let offset: Int
  package let shape: [Int]
  package let dtype: DType
  /// Elements from one row of the first dimension to the next, where this is a view of columns of wider rows.
  private let wideStride: Int?
  /// Where the gradient of this tensor gathers; nil when none is asked for.
  package var slot: GradientSlot?

  /// A view of `storage` that begins `offset` elements in.
  package init(
    storage: any Storage, offset: Int = 0, shape: [Int], dtype: DType = .float32, slot: GradientSlot? = nil,
    stride: Int? = nil
  ) {
    self.storage = storage
    self.offset = offset
    self.shape = shape
    self.dtype = dtype
    self.slot = slot
    wideStride = stride
    let extent = stride.map { rows == 0 ? 0 : (rows - 1) * $0 + columns } ?? count
    precondition(
      (offset + extent) * dtype.size <= storage.byteCount,
      "view of shape \(shape) at \(offset) leaves a storage of \(storage.byteCount) bytes")
  }

  package var backend: any Backend { storage.backend }

  /// Number of elements.
  package var count: Int { shape.reduce(1, *) }

  /// Size of the first dimension.
  package var rows: Int { shape.first ?? 1 }

  /// Elements behind one index of the first dimension.
  package var columns: Int { shape.dropFirst().reduce(1, *) }

  /// Elements from one row of the first dimension to the next.
  package var rowStride: Int { wideStride ?? columns }

  /// Whether the elements lie one behind the other: all tensors but views of columns.
  package var isDense: Bool { wideStride == nil }

  /// The same elements under another shape; of a view of columns, whose rows stay what they are.
  package func reshaped(_ shape: [Int]) -> Tensor {
    precondition(
      shape.reduce(1, *) == count && (isDense || shape.first == rows), "cannot reshape \(self.shape) to \(shape)")
    return Tensor(storage: storage, offset: offset, shape: shape, dtype: dtype, slot: slot, stride: wideStride)
  }

  /// Columns `range` of a matrix `[N, C]`, as a view without a gradient, `[N, range.count]`. Kernels of backends that read
  /// such in place take it (``Backend/takesColumnViews``).
  package func columns(_ range: Range<Int>) -> Tensor {
    precondition(shape.count == 2 && range.upperBound <= columns, "columns \(range) of a tensor of shape \(shape)")
    return Tensor(
      storage: storage, offset: offset + range.lowerBound, shape: [rows, range.count], dtype: dtype,
      stride: range.count == columns ? wideStride : rowStride)
  }

  /// Rows `range` of the first dimension, as a view without a gradient.
  package func rows(_ range: Range<Int>) -> Tensor {
    precondition(range.upperBound <= rows, "rows \(range) of a tensor of shape \(shape)")
    return Tensor(
      storage: storage, offset: offset + range.lowerBound * rowStride,
      shape: [range.count] + shape.dropFirst(), dtype: dtype, stride: wideStride)
  }

  /// The same values, through which no gradient flows.
  package var detached: Tensor {
    Tensor(storage: storage, offset: offset, shape: shape, dtype: dtype, stride: wideStride)
  }
}
