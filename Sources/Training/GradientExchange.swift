import MPI
import NN
import Tensors

/// Sums gradients over micro-batches and ranks in one fixed binary tree over the global micro-batch index, so that
/// the bits are the same at any number of ranks (docs/design.md, section 5), and shares the arena out: every rank
/// owns a run of whole blocks, whose sum, update and optimizer state are its own (ZeRO stage 1).
package final class GradientExchange {
  private let world: Communicator
  private let arena: Arena
  /// First block of every rank, and the end of the last.
  private let blockStarts: [Int]
  /// Sums of 2^level micro-batches that wait for their neighbour.
  private var levels: [Tensor?] = []

  /// Elements that one rank sends to another at a time.
  private static let pieceBlocks = 64

  /// Shares the blocks of `arena` out over the ranks of `world`.
  package init(_ arena: Arena, world: Communicator) {
    self.world = world
    self.arena = arena
    blockStarts = Self.shares(arena.blockCount, of: world.size)
  }

  /// Boundaries of `count` blocks over `ranks`.
  package static func shares(_ count: Int, of ranks: Int) -> [Int] {
    (0...ranks).map { count * $0 / ranks }
  }

  /// Elements of the arena that this rank owns.
  package var slice: Range<Int> {
    blockStarts[world.rank] * Arena.blockSize..<blockStarts[world.rank + 1] * Arena.blockSize
  }

  private var backend: any Backend { arena.gradients.backend }

  /// Takes the gradients of the next micro-batch of this rank. After the last one the gradient arena holds the sum.
  package func add(isLast: Bool) {
    for level in levels.indices {
      if let left = levels[level] {
        backend.add(left, scale: 1, into: arena.gradients)
        levels[level] = nil
      } else if !isLast {
        return place(level)
      }
    }
    if !isLast { place(levels.count) }
  }

  /// Keeps what the gradient arena holds as the sum of 2^level micro-batches.
  private func place(_ level: Int) {
    let kept = backend.empty(arena.gradients.shape)
    backend.copy(arena.gradients, into: kept)
    if level == levels.count { levels.append(kept) } else { levels[level] = kept }
  }

  /// Sums over ranks; the slice of this rank in the gradient arena then holds the sum over the global batch.
  package func reduce() throws {
    guard world.size > 1 else { return }

    let ranks = world.size
    let own = blockStarts[world.rank]..<blockStarts[world.rank + 1]
    let rounds =
      ((0..<ranks).map { blockStarts[$0 + 1] - blockStarts[$0] }.max()! + Self.pieceBlocks - 1) / Self.pieceBlocks
    let received = backend.empty([ranks * Self.pieceBlocks * Arena.blockSize])
    for round in 0..<rounds {
      func piece(_ r: Int) -> Range<Int> {
        let first = min(blockStarts[r] + round * Self.pieceBlocks, blockStarts[r + 1])
        return first..<min(first + Self.pieceBlocks, blockStarts[r + 1])
      }
      let mine = piece(world.rank).count * Arena.blockSize
      try world.allToAll(
        send: arena.gradients.floats, sendCounts: (0..<ranks).map { piece($0).count * Arena.blockSize },
        sendDisplacements: (0..<ranks).map { piece($0).lowerBound * Arena.blockSize },
        receive: received.floats, receiveCounts: [Int](repeating: mine, count: ranks),
        receiveDisplacements: (0..<ranks).map { $0 * mine })
      guard mine > 0 else { continue }
      var distance = 1
      while distance < ranks {
        for left in stride(from: 0, to: ranks - distance, by: 2 * distance) {
          backend.add(
            received.rows((left + distance) * mine..<(left + distance + 1) * mine), scale: 1,
            into: received.rows(left * mine..<(left + 1) * mine))
        }
        distance *= 2
      }
      let start = (own.lowerBound + round * Self.pieceBlocks) * Arena.blockSize
      backend.copy(received.rows(0..<mine), into: arena.gradients.rows(start..<start + mine))
    }
  }

  /// The norm of the summed gradient, from the sums of squares of all blocks in their order.
  package func norm() throws -> Double {
    let sums = backend.sumsOfSquares(arena.gradients.rows(slice), blockSize: Arena.blockSize)
    let width = (0..<world.size).map { blockStarts[$0 + 1] - blockStarts[$0] }.max()!
    let padded = sums + [Double](repeating: 0, count: width - sums.count)
    return try world.allGather(padded).reduce(0, +).squareRoot()
  }

  /// Gives every rank the parameters that the others updated.
  package func shareParameters() throws {
    guard world.size > 1 else { return }
    try world.allGatherBlocks(
      arena.values.floats, blockSize: Arena.blockSize,
      counts: (0..<world.size).map { blockStarts[$0 + 1] - blockStarts[$0] },
      displacements: Array(blockStarts.dropLast()))
  }
}
