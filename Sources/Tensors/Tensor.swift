/// A contiguous row-major array on a backend. A value: copies share the storage.
///
/// Reshape and leading-dimension slices are views; everything else is an op.
package struct Tensor {
  package let storage: any Storage
  /// Where this view begins, in elements.
  package let offset: Int
  package let shape: [Int]
  package let dtype: DType
  /// Where the gradient of this tensor gathers; nil when none is asked for.
  package var slot: GradientSlot?

  /// A view of `storage` that begins `offset` elements in.
  package init(
    storage: any Storage, offset: Int = 0, shape: [Int], dtype: DType = .float32, slot: GradientSlot? = nil
  ) {
    self.storage = storage
    self.offset = offset
    self.shape = shape
    self.dtype = dtype
    self.slot = slot
    precondition(
      (offset + count) * dtype.size <= storage.byteCount,
      "view of shape \(shape) at \(offset) leaves a storage of \(storage.byteCount) bytes")
  }

  package var backend: any Backend { storage.backend }

  /// Number of elements.
  package var count: Int { shape.reduce(1, *) }

  /// Size of the first dimension.
  package var rows: Int { shape.first ?? 1 }

  /// Elements behind one index of the first dimension.
  package var columns: Int { shape.dropFirst().reduce(1, *) }

  /// The same elements under another shape.
  package func reshaped(_ shape: [Int]) -> Tensor {
    precondition(shape.reduce(1, *) == count, "cannot reshape \(self.shape) to \(shape)")
    return Tensor(storage: storage, offset: offset, shape: shape, dtype: dtype, slot: slot)
  }

  /// Rows `range` of the first dimension, as a view without a gradient.
  package func rows(_ range: Range<Int>) -> Tensor {
    precondition(range.upperBound <= rows, "rows \(range) of a tensor of shape \(shape)")
    return Tensor(
      storage: storage, offset: offset + range.lowerBound * columns,
      shape: [range.count] + shape.dropFirst(), dtype: dtype)
  }

  /// The same values, through which no gradient flows.
  package var detached: Tensor {
    Tensor(storage: storage, offset: offset, shape: shape, dtype: dtype)
  }
}
