import Tensors

/// What mixes tokens: positions, convolutions, attention, recurrences, over one document and several.
extension BackendCheck {
  // MARK: - Tokens

  static func sequences(_ documents: [Int]) -> [Case] {
    let n = documents.reduce(0, +)
    let name = documents.count == 1 ? "\(n) tokens" : "\(n) tokens in \(documents.count)"
    return [12, 17].map { channels in
      Case(name: "convolutions", shape: "\(name), \(channels)") { make in
        let b = make.backend
        let layout = make.layout(documents)
        let (x, taps, dy) = (
          make.random([n, channels], 1), make.random([n, channels, 4], 2), make.random([n, channels], 3)
        )
        let (history, before) = (
          make.floats([documents.count, 4, channels], 4), make.floats([documents.count, 1, channels], 5)
        )
        let (weight, bias) = (make.floats([channels, 1, 4], 6), make.floats([channels], 7))
        let shape = [n, channels]
        let outputs = (0..<7).map { _ in make.output(shape) }
        b.convolve(x, kernels: taps, layout: layout, history: nil, into: outputs[0])
        b.convolve(x, kernels: taps, layout: layout, history: history, into: outputs[1])
        b.dynamicConvolve(x, kernels: taps, layout: layout, history: nil, into: outputs[2])
        b.dynamicConvolve(x, kernels: taps, layout: layout, history: history, into: outputs[3])
        b.shortConvolve(x, weight: weight, bias: bias, layout: layout, history: history, into: outputs[4])
        b.shiftTokens(x, layout: layout, history: before, into: outputs[5])
        b.shiftTokens(x, layout: layout, history: nil, into: outputs[6])
        let gradients = (0..<4).map { _ in make.output(shape) }
        let (dTaps, dTaps2) = (make.output([n, channels, 4]), make.output([n, channels, 4]))
        let (dWeight, dBias) = (b.empty([channels, 1, 4]), b.empty([channels]))
        b.convolveBackward(dy, x, kernels: taps, layout: layout, dx: gradients[0], dKernels: dTaps)
        b.dynamicConvolveBackward(dy, x, kernels: taps, layout: layout, dx: gradients[1], dKernels: dTaps2)
        b.shortConvolveBackward(
          dy, x, weight: weight, bias: bias, layout: layout, dx: gradients[2], dWeight: dWeight, dBias: dBias)
        b.shiftTokensBackward(dy, layout: layout, into: gradients[3])
        return (outputs, gradients + [dTaps, dTaps2, dWeight, dBias])
      }
    }
      + [
        Case(name: "rotary positions", shape: name) { make in
          let layout = make.layout(documents, starts: documents.indices.map { $0 * 1000 })
          let (x, y, dx) = (make.random([n, 3, 10], 1), make.output([n, 3, 10]), make.output([n, 3, 10]))
          make.backend.rotate(x, layout: layout, angles: RotaryAngles(theta: 10_000), direction: 1, into: y)
          make.backend.rotate(x, layout: layout, angles: RotaryAngles(theta: 10_000), direction: -1, into: dx)
          let (repeated, folded) = (make.output([n, 6, 10]), make.output([n, 3, 10]))
          make.backend.repeatHeads(x, into: repeated)
          make.backend.repeatHeadsBackward(repeated, into: folded)
          return ([y, repeated], [dx, folded])
        }
      ]
  }

  /// Columns of wider rows, where a backend takes them in place, else copies.
  static func views(_ documents: [Int]) -> Case {
    let n = documents.reduce(0, +)
    let (heads, size) = (3, 16)
    let width = heads * size
    return Case(name: "columns of wider rows", shape: "\(n) tokens in \(documents.count)") { make in
      let b = make.backend
      func columns(_ x: Tensor, _ range: Range<Int>) -> Tensor {
        if b.takesColumnViews { return x.columns(range) }
        let part = make.output([n, range.count])
        b.copyColumns(x, range, into: part)
        return part
      }
      // Whatever lies beside the columns that are written must stay: all of the wide array is compared.
      let gradients = make.random([n, 5 * width + 8], 2)
      func gradient(_ range: Range<Int>, _ shape: [Int], _ write: (Tensor) -> Void) {
        if b.takesColumnViews { return write(gradients.columns(range).reshaped(shape)) }
        let part = make.output(shape)
        write(part)
        let old = make.output([n, range.count])
        b.copyColumns(gradients, range, into: old)
        b.add(old, scale: -1, into: part.reshaped([n, range.count]))
        b.addColumns(part.reshaped([n, range.count]), into: gradients, range, adds: true)
      }
      let layout = make.layout(documents)
      let wide = make.random([n, 5 * width + 8], 1)
      let x = (0..<5).map { columns(wide, $0 * width..<($0 + 1) * width) }
      let (a, beta) = (columns(wide, 5 * width..<5 * width + 3), columns(wide, 5 * width + 3..<5 * width + 6))
      let shape = [n, heads, size]
      let dy = make.random([n, width], 3)
      let weight = make.floats([size], 4, scale: 0.3, shift: 1)
      let (y, unit, gated, moved, activated) = (
        make.output([n, width]), make.output(shape), make.output([n, width]), make.output(shape),
        make.output([n, width])
      )
      b.swiGLU(gate: x[0], up: x[1], into: y)
      b.siluNormalize(x[2].reshaped(shape), epsilon: 1e-6, into: unit)
      gradient(2 * width..<3 * width, shape) {
        b.siluNormalizeBackward(dy.reshaped(shape), x[2].reshaped(shape), epsilon: 1e-6, into: $0)
      }
      let (inverse, normed) = (b.empty([n * heads]), make.random(shape, 5))
      b.gatedNormalize(normed, gate: x[3], weight: weight, epsilon: 1e-5, into: gated, inverse: inverse)
      let (dNormed, dWeight) = (make.output(shape), b.empty([size]))
      gradient(3 * width..<4 * width, [n, width]) {
        b.gatedNormalizeBackward(
          dy, normed, gate: x[3], weight: weight, inverse: inverse, dx: dNormed, dGate: $0, dWeight: dWeight,
          addsWeight: false)
      }
      b.rotate(x[4].reshaped(shape), layout: layout, angles: RotaryAngles(theta: 10_000), direction: 1, into: moved)
      b.apply(.silu, x[4], into: activated)
      gradient(4 * width..<5 * width, [n, width]) { b.applyBackward(.silu, dy, x: x[4], y: activated, into: $0) }
      let (aLog, bias) = (make.floats([3], 6), make.floats([3], 7))
      let (g, opened) = (b.empty([n, 3]), b.empty([n, 3]))
      b.decayGate(a: a, b: beta, aLog: aLog, dtBias: bias, g: g, beta: opened)
      let (inner, generator, taps) = (
        make.random([n, 8], 8), make.random([4 * width, 8], 9, scale: 0.3), make.floats([4 * width], 10)
      )
      let convolved = make.output([n, width])
      let state = b.generatedConvolve(
        x[1], inner: inner, weight: generator, bias: taps, layout: layout, history: nil, into: convolved, saves: true)
      let (dInner, dGenerator, dTaps) = (make.output([n, 8]), b.empty([4 * width, 8]), b.empty([4 * width]))
      gradient(width..<2 * width, [n, width]) {
        b.generatedConvolveBackward(
          dy, x[1], inner: inner, weight: generator, bias: taps, layout: layout, saved: state, dx: $0, dInner: dInner,
          dWeight: dGenerator, addsWeight: false, dBias: dTaps, addsBias: false)
      }
      let (matrix, product) = (make.random([24, width], 11), make.output([n, 24]))
      b.multiply(x[0], transposed: false, matrix, transposed: true, into: product, alpha: 1, adds: false)
      return (
        [y, unit, gated, moved, activated, g, opened, convolved, product],
        [gradients, dNormed, dWeight, dInner, dGenerator, dTaps]
      )
    }
  }

  // MARK: - Attention

  static func attentions(small: Bool) -> [Case] {
    let sizes = small ? [10, 32, 128] : [10, 64, 96, 128, 256]
    let shapes: [([Int], Int?)] =
      small
      ? [([1, 40], nil), ([200], nil)]
      : [
        ([1], nil), ([63, 65], nil), ([1000], nil), ([17, 64, 1, 128, 300], 33), ([400], 1), ([300], 129),
        ([1, 400, 193, 700], nil), ([1000, 500], 200),
      ]
    return sizes.flatMap { size in
      shapes.map { documents, window in
        let n = documents.reduce(0, +)
        return Case(
          name: "attention",
          shape: "\(documents.count == 1 ? "\(n)" : "\(n) in \(documents.count)"), heads of \(size)"
            + (window.map { ", window \($0)" } ?? "")
        ) { make in
          let b = make.backend
          let (heads, groups) = (4, 2)
          let (q, k, v) = (
            make.random([n, heads, size], 1), make.random([n, groups, size], 2), make.random([n, groups, size], 3)
          )
          let dO = make.random([n, heads, size], 4)
          let (o, logSums) = (make.output([n, heads, size]), b.empty([n, heads]))
          let spans = make.layout(documents).spans(window: window)
          b.attend(q, k, v, spans: spans, into: o, logSums: logSums)
          let (dQ, dK, dV) = (
            make.output([n, heads, size]), make.output([n, groups, size]), make.output([n, groups, size])
          )
          b.attendBackward(dO, q, k, v, o, logSums: logSums, spans: spans, dQ: dQ, dK: dK, dV: dV)
          if n == 1 || window == 1 {
            // Who sees one key has no gradient: what rounding leaves is held against numbers of order one.
            b.add(q, scale: 1, into: dQ)
            b.add(k, scale: 1, into: dK)
          }
          return ([o, logSums], [dQ, dK, dV])
        }
      }
    }
      // Queries that continue caches: several at the end of more keys, and one alone.
      + [16, 20].map { size in
        Case(name: "attention over caches", shape: "heads of \(size)") { make in
          let b = make.backend
          let (capacity, fresh, filled) = (150, [3, 1, 70], [100, 1, 150])
          let q = make.random([74, 4, size], 1)
          let (k, v) = (make.random([3 * capacity, 2, size], 2), make.random([3 * capacity, 2, size], 3))
          let spans = AttentionSpans(
            Maker.ranges(fresh).enumerated().map { index, range in
              AttentionSpan(
                queries: range, keys: index * capacity..<index * capacity + filled[index], window: index == 2 ? 60 : nil
              )
            })
          let (o, logSums) = (make.output([74, 4, size]), b.empty([74, 4]))
          b.attend(q, k, v, spans: spans, into: o, logSums: logSums)
          return ([o, logSums], [])
        }
      }
  }

  // MARK: - Recurrences

  static func recurrences(small: Bool) -> [Case] {
    let shapes =
      small ? [(8, 12, [1, 65])] : [(16, 16, [65]), (24, 40, [1, 130, 63]), (64, 64, [200]), (96, 256, [70])]
    return shapes.map { keys, values, documents in
      let n = documents.reduce(0, +)
      return Case(name: "diagonal plus low rank", shape: "\(keys) x \(values), \(n) tokens in \(documents.count)") {
        make in
        let b = make.backend
        let layout = make.layout(documents)
        let heads = 2
        func unit(_ seed: Int) -> Tensor { make.random([n, heads, keys], seed, scale: 1 / Float(keys).squareRoot()) }
        let (q, k, alpha, beta) = (unit(1), unit(2), unit(3), unit(4))
        let (v, dO) = (make.random([n, heads, values], 5), make.random([n, heads, values], 6))
        let g = make.floats([n, heads, keys], 7, scale: 0.05, shift: -0.3)
        let states = [documents.count, heads, keys, values]
        let (initial, dFinal) = (make.floats(states, 8, scale: 0.3), make.floats(states, 9, scale: 0.3))
        let (o, final) = (make.output([n, heads, values]), b.empty(states))
        let saved = b.diagonalPlusLowRank(
          q: q, k: k, v: v, alpha: alpha, beta: beta, g: g, scale: 0.7, layout: layout, initial: initial, o: o,
          final: final, saves: true)
        let gradients = (0..<4).map { _ in make.output([n, heads, keys]) }
        let (dG, dV, dInitial) = (b.empty([n, heads, keys]), make.output([n, heads, values]), b.empty(states))
        b.diagonalPlusLowRankBackward(
          dO: dO, dFinal: dFinal, q: q, k: k, v: v, alpha: alpha, beta: beta, g: g, scale: 0.7, layout: layout,
          saved: saved!, dQ: gradients[0], dK: gradients[1], dV: dV, dAlpha: gradients[2], dBeta: gradients[3], dG: dG,
          dInitial: dInitial)
        return ([o, final], gradients + [dG, dV, dInitial])
      }
    }
  }
}
