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

  package func remember(_ x: Tensor, layout: Layout, in history: Tensor) {
    let taps = history.shape[1]
    let rows = history.reshaped([history.rows * taps, history.shape[2]])
    for (sequence, range) in layout.segments.ranges.enumerated() where !range.isEmpty {
      let first = sequence * taps
      let fresh = min(range.count, taps)
      for row in first..<first + taps - fresh {
        copy(rows.rows(row + fresh..<row + fresh + 1), into: rows.rows(row..<row + 1))
      }
      copy(
        x.rows(range.upperBound - fresh..<range.upperBound), into: rows.rows(first + taps - fresh..<first + taps))
    }
  }

  package func storeRows(_ x: Tensor, at positions: Tensor, in cache: Tensor) {
    let room = cache.shape[1]
    let moves = positions.toIntegers().enumerated().map { sequence, position in
      RowMove(from: sequence, to: sequence * room + Int(position) % room, count: 1)
    }
    copyRows(x, into: cache.reshaped([cache.rows * room] + cache.shape.dropFirst(2)), moves)
  }

  package func attendCache(_ q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, into o: Tensor) {
    let room = keys.shape[1]
    let spans = positions.toIntegers().enumerated().map { sequence, position in
      let first = sequence * room
      return AttentionSpan(
        queries: sequence..<sequence + 1, keys: first..<first + min(Int(position) + 1, room))
    }
    func rows(_ cache: Tensor) -> Tensor { cache.reshaped([cache.rows * room] + cache.shape.dropFirst(2)) }
    attend(
      q, rows(keys), rows(values), spans: AttentionSpans(spans), into: o, logSums: empty([q.rows, q.shape[1]]))
  }

  package func advance(_ positions: Tensor) {
    positions.toIntegers().map { $0 + 1 }.withUnsafeBytes { upload($0, into: positions).wait() }
  }

  package func chooseTokens(_ logits: Tensor, _ sampling: Sampling, uniforms: Tensor, into tokens: Tensor) {
    let (values, numbers) = (logits.toArray(), uniforms.toArray())
    let size = logits.columns
    let chosen = (0..<logits.rows).map { row in
      sampling.token(of: Array(values[row * size..<(row + 1) * size]), uniform: numbers[row]).map { Int32($0) } ?? -1
    }
    chosen.withUnsafeBytes { upload($0, into: tokens).wait() }
  }
}
