import Tensors

extension CPUBackend {
  package func fill(_ x: Tensor, with value: Float) {
    forEachPiece(x, x) { x, _, count in x.update(repeating: value, count: count) }
  }

  package func copy(_ x: Tensor, into y: Tensor) {
    precondition(x.count == y.count, "copy of \(x.shape) into \(y.shape)")
    if x.dtype == .bfloat16 {
      let (source, target) = (x.bfloats, y.floats)
      return forEachSlice(count: x.count) { offset, count in widen(source + offset, into: target + offset, count) }
    }
    if y.dtype == .bfloat16 {
      let (source, target) = (x.floats, y.bfloats)
      return forEachSlice(count: x.count) { offset, count in round(source + offset, into: target + offset, count) }
    }
    forEachPiece(x, y) { source, target, count in target.update(from: source, count: count) }
  }

  package func add(_ x: Tensor, scale: Float, into y: Tensor) {
    precondition(x.count == y.count, "add of \(x.shape) into \(y.shape)")
    forEachPiece(x, y) { source, target, count in axpy(scale, source, into: target, count) }
  }

  package func sum(_ x: Tensor, _ y: Tensor, into out: Tensor) {
    precondition(x.count == y.count && y.count == out.count, "sum of \(x.shape) and \(y.shape)")
    let (a, b, o) = (x.floats, y.floats, out.floats)
    forEachSlice(count: x.count) { offset, count in
      sweep(count) { i, n in
        let i = i + offset
        o.store(a.lanes(i, n) + b.lanes(i, n), i, n)
      }
    }
  }

  func silu(_ x: Tensor, into y: Tensor) {
    forEachPiece(x, y) { source, target, count in
      sweep(count) { i, n in
        let x = source.lanes(i, n)
        target.store(x * x.sigmoid, i, n)
      }
    }
  }

  func siluBackward(_ dy: Tensor, _ x: Tensor, into dx: Tensor) {
    let (gradient, source, target, columns) = (dy.floatRows, x.floatRows, dx.floatRows, x.columns)
    forEachSlice(rows: x.rows, columns: columns) { rows in
      for t in rows {
        let (gradient, source, target) = (gradient[t], source[t], target[t])
        sweep(columns) { i, n in
          let x = source.lanes(i, n)
          let s = x.sigmoid
          target.store(gradient.lanes(i, n) * s * (1 + x * (1 - s)), i, n)
        }
      }
    }
  }

  package func swiGLU(gate: Tensor, up: Tensor, into y: Tensor) {
    let (g, u, y, columns) = (gate.floatRows, up.floatRows, y.floatRows, y.columns)
    forEachSlice(rows: gate.rows, columns: columns) { rows in
      for t in rows {
        let (g, u, y) = (g[t], u[t], y[t])
        sweep(columns) { i, n in
          let gate = g.lanes(i, n)
          y.store(gate * gate.sigmoid * u.lanes(i, n), i, n)
        }
      }
    }
  }

  package func swiGLUBackward(_ dy: Tensor, gate: Tensor, up: Tensor, dGate: Tensor, dUp: Tensor) {
    let (gradient, g, u, columns) = (dy.floatRows, gate.floatRows, up.floatRows, dy.columns)
    let (dg, du) = (dGate.floatRows, dUp.floatRows)
    forEachSlice(rows: dy.rows, columns: columns) { rows in
      for t in rows {
        let (gradient, g, u, dg, du) = (gradient[t], g[t], u[t], dg[t], du[t])
        sweep(columns) { i, n in
          let gate = g.lanes(i, n)
          let dy = gradient.lanes(i, n)
          let s = gate.sigmoid
          du.store(dy * gate * s, i, n)
          dg.store(dy * u.lanes(i, n) * s * (1 + gate * (1 - s)), i, n)
        }
      }
    }
  }

  /// Ends the process where an id has no row in a table: what lies behind would be read, or written. Not a precondition,
  /// since those say nothing in a release build.
  func requireRows(_ ids: Tensor, below rows: Int, allowsNegative: Bool = false, _ what: String) {
    let (values, count) = (ids.integers, ids.count)
    for n in 0..<count where Int(values[n]) >= rows || (values[n] < 0 && !allowsNegative) {
      fatalError("\(what): id \(values[n]), number \(n) of \(count), of a table of \(rows) rows")
    }
  }

  package func gather(_ table: Tensor, _ ids: Tensor, into out: Tensor) {
    requireRows(ids, below: table.rows, "gather")
    if table.dtype == .bfloat16 {
      let (table, ids, columns, out) = (table.bfloats, ids.integers, table.columns, (out.floats, ids.count))
      return forEachSlice(rows: out.1, columns: columns) { rows in
        for n in rows { widen(table + Int(ids[n]) * columns, into: out.0 + n * columns, columns) }
      }
    }
    let (table, ids, columns, out) = (table.floats, ids.integers, table.columns, (out.floats, ids.count))
    forEachSlice(rows: out.1, columns: columns) { rows in
      for n in rows {
        (out.0 + n * columns).update(from: table + Int(ids[n]) * columns, count: columns)
      }
    }
  }

  package func scatterAdd(_ x: Tensor, _ ids: Tensor, into table: Tensor) {
    requireRows(ids, below: table.rows, "scatterAdd")
    let (x, ids, columns, count, table) = (x.floats, ids.integers, table.columns, ids.count, table.floats)
    // Column strips, so that a repeated id is added in the order of n on any number of threads.
    let strip = max(laneCount, (columns / 8 + laneCount - 1) / laneCount * laneCount)
    parallel((columns + strip - 1) / strip) { s in
      let first = s * strip
      let width = min(strip, columns - first)
      for n in 0..<count {
        axpy(1, x + n * columns + first, into: table + Int(ids[n]) * columns + first, width)
      }
    }
  }

  package func rotate(
    _ x: Tensor, layout: Layout, angles: RotaryAngles, direction: Float, into y: Tensor
  ) {
    let (heads, size) = (x.shape[1], x.shape[2])
    let half = size / 2
    let (source, target, rows) = (x.floatRows, y.floatRows, x.rows)
    let tables = rotaryTables(upTo: max(0, layout.positionLimit - 1), half: half, angles: angles)
    let (cosines, sines) = (tables.cosines, tables.sines)
    let positions = layout.positions.integers
    forEachSlice(rows: rows, columns: heads * size) { range in
      for n in range {
        let (c, s) = (cosines + Int(positions[n]) * half, sines + Int(positions[n]) * half)
        for h in 0..<heads {
          let (source, target) = (source[n] + h * size, target[n] + h * size)
          sweep(half) { i, lanes in
            let (a, b) = (source.lanes(i, lanes), source.lanes(half + i, lanes))
            let (cosine, sine) = (c.lanes(i, lanes), s.lanes(i, lanes) * direction)
            target.store(a * cosine - b * sine, i, lanes)
            target.store(b * cosine + a * sine, half + i, lanes)
          }
        }
      }
    }
  }
}
