import Tensors

/// A causal convolution with four taps a channel and SiLU behind it: what Mamba2, DeltaNet and Gated DeltaNet put in
/// front of their recurrences. Weights lie `[channel, tap]`, the last tap for the current token.
extension CPUBackend {
  package func shiftTokens(_ x: Tensor, layout: Layout, history: Tensor?, into y: Tensor) {
    let (source, target, channels, past) = (x.floats, y.floats, x.columns, history?.floats)
    let places = places(layout)
    forEachSlice(rows: x.rows, columns: channels) { rows in
      for t in rows {
        let (row, out) = (source + t * channels, target + t * channels)
        let before =
          t > places[t].start ? row - channels : past.map { $0 + places[t].segment * channels }
        sweep(channels) { c, n in out.store((before?.lanes(c, n) ?? Lanes.zero) - row.lanes(c, n), c, n) }
      }
    }
  }

  package func shiftTokensBackward(_ dy: Tensor, layout: Layout, into dx: Tensor) {
    let (gradient, target, channels) = (dy.floats, dx.floats, dy.columns)
    let places = places(layout)
    forEachSlice(rows: dy.rows, columns: channels) { rows in
      for t in rows {
        let (row, out) = (gradient + t * channels, target + t * channels)
        let hasNext = t + 1 < places[t].end
        sweep(channels) { c, n in
          out.store((hasNext ? (row + channels).lanes(c, n) : Lanes.zero) - row.lanes(c, n), c, n)
        }
      }
    }
  }

  /// Weights by tap, `[4, C]`, so that lanes are channels.
  private func withTaps(_ weight: Tensor, _ channels: Int, _ body: (FloatPointer) -> Void) {
    precondition(weight.count == 4 * channels, "a short convolution has 4 taps a channel, not \(weight.shape)")
    let source = weight.floats
    withTemporary(4 * channels) { taps in
      for c in 0..<channels {
        for w in 0..<4 { taps[w * channels + c] = source[c * 4 + w] }
      }
      body(taps)
    }
  }

  package func shortConvolve(
    _ x: Tensor, weight: Tensor, bias: Tensor?, layout: Layout, history: Tensor?, into y: Tensor
  ) {
    let channels = x.columns
    let (source, target, bias, past) = (x.floatRows, y.floats, bias?.floats, history?.floats)
    let places = places(layout)
    withTaps(weight, channels) { taps in
      forEachSlice(rows: x.rows, columns: channels) { rows in
        for t in rows {
          Self.convolve(source, taps, bias, t, places[t], history: past, channels) { c, n, u in
            (target + t * channels).store(u * u.sigmoid, c, n)
          }
        }
      }
    }
  }

  /// Calls `body(channel, lanes, u)` for all channels of one token, u before the activation.
  @inline(__always)
  private static func convolve(
    _ x: Rows, _ taps: FloatPointer, _ bias: FloatPointer?, _ t: Int, _ place: TokenPlace,
    history: FloatPointer?, _ channels: Int, _ body: (Int, Int, Lanes) -> Void
  ) {
    func row(_ back: Int) -> FloatPointer? {
      if t - back >= place.start { return x[t - back] }
      return history.map { $0 + (place.segment * 4 + t - place.start - back + 4) * channels }
    }
    let rows = (row(3), row(2), row(1), x[t])
    sweep(channels) { c, n in
      var u = bias.map { $0.lanes(c, n) } ?? Lanes.zero
      if let row = rows.0 { u = u.addingProduct(row.lanes(c, n), taps.lanes(c, n)) }
      if let row = rows.1 { u = u.addingProduct(row.lanes(c, n), (taps + channels).lanes(c, n)) }
      if let row = rows.2 { u = u.addingProduct(row.lanes(c, n), (taps + 2 * channels).lanes(c, n)) }
      body(c, n, u.addingProduct(rows.3.lanes(c, n), (taps + 3 * channels).lanes(c, n)))
    }
  }

  package func shortConvolveBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, bias: Tensor?, layout: Layout, dx: Tensor, dWeight: Tensor,
    dBias: Tensor?
  ) {
    let (channels, count) = (x.columns, x.rows)
    let (gradient, source, target, biases) = (dy.floats, x.floatRows, dx.floatRows, bias?.floats)
    let places = places(layout)
    withTaps(weight, channels) { taps in
      withTemporary(max(1, count) * channels) { du in
        forEachSlice(rows: count, columns: channels) { rows in
          for t in rows {
            Self.convolve(source, taps, biases, t, places[t], history: nil, channels) { c, n, u in
              let s = u.sigmoid
              (du + t * channels).store((gradient + t * channels).lanes(c, n) * s * (1 + u * (1 - s)), c, n)
            }
          }
        }
        forEachSlice(rows: count, columns: channels) { rows in
          for t in rows {
            let out = target[t]
            out.update(repeating: 0, count: channels)
            for ahead in 0..<4 where t + ahead < places[t].end {
              let (row, tap) = (du + (t + ahead) * channels, taps + (3 - ahead) * channels)
              sweep(channels) { c, n in
                out.store(out.lanes(c, n).addingProduct(row.lanes(c, n), tap.lanes(c, n)), c, n)
              }
            }
          }
        }
        withTemporary(4 * channels) { sums in
          sumBlocks(rows: count, columns: 4 * channels, into: sums, adds: false) { t, partial in
            for w in 0..<4 where t - 3 + w >= places[t].start {
              let (row, input, out) = (du + t * channels, source[t - 3 + w], partial + w * channels)
              sweep(channels) { c, n in
                out.store(out.lanes(c, n).addingProduct(row.lanes(c, n), input.lanes(c, n)), c, n)
              }
            }
          }
          let out = dWeight.floats
          for c in 0..<channels {
            for w in 0..<4 { out[c * 4 + w] = sums[w * channels + c] }
          }
        }
        if let dBias {
          sumBlocks(rows: count, columns: channels, into: dBias.floats, adds: false) { t, partial in
            axpy(1, du + t * channels, into: partial, channels)
          }
        }
      }
    }
  }
}
