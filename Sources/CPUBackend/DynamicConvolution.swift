import Tensors

/// A causal convolution whose taps are computed per token and channel (JetBlock's, RECIPE section 3.2). Kernels
/// lie `[token, channel, tap]`, the last tap for the current token.
extension CPUBackend {
  /// The four taps of sixteen channels, one vector a tap.
  @inline(__always)
  static func taps(_ kernels: FloatPointer) -> (Lanes, Lanes, Lanes, Lanes) {
    // Two rounds of picking every other element; the compiler makes shuffles of it at this width, not at 64.
    let (a, b, c, d) = (kernels.lanes(0), kernels.lanes(16), kernels.lanes(32), kernels.lanes(48))
    let (even0, odd0) = (
      Lanes(lowHalf: a.evenHalf, highHalf: b.evenHalf), Lanes(lowHalf: a.oddHalf, highHalf: b.oddHalf)
    )
    let (even1, odd1) = (
      Lanes(lowHalf: c.evenHalf, highHalf: d.evenHalf), Lanes(lowHalf: c.oddHalf, highHalf: d.oddHalf)
    )
    return (
      Lanes(lowHalf: even0.evenHalf, highHalf: even1.evenHalf),
      Lanes(lowHalf: odd0.evenHalf, highHalf: odd1.evenHalf),
      Lanes(lowHalf: even0.oddHalf, highHalf: even1.oddHalf),
      Lanes(lowHalf: odd0.oddHalf, highHalf: odd1.oddHalf)
    )
  }

  /// Pointers to the inputs of the four taps of token `t`; a shared row of zeros before the segment begins.
  struct Inputs {
    let rows: (FloatPointer, FloatPointer, FloatPointer, FloatPointer)

    init(
      _ x: Rows, channels: Int, token t: Int, start: Int, zeros: FloatPointer, history: FloatPointer?
    ) {
      func row(_ back: Int) -> FloatPointer {
        if t - back >= start { return x[t - back] }
        guard let history else { return zeros }
        return history + (t - start - back + 4) * channels
      }
      rows = (row(3), row(2), row(1), row(0))
    }
  }

  package func convolve(_ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor?, into u: Tensor) {
    let target = u.floats
    convolve(x, kernels, layout, history) { offset, n, u in target.store(u, offset, n) }
  }

  package func dynamicConvolve(_ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor?, into y: Tensor) {
    let target = y.floats
    convolve(x, kernels, layout, history) { offset, n, u in target.store(u * u.sigmoid, offset, n) }
  }

  /// Calls `body(offset, lanes, u)` for all channels of all tokens, u before the activation.
  @inline(__always)
  private func convolve(
    _ x: Tensor, _ kernels: Tensor, _ layout: Layout, _ history: Tensor?, kernel: String = #function,
    _ body: (Int, Int, Lanes) -> Void
  ) {
    precondition(kernels.shape.last == 4, "dynamic convolution has 4 taps, not \(kernels.shape)")
    let channels = x.columns
    let (px, pk, past) = (x.floatRows, kernels.floats, history?.floats)
    let places = places(layout)
    withTemporary(channels) { zeros in
      zeros.update(repeating: 0, count: channels)
      forEachSlice(rows: x.rows, columns: channels, kernel: kernel) { rows in
        for t in rows {
          let inputs = Inputs(
            px, channels: channels, token: t, start: places[t].start, zeros: zeros,
            history: past.map { $0 + places[t].segment * 4 * channels })
          Self.convolve(inputs, kernels: pk + t * channels * 4, channels: channels) { c, n, u in
            body(t * channels + c, n, u)
          }
        }
      }
    }
  }

  /// Calls `body(channel, lanes, u)` for all channels of one token, u before the activation.
  @inline(__always)
  private static func convolve(
    _ inputs: Inputs, kernels: FloatPointer, channels: Int, _ body: (Int, Int, Lanes) -> Void
  ) {
    let (x0, x1, x2, x3) = inputs.rows
    sweep(channels) { c, n in
      let (k0, k1, k2, k3) = n == laneCount ? taps(kernels + c * 4) : partialTaps(kernels + c * 4, n)
      var u = x0.lanes(c, n) * k0
      u = u.addingProduct(x1.lanes(c, n), k1)
      u = u.addingProduct(x2.lanes(c, n), k2)
      u = u.addingProduct(x3.lanes(c, n), k3)
      body(c, n, u)
    }
  }

  /// a0 b0 a1 b1 …
  @inline(__always)
  private static func interleaved(_ a: SIMD8<Float>, _ b: SIMD8<Float>) -> Lanes {
    var both = Lanes()
    both.evenHalf = a
    both.oddHalf = b
    return both
  }

  /// Writes four vectors, one a tap, in the order of taps: the inverse of ``taps(_:)``. They are added to `sums`, too.
  @inline(__always)
  static func storeTaps(
    _ taps: (Lanes, Lanes, Lanes, Lanes), _ out: FloatPointer, adding sums: FloatPointer?, _ n: Int
  ) {
    if n == laneCount {
      let even0 = interleaved(taps.0.lowHalf, taps.2.lowHalf)
      let even1 = interleaved(taps.0.highHalf, taps.2.highHalf)
      let odd0 = interleaved(taps.1.lowHalf, taps.3.lowHalf)
      let odd1 = interleaved(taps.1.highHalf, taps.3.highHalf)
      let ordered = (
        interleaved(even0.lowHalf, odd0.lowHalf), interleaved(even0.highHalf, odd0.highHalf),
        interleaved(even1.lowHalf, odd1.lowHalf), interleaved(even1.highHalf, odd1.highHalf)
      )
      out.store(ordered.0, 0)
      out.store(ordered.1, 16)
      out.store(ordered.2, 32)
      out.store(ordered.3, 48)
      guard let sums else { return }
      sums.store(sums.lanes(0) + ordered.0, 0)
      sums.store(sums.lanes(16) + ordered.1, 16)
      sums.store(sums.lanes(32) + ordered.2, 32)
      sums.store(sums.lanes(48) + ordered.3, 48)
    } else {
      for i in 0..<n {
        let tap = out + i * 4
        (tap[0], tap[1], tap[2], tap[3]) = (taps.0[i], taps.1[i], taps.2[i], taps.3[i])
        guard let sums else { continue }
        for w in 0..<4 { sums[i * 4 + w] += tap[w] }
      }
    }
  }

  static func partialTaps(_ kernels: FloatPointer, _ count: Int) -> (Lanes, Lanes, Lanes, Lanes) {
    var taps = (Lanes.zero, Lanes.zero, Lanes.zero, Lanes.zero)
    for c in 0..<count {
      taps.0[c] = kernels[c * 4]
      taps.1[c] = kernels[c * 4 + 1]
      taps.2[c] = kernels[c * 4 + 2]
      taps.3[c] = kernels[c * 4 + 3]
    }
    return taps
  }

  package func convolveBackward(
    _ du: Tensor, _ x: Tensor, kernels: Tensor, layout: Layout, dx: Tensor, dKernels: Tensor?
  ) {
    convolveBackward(du, x, kernels, layout, dx, dKernels) { g, _ in g }
  }

  package func dynamicConvolveBackward(
    _ dy: Tensor, _ x: Tensor, kernels: Tensor, layout: Layout, dx: Tensor, dKernels: Tensor
  ) {
    convolveBackward(dy, x, kernels, layout, dx, dKernels) { g, u in
      let s = u.sigmoid
      return g * s * (1 + u * (1 - s))
    }
  }

  /// `slope(dy, u)` makes the gradient before the activation.
  @inline(__always)
  private func convolveBackward(
    _ dy: Tensor, _ x: Tensor, _ kernels: Tensor, _ layout: Layout, _ dx: Tensor, _ dKernels: Tensor?,
    kernel: String = #function, _ slope: (Lanes, Lanes) -> Lanes
  ) {
    let channels = x.columns
    let (pdy, px, pk, pdx, pdk) = (dy.floats, x.floatRows, kernels.floats, dx.floatRows, dKernels?.floats)
    let places = places(layout)
    // A row of zeros for what lies outside a segment, and the gradients before the activation.
    withTemporary((x.rows + 1) * channels) { zeros in
      let du = zeros + channels
      zeros.update(repeating: 0, count: channels)
      forEachSlice(rows: x.rows, columns: channels, kernel: kernel) { rows in
        for t in rows {
          let inputs = Inputs(px, channels: channels, token: t, start: places[t].start, zeros: zeros, history: nil)
          let (x0, x1, x2, x3) = inputs.rows
          let (row, out) = (pdy + t * channels, du + t * channels)
          let kernelOut = pdk.map { $0 + t * channels * 4 }
          Self.convolve(inputs, kernels: pk + t * channels * 4, channels: channels) { c, n, u in
            let g = slope(row.lanes(c, n), u)
            out.store(g, c, n)
            guard let kernelOut else { return }
            let (d0, d1) = (g * x0.lanes(c, n), g * x1.lanes(c, n))
            let (d2, d3) = (g * x2.lanes(c, n), g * x3.lanes(c, n))
            Self.storeTaps((d0, d1, d2, d3), kernelOut + c * 4, adding: nil, n)
          }
        }
      }
      // dx[t] gathers what the following tokens of its segment took from it.
      forEachSlice(rows: x.rows, columns: channels, kernel: kernel) { rows in
        for t in rows {
          func gradient(_ ahead: Int) -> (FloatPointer, FloatPointer) {
            t + ahead < places[t].end
              ? (du + (t + ahead) * channels, pk + (t + ahead) * channels * 4) : (zeros, pk + t * channels * 4)
          }
          let ((g0, k0), (g1, k1), (g2, k2), (g3, k3)) = (gradient(0), gradient(1), gradient(2), gradient(3))
          let out = pdx[t]
          sweep(channels) { c, n in
            func taps(_ k: FloatPointer) -> (Lanes, Lanes, Lanes, Lanes) {
              n == laneCount ? Self.taps(k + c * 4) : Self.partialTaps(k + c * 4, n)
            }
            var sum = g0.lanes(c, n) * taps(k0).3
            sum = sum.addingProduct(g1.lanes(c, n), taps(k1).2)
            sum = sum.addingProduct(g2.lanes(c, n), taps(k2).1)
            sum = sum.addingProduct(g3.lanes(c, n), taps(k3).0)
            out.store(sum, c, n)
          }
        }
      }
    }
  }
}
