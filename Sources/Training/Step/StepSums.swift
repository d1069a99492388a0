import Tensors

/// Sums in double precision that stay on the device until they are read back, all at once: those of the losses of a number
/// of micro-batches, and of the squares of blocks of the gradient.
package struct StepSums {
  /// `[micro-batches · kinds of losses + blocks]`
  private let values: Tensor
  private let microBatches: Int
  private static let kinds = LossSums.names.count

  /// Sums that nobody has written yet.
  package init(microBatches: Int, blocks: Int = 0, on backend: any Backend) {
    self.microBatches = microBatches
    values = backend.empty([microBatches * Self.kinds + blocks], .float64)
  }

  /// The sums of the losses of one micro-batch, in the order of ``LossSums/names``.
  package func losses(of microBatch: Int) -> Tensor {
    values.rows(microBatch * Self.kinds..<(microBatch + 1) * Self.kinds)
  }

  /// The sums of squares of the blocks.
  package var squares: Tensor { values.rows(microBatches * Self.kinds..<values.count) }

  /// Waits for all that was asked of the device, and brings everything down.
  package func readBack() -> (losses: [LossSums], squares: [Double]) {
    let all = values.toDoubles()
    let losses = (0..<microBatches).map { LossSums(values: all[$0 * Self.kinds..<($0 + 1) * Self.kinds]) }
    return (losses, Array(all[(microBatches * Self.kinds)...]))
  }
}
