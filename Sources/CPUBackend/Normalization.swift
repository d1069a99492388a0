import Tensors

extension CPUBackend {
  package func normalize(
    _ x: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor
  ) {
    let size = weight.count
    let (px, w, py, inv) = (x.floats, weight.floats, y.floats, inverse.floats)
    forEachSlice(rows: x.count / size, columns: size) { rows in
      for n in rows {
        let row = px + n * size
        let scale = 1 / (dot(row, row, size) / Float(size) + epsilon).squareRoot()
        inv[n] = scale
        let out = py + n * size
        sweep(size) { i, lanes in out.store(row.lanes(i, lanes) * scale * w.lanes(i, lanes), i, lanes) }
      }
    }
  }

  package func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, into dx: Tensor?, adds: Bool,
    dWeight: Tensor?, addsWeight: Bool
  ) {
    normalizeBackward(dy, x, weight, inverse, adds ? dx : nil, dx, dWeight, addsWeight)
  }

  package func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, onto base: Tensor, into dx: Tensor,
    dWeight: Tensor?, addsWeight: Bool
  ) {
    normalizeBackward(dy, x, weight, inverse, base, dx, dWeight, addsWeight)
  }

  /// Both gradients in one pass: rows are read once.
  private func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, _ weight: Tensor, _ inverse: Tensor, _ base: Tensor?, _ dx: Tensor?, _ dWeight: Tensor?,
    _ addsWeight: Bool
  ) {
    let size = weight.count
    let rows = x.count / size
    let (pdy, px, w, inv) = (dy.floats, x.floats, weight.floats, inverse.floats)
    let (pdx, pbase) = (dx?.floats, base?.floats)
    func row(_ n: Int, _ partial: FloatPointer?) {
      let (g, row, scale) = (pdy + n * size, px + n * size, inv[n])
      if let partial {
        sweep(size) { i, lanes in
          partial.store(
            partial.lanes(i, lanes).addingProduct(g.lanes(i, lanes), row.lanes(i, lanes) * scale), i, lanes)
        }
      }
      guard let out = pdx.map({ $0 + n * size }) else { return }
      var sum = Lanes.zero
      sweep(size) { i, lanes in
        sum = sum.addingProduct(g.lanes(i, lanes) * w.lanes(i, lanes), row.lanes(i, lanes))
      }
      let mean = sum.total * scale * scale / Float(size)
      let past = pbase.map { $0 + n * size }
      sweep(size) { i, lanes in
        let value = (g.lanes(i, lanes) * w.lanes(i, lanes) - row.lanes(i, lanes) * mean) * scale
        out.store(past.map { $0.lanes(i, lanes) + value } ?? value, i, lanes)
      }
    }
    guard let dWeight else { return forEachSlice(rows: rows, columns: size) { for n in $0 { row(n, nil) } } }
    sumBlocks(rows: rows, columns: size, into: dWeight.floats, adds: addsWeight) { row($0, $1) }
  }

  /// Calls `body(token, head, row)` for every head of every token, the rows of a dense `[N, H, size]`.
  @inline(__always)
  private func forEachHead(
    _ tokens: Int, heads: Int, _ size: Int, kernel: String = #function, _ body: (Int, Int, Int) -> Void
  ) {
    forEachSlice(rows: tokens, columns: heads * size, kernel: kernel) { tokens in
      for t in tokens {
        for h in 0..<heads { body(t, h, t * heads + h) }
      }
    }
  }

  /// Sums a contribution of every row into `out` [columns]: blocks of 256 rows on the pool, then the blocks in
  /// order, so that the bits are the same on any number of threads.
  func sumBlocks(
    rows: Int, columns: Int, into out: FloatPointer, adds: Bool, kernel: String = #function,
    _ contribute: (_ row: Int, _ partial: FloatPointer) -> Void
  ) {
    let block = 256
    let blocks = (rows + block - 1) / block
    withTemporary(max(1, blocks) * columns) { partials in
      parallel(blocks, kernel: kernel) { b in
        let partial = partials + b * columns
        partial.update(repeating: 0, count: columns)
        for row in b * block..<min(rows, (b + 1) * block) { contribute(row, partial) }
      }
      if !adds { out.update(repeating: 0, count: columns) }
      for b in 0..<blocks { axpy(1, partials + b * columns, into: out, columns) }
    }
  }

  package func gatedNormalize(
    _ x: Tensor, gate: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor
  ) {
    let size = weight.count
    let (px, pg, w, py, inv) = (x.floats, gate.floatRows, weight.floats, y.floats, inverse.floats)
    forEachHead(gate.rows, heads: gate.columns / size, size) { t, h, n in
      let (row, gate, out) = (px + n * size, pg[t] + h * size, py + n * size)
      let scale = 1 / (dot(row, row, size) / Float(size) + epsilon).squareRoot()
      inv[n] = scale
      sweep(size) { i, lanes in
        let z = gate.lanes(i, lanes)
        out.store(row.lanes(i, lanes) * scale * w.lanes(i, lanes) * (z * z.sigmoid), i, lanes)
      }
    }
  }

  package func gatedNormalizeBackward(
    _ dy: Tensor, _ x: Tensor, gate: Tensor, weight: Tensor, inverse: Tensor, dx: Tensor, dGate: Tensor,
    dWeight: Tensor?, addsWeight: Bool
  ) {
    let size = weight.count
    let rows = x.count / size
    let (pdy, px, pg, w, inv) = (dy.floats, x.floats, gate.floatRows, weight.floats, inverse.floats)
    let (pdx, pdg, heads) = (dx.floats, dGate.floatRows, gate.columns / size)
    forEachHead(gate.rows, heads: heads, size) { t, h, n in
      let (g, row, gate, scale) = (pdy + n * size, px + n * size, pg[t] + h * size, inv[n])
      let (out, outGate) = (pdx + n * size, pdg[t] + h * size)
      var sum = Lanes.zero
      sweep(size) { i, lanes in
        let z = gate.lanes(i, lanes)
        let s = z.sigmoid
        let weighted = g.lanes(i, lanes) * w.lanes(i, lanes)
        let x = row.lanes(i, lanes)
        outGate.store(weighted * x * scale * s * (1 + z * (1 - s)), i, lanes)
        let inner = weighted * z * s
        out.store(inner, i, lanes)
        sum = sum.addingProduct(inner, x)
      }
      let mean = sum.total * scale * scale / Float(size)
      sweep(size) { i, lanes in
        out.store((out.lanes(i, lanes) - row.lanes(i, lanes) * mean) * scale, i, lanes)
      }
    }
    guard let dWeight else { return }
    sumBlocks(rows: rows, columns: size, into: dWeight.floats, adds: addsWeight) { n, partial in
      let (g, row, scale) = (pdy + n * size, px + n * size, inv[n])
      let gate = pg[n / heads] + n % heads * size
      sweep(size) { i, lanes in
        let z = gate.lanes(i, lanes)
        let value = g.lanes(i, lanes) * row.lanes(i, lanes) * scale * z * z.sigmoid
        partial.store(partial.lanes(i, lanes) + value, i, lanes)
      }
    }
  }

  package func siluNormalize(_ x: Tensor, epsilon: Float, into y: Tensor) {
    let size = x.shape[2]
    let (px, py) = (x.floatRows, y.floats)
    forEachHead(x.rows, heads: x.shape[1], size) { t, h, n in
      let (row, out) = (px[t] + h * size, py + n * size)
      var squares = Lanes.zero
      sweep(size) { i, lanes in
        let x = row.lanes(i, lanes)
        let a = x * x.sigmoid
        out.store(a, i, lanes)
        squares = squares.addingProduct(a, a)
      }
      let scale = 1 / (squares.total + epsilon).squareRoot()
      sweep(size) { i, lanes in out.store(out.lanes(i, lanes) * scale, i, lanes) }
    }
  }

  package func siluNormalizeBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor) {
    let size = x.shape[2]
    let (pdy, px, pdx) = (dy.floats, x.floatRows, dx.floatRows)
    forEachHead(x.rows, heads: x.shape[1], size) { t, h, n in
      let (g, row, out) = (pdy + n * size, px[t] + h * size, pdx[t] + h * size)
      var squares = Lanes.zero
      var product = Lanes.zero
      sweep(size) { i, lanes in
        let x = row.lanes(i, lanes)
        let a = x * x.sigmoid
        squares = squares.addingProduct(a, a)
        product = product.addingProduct(a, g.lanes(i, lanes))
      }
      let inverse = 1 / (squares.total + epsilon)
      let scale = inverse.squareRoot()
      let along = product.total * inverse
      sweep(size) { i, lanes in
        let x = row.lanes(i, lanes)
        let s = x.sigmoid
        let da = (g.lanes(i, lanes) - x * s * along) * scale
        out.store(da * s * (1 + x * (1 - s)), i, lanes)
      }
    }
  }

  package func normalizeLength(_ x: Tensor, epsilon: Float, into y: Tensor) {
    let size = x.shape[x.shape.count - 1]
    let (source, target) = (x.floats, y.floats)
    forEachSlice(rows: x.count / size, columns: size) { rows in
      for n in rows {
        let row = source + n * size
        scaled(1 / (dot(row, row, size) + epsilon).squareRoot(), row, into: target + n * size, size)
      }
    }
  }

  package func normalizeLengthBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor) {
    let size = x.shape[x.shape.count - 1]
    let (gradient, source, target) = (dy.floats, x.floats, dx.floats)
    forEachSlice(rows: x.count / size, columns: size) { rows in
      for n in rows {
        let (g, row, out) = (gradient + n * size, source + n * size, target + n * size)
        let inverse = 1 / (dot(row, row, size) + epsilon)
        let (scale, along) = (inverse.squareRoot(), dot(g, row, size) * inverse)
        sweep(size) { i, lanes in out.store((g.lanes(i, lanes) - row.lanes(i, lanes) * along) * scale, i, lanes) }
      }
    }
  }

  package func standardize(_ x: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor) {
    let size = x.shape[x.shape.count - 1]
    let (source, target, inv) = (x.floats, y.floats, inverse.floats)
    forEachSlice(rows: x.count / size, columns: size) { rows in
      for n in rows {
        let (row, out) = (source + n * size, target + n * size)
        var sum = Lanes.zero
        sweep(size) { i, lanes in sum += row.lanes(i, lanes) }
        let mean = sum.total / Float(size)
        var squares = Lanes.zero
        sweep(size) { i, lanes in
          // Missing lanes are no values: they must not count as −mean.
          let centered = row.lanes(i, lanes, fill: mean) - mean
          squares = squares.addingProduct(centered, centered)
        }
        inv[n] = 1 / (squares.total / Float(size) + epsilon).squareRoot()
        sweep(size) { i, lanes in out.store((row.lanes(i, lanes) - mean) * inv[n], i, lanes) }
      }
    }
  }

  package func standardizeBackward(_ dy: Tensor, y: Tensor, inverse: Tensor, into dx: Tensor) {
    let size = y.shape[y.shape.count - 1]
    let (gradient, value, target, inv) = (dy.floats, y.floats, dx.floats, inverse.floats)
    forEachSlice(rows: y.count / size, columns: size) { rows in
      for n in rows {
        let (g, row, out) = (gradient + n * size, value + n * size, target + n * size)
        var (sum, along) = (Lanes.zero, Lanes.zero)
        sweep(size) { i, lanes in
          sum += g.lanes(i, lanes)
          along = along.addingProduct(g.lanes(i, lanes), row.lanes(i, lanes))
        }
        let (mean, slope) = (sum.total / Float(size), along.total / Float(size))
        sweep(size) { i, lanes in
          out.store((g.lanes(i, lanes) - mean - row.lanes(i, lanes) * slope) * inv[n], i, lanes)
        }
      }
    }
  }
}
