import Tensors

/// What kernels on the host look up of a layout, made once a batch.
enum TableName: Hashable {
  case places, firstChunks, queryBlocks
}

/// The segment that a token belongs to.
struct TokenPlace {
  /// Its first token, and the one behind its last.
  let start: Int
  let end: Int
  /// Its index.
  let segment: Int
}

extension CPUBackend {
  /// Tokens of one chunk of a recurrence.
  static let chunkLength = 64

  /// The place of every token.
  func places(_ layout: Layout) -> [TokenPlace] {
    layout.table(TableName.places) {
      layout.segments.ranges.enumerated().flatMap { index, range in
        repeatElement(TokenPlace(start: range.lowerBound, end: range.upperBound, segment: index), count: range.count)
      }
    }
  }

  /// The ordinal of the first chunk of every segment, and behind them how many chunks there are; a segment's last chunk
  /// may be short.
  func firstChunks(_ layout: Layout) -> [Int] {
    layout.table(TableName.firstChunks) {
      layout.segments.ranges.reduce(into: [0]) { firsts, range in
        firsts.append(firsts[firsts.count - 1] + (range.count + Self.chunkLength - 1) / Self.chunkLength)
      }
    }
  }

  /// Room for the states at the starts of all chunks, `[chunks, H, K, V]`.
  func chunkStates(_ layout: Layout, _ q: Tensor, _ v: Tensor) -> Tensor {
    empty([firstChunks(layout)[layout.segments.ranges.count], q.shape[1], q.shape[2], v.shape[2]])
  }
}
