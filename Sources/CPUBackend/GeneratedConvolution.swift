import Tensors

/// The dynamic convolution together with the product that makes its taps: `taps = inner Wᵀ + b`, four of a channel side by
/// side. Taps are made by strips of tokens and blocks of channels, which stay in a core's cache, and made again by the
/// backward pass: whole they would be four times the convolution's input.
///
/// A slice owns its channels, and tokens come strip by strip, so that sums over tokens have one order.
extension CPUBackend {
  /// Tokens of a strip.
  private static let stripLength = 256
  /// Channels of a block.
  private static let blockChannels = 64
  /// Tokens up to which the product reads every weight once for all of them.
  private static let fewTokens = 16

  /// A block of channels: its weights and bias, four rows and elements a channel.
  private struct ChannelBlock {
    let first: Int
    let count: Int
    /// `[4 · count, R]`
    let weight: Matrix
    let bias: FloatPointer
    let rank: Int

    /// taps [tokens, 4 · count] of the tokens whose inner rows begin at `inner`, without the bias.
    func makeTaps(_ tokens: Int, _ inner: Rows, into taps: FloatPointer) {
      gemm(tokens, 4 * count, rank, 1, inner.matrix, weight.transposed, 0, Matrix(taps, stride: 4 * count))
    }
  }

  private static func blocks(_ channels: Int) -> Int { (channels + blockChannels - 1) / blockChannels }

  /// Calls `body` with block `index` of the channels, its weights as float32.
  private static func withBlock(
    _ index: Int, _ channels: Int, _ weight: Tensor, _ bias: FloatPointer, _ body: (ChannelBlock) -> Void
  ) {
    let (first, rank) = (index * blockChannels, weight.columns)
    let count = min(blockChannels, channels - first)
    guard weight.dtype == .bfloat16 else {
      let rows = Matrix(weight.floats + first * 4 * rank, stride: rank)
      return body(ChannelBlock(first: first, count: count, weight: rows, bias: bias + first * 4, rank: rank))
    }
    var scratch = Scratch(Scratch.rounded(count * 4 * rank))
    defer { scratch.free() }
    let wide = scratch.take(count * 4 * rank)
    widen(weight.bfloats + first * 4 * rank, into: wide, count * 4 * rank)
    body(
      ChannelBlock(
        first: first, count: count, weight: Matrix(wide, stride: rank), bias: bias + first * 4, rank: rank))
  }

  package func generatedConvolve(
    _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, history: Tensor?, into y: Tensor,
    saves: Bool
  ) -> SavedState? {
    let (channels, tokens) = (x.columns, x.rows)
    guard tokens > Self.fewTokens else {
      composedGeneratedConvolve(
        x, inner: inner, weight: weight, bias: bias, layout: layout, history: history, into: y)
      return nil
    }
    let (px, pi, py, biases, past) = (x.floatRows, inner.floatRows, y.floats, bias.floats, history?.floats)
    let places = places(layout)
    let strips = (tokens + Self.stripLength - 1) / Self.stripLength
    operations += 2 * Double(tokens) * Double(4 * channels) * Double(inner.columns)
    withTemporary(channels) { zeros in
      zeros.update(repeating: 0, count: channels)
      parallel(Self.blocks(channels) * strips) { slice in
        let start = slice % strips * Self.stripLength
        let strip = start..<min(tokens, start + Self.stripLength)
        Self.withBlock(slice / strips, channels, weight, biases) { block in
          var scratch = Scratch(Scratch.rounded(strip.count * 4 * block.count))
          defer { scratch.free() }
          let taps = scratch.take(strip.count * 4 * block.count)
          block.makeTaps(strip.count, Rows(start: pi[start], stride: pi.stride), into: taps)
          for t in strip {
            let inputs = Inputs(
              px, channels: channels, token: t, start: places[t].start, zeros: zeros,
              history: past.map { $0 + places[t].segment * 4 * channels })
            let out = py + t * channels
            Self.convolve(inputs, block, taps: taps + (t - start) * 4 * block.count) { c, n, u, _ in
              out.store(u * u.sigmoid, c, n)
            }
          }
        }
      }
    }
    return nil
  }

  /// Calls `body(channel, lanes, u, taps)` for the channels of a block at one token, u before the activation.
  @inline(__always)
  private static func convolve(
    _ inputs: Inputs, _ block: ChannelBlock, taps: FloatPointer,
    _ body: (Int, Int, Lanes, (Lanes, Lanes, Lanes, Lanes)) -> Void
  ) {
    let (x0, x1, x2, x3) = inputs.rows
    sweep(block.count) { c, n in
      let made = n == laneCount ? Self.taps(taps + c * 4) : partialTaps(taps + c * 4, n)
      let fixed = n == laneCount ? Self.taps(block.bias + c * 4) : partialTaps(block.bias + c * 4, n)
      let k = (made.0 + fixed.0, made.1 + fixed.1, made.2 + fixed.2, made.3 + fixed.3)
      let c = block.first + c
      var u = x0.lanes(c, n) * k.0
      u = u.addingProduct(x1.lanes(c, n), k.1)
      u = u.addingProduct(x2.lanes(c, n), k.2)
      u = u.addingProduct(x3.lanes(c, n), k.3)
      body(c, n, u, k)
    }
  }

  package func generatedConvolveBackward(
    _ dy: Tensor, _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, saved: SavedState?,
    dx: Tensor, dInner: Tensor, dWeight: Tensor?, addsWeight: Bool, dBias: Tensor?, addsBias: Bool
  ) {
    let (channels, tokens, rank) = (x.columns, x.rows, inner.columns)
    let (px, pi, pdy, biases) = (x.floatRows, inner.floatRows, dy.floats, bias.floats)
    let (pdx, pdw, pdb) = (dx.floatRows, dWeight?.floats, dBias?.floats)
    let places = places(layout)
    let products = dWeight == nil ? 1 : 2
    operations += 2 * Double(products) * Double(tokens) * Double(4 * channels) * Double(rank)
    let dTaps = empty([min(Self.stripLength, tokens), 4 * channels])
    let pdt = dTaps.floats
    withTemporary(5 * channels) { zeros in
      // A row of zeros for what lies outside a segment, and the sums of the taps' gradients.
      zeros.update(repeating: 0, count: 5 * channels)
      let sums = zeros + channels
      for start in stride(from: 0, to: tokens, by: Self.stripLength) {
        let strip = start..<min(tokens, start + Self.stripLength)
        parallel(Self.blocks(channels)) { index in
          Self.withBlock(index, channels, weight, biases) { block in
            var scratch = Scratch(Scratch.rounded(strip.count * 4 * block.count))
            defer { scratch.free() }
            let taps = scratch.take(strip.count * 4 * block.count)
            block.makeTaps(strip.count, Rows(start: pi[start], stride: pi.stride), into: taps)
            for t in strip {
              let inputs = Inputs(
                px, channels: channels, token: t, start: places[t].start, zeros: zeros, history: nil)
              let (x0, x1, x2, x3) = inputs.rows
              let gradient = pdy + t * channels
              let tapsOut = pdt + (t - start) * 4 * channels
              let back = min(3, t - places[t].start)
              Self.convolve(inputs, block, taps: taps + (t - start) * 4 * block.count) { c, n, u, k in
                let s = u.sigmoid
                let g = gradient.lanes(c, n) * s * (1 + u * (1 - s))
                Self.storeTaps(
                  (g * x0.lanes(c, n), g * x1.lanes(c, n), g * x2.lanes(c, n), g * x3.lanes(c, n)),
                  tapsOut + 4 * c, adding: sums + 4 * c, n)
                // dx of the last tap is the token's first contribution.
                pdx[t].store(g * k.3, c, n)
                if back > 0 { pdx[t - 1].store(pdx[t - 1].lanes(c, n).addingProduct(g, k.2), c, n) }
                if back > 1 { pdx[t - 2].store(pdx[t - 2].lanes(c, n).addingProduct(g, k.1), c, n) }
                if back > 2 { pdx[t - 3].store(pdx[t - 3].lanes(c, n).addingProduct(g, k.0), c, n) }
              }
            }
            guard let pdw else { return }
            gemm(
              4 * block.count, rank, strip.count, 1,
              Matrix(pdt + 4 * block.first, stride: 4 * channels, isTransposed: true),
              Matrix(pi[start], stride: pi.stride), addsWeight || start > 0 ? 1 : 0,
              Matrix(pdw + 4 * block.first * rank, stride: rank))
          }
        }
        multiply(
          dTaps.rows(0..<strip.count), transposed: false, weight, transposed: false, into: dInner.rows(strip), alpha: 1,
          adds: false)
      }
      guard let pdb else { return }
      if addsBias { axpy(1, sums, into: pdb, 4 * channels) } else { pdb.update(from: sums, count: 4 * channels) }
    }
  }
}
