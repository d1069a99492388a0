/// The documents of a packed batch. Tokens of all sequences lie one behind the other, `[N, …]`; a segment is a
/// run of them that sees only itself: attention, recurrent state, and convolution begin anew at its first token.
package struct Segments: Sendable {
  /// Token ranges, ascending and without gaps.
  package let ranges: [Range<Int>]

  package init(_ ranges: [Range<Int>]) { self.ranges = ranges }

  /// `count` segments of `length` tokens each.
  package init(count: Int, length: Int) {
    ranges = (0..<count).map { $0 * length..<($0 + 1) * length }
  }

  /// Tokens in all.
  package var tokenCount: Int { ranges.last?.upperBound ?? 0 }
}

/// What is derived once from what stands still, for a batch or for as long as a model lives: in host memory or a backend's
/// own, in whatever form its kernels read.
package class Tables {
  private var made: [AnyHashable: Any] = [:]

  package init() {}

  /// The table of this name, made at its first use.
  package final func table<Table>(_ name: some Hashable, make: () -> Table) -> Table {
    if let known = made[name] as? Table { return known }
    let table = make()
    made[name] = table
    return table
  }
}

/// Where the tokens of a batch stand: made once a batch, on the device, and handed to every op that asks.
package final class Layout: Tables {
  package let segments: Segments
  /// Position of the first token of every segment; of decoding, where it began.
  package let starts: [Int]
  /// Position of every token in its document, `[N]` int32.
  package let positions: Tensor
  /// One past the largest position.
  package let positionLimit: Int
  /// Whether every segment is one token of a sequence whose positions move on, on the device, from pass to pass.
  package let isDecoding: Bool

  /// - Parameter starts: Positions of the first token of every segment, for a pass that continues caches.
  package init(_ segments: Segments, starts: [Int]? = nil, on backend: any Backend) {
    self.segments = segments
    let starts = starts ?? [Int](repeating: 0, count: segments.ranges.count)
    var positions: [Int32] = []
    positions.reserveCapacity(segments.tokenCount)
    for (start, range) in zip(starts, segments.ranges) {
      for token in 0..<range.count { positions.append(Int32(start + token)) }
    }
    positionLimit = Int(positions.max() ?? -1) + 1
    self.positions = backend.tensor(positions)
    self.starts = starts
    isDecoding = false
  }

  /// One token of every sequence a pass, again and again: whoever runs the passes moves `positions` on
  /// (``FusedKernels/advance(_:)``).
  ///
  /// - Parameters:
  ///   - lengths: tokens that each sequence has
  ///   - limit: tokens that none will come to have more of
  package init(decodingAfter lengths: [Int], limit: Int, on backend: any Backend) {
    segments = Segments(count: lengths.count, length: 1)
    starts = lengths
    positions = backend.tensor(lengths.map { Int32($0) })
    positionLimit = limit
    isDecoding = true
  }

  /// Every segment attends to itself: query i sees the keys j ≤ i, and with a window W those of i − W < j.
  package func spans(window: Int? = nil) -> AttentionSpans {
    spans(WindowName(window: window)) {
      segments.ranges.map { AttentionSpan(queries: $0, keys: $0, window: window) }
    }
  }

  /// The spans of this name, made at their first use: layers that see the same keys share them.
  package func spans(_ name: some Hashable, make: () -> [AttentionSpan]) -> AttentionSpans {
    table(name) { AttentionSpans(make()) }
  }

  private struct WindowName: Hashable {
    let window: Int?
  }
}

/// One run of queries and the keys it may see: query i of `queries` stands at key position
/// `keys.count − queries.count + i` of `keys` and sees the keys up to itself, at most `window` of them.
package struct AttentionSpan: Sendable {
  package let queries: Range<Int>
  package let keys: Range<Int>
  package let window: Int?

  package init(queries: Range<Int>, keys: Range<Int>, window: Int? = nil) {
    self.queries = queries
    self.keys = keys
    self.window = window
  }
}

/// Which keys all queries of a batch see. Spans may share keys.
package final class AttentionSpans: Tables {
  package let list: [AttentionSpan]

  package init(_ list: [AttentionSpan]) { self.list = list }
}
