/// Rows that go from one tensor to another.
package struct RowMove: Sendable {
  /// The first row of the source, and of the target.
  package let from: Int
  package let to: Int
  package let count: Int

  package init(from: Int, to: Int, count: Int) { (self.from, self.to, self.count) = (from, to, count) }
}

/// What generation keeps of tokens, composed of the core.
extension Backend {
  package func copyRows(_ x: Tensor, into y: Tensor, _ moves: [RowMove]) {
    for move in moves where move.count > 0 {
      copy(x.rows(move.from..<move.from + move.count), into: y.rows(move.to..<move.to + move.count))
    }
  }

  package func remember(_ x: Tensor, _ segments: Segments, in history: Tensor) {
    let taps = history.shape[1]
    let rows = history.reshaped([history.rows * taps, history.shape[2]])
    for (sequence, range) in segments.ranges.enumerated() where !range.isEmpty {
      let first = sequence * taps
      let fresh = min(range.count, taps)
      for row in first..<first + taps - fresh {
        copy(rows.rows(row + fresh..<row + fresh + 1), into: rows.rows(row..<row + 1))
      }
      copy(
        x.rows(range.upperBound - fresh..<range.upperBound), into: rows.rows(first + taps - fresh..<first + taps))
    }
  }
}
