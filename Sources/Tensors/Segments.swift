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
