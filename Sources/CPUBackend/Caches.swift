import Tensors

/// Rows in and out of the caches of generation, all sequences in one go.
extension CPUBackend {
  package func copyRows(_ x: Tensor, into y: Tensor, _ moves: [RowMove]) {
    let (source, target, columns) = (x.floatRows, y.floatRows, x.columns)
    precondition(
      columns == y.columns
        && moves.allSatisfy { $0.from >= 0 && $0.to >= 0 && $0.from + $0.count <= x.rows && $0.to + $0.count <= y.rows },
      "rows of \(x.shape) into \(y.shape)")
    parallel(moves.count) { index in
      let move = moves[index]
      for row in 0..<move.count { target[move.to + row].update(from: source[move.from + row], count: columns) }
    }
  }

  package func remember(_ x: Tensor, layout: Layout, in history: Tensor) {
    let segments = layout.segments
    let (taps, channels) = (history.shape[1], history.shape[2])
    let (source, kept) = (x.floatRows, history.floats)
    parallel(segments.ranges.count) { sequence in
      let range = segments.ranges[sequence]
      let (rows, fresh) = (kept + sequence * taps * channels, min(range.count, taps))
      for row in 0..<taps - fresh {
        (rows + row * channels).update(from: rows + (row + fresh) * channels, count: channels)
      }
      for row in 0..<fresh {
        (rows + (taps - fresh + row) * channels).update(from: source[range.upperBound - fresh + row], count: channels)
      }
    }
  }
}
