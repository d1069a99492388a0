import Tensors

/// What ``BackendCheck`` runs: odd sizes, one document and several, everything that a backend is asked for.
extension BackendCheck {
  static func cases(small: Bool) -> [Case] {
    let counts = small ? [65] : [1, 63, 65, 1000, 70_001]
    let documents = small ? [[1, 37, 65]] : [[1], [63], [65], [1000], [17, 64, 1, 128, 63, 65, 2]]
    return counts.flatMap(elements) + matrices(small: small) + rows(small: small) + documents.flatMap(sequences)
      + documents.map(views) + attentions(small: small) + recurrences(small: small) + tables(small: small)
      + decoding(small: small)
  }

  // MARK: - Elements

  private static func elements(_ n: Int) -> [Case] {
    let functions: [(String, ElementFunction)] = [
      ("silu", .silu), ("gelu", .gelu), ("sigmoid", .sigmoid), ("log sigmoid", .logSigmoid(scale: 0.25)),
      ("softplus", .softplus),
      ("tanh", .tanh), ("negative exponential", .negativeExponential), ("scaled sigmoid", .scaledSigmoid(scale: -0.6)),
      ("sigmoid minus one", .sigmoidMinusOne),
    ]
    var cases = functions.map { name, function in
      Case(name: name, shape: "\(n)") { make in
        let (x, dy) = (make.random([n], 1), make.random([n], 2))
        let (y, dx) = (make.output([n]), make.output([n]))
        make.backend.apply(function, x, into: y)
        make.backend.applyBackward(function, dy, x: x, y: y, into: dx)
        return ([y], [dx])
      }
    }
    cases.append(
      Case(name: "elements", shape: "\(n)") { make in
        let b = make.backend
        let (x, y, z) = (make.random([n], 1), make.random([n], 2), make.random([n], 3))
        let (sum, copy, filled) = (make.output([n]), b.empty([n]), make.output([n]))
        let (product, added) = (make.output([n]), make.random([n], 4))
        b.sum(x, y, into: sum)
        b.copy(x, into: copy)
        b.fill(filled, with: 0.3)
        b.product(x, y, into: product, adds: false)
        b.product(x, y, into: added, adds: true)
        b.add(x, scale: -0.7, into: z)
        let root = b.empty([n])
        b.apply(.inverseRoot(scale: 0.5, epsilon: 1e-3), copy, into: root)
        b.product(copy, copy, into: root, adds: false)
        b.apply(.inverseRoot(scale: 0.5, epsilon: 1e-3), root, into: root)
        return ([sum, copy, filled, product, added, z, root], [])
      })
    cases.append(
      Case(name: "sums in double precision", shape: "\(n)", narrow: false) { make in
        let (x, sums) = (make.random([n], 1), make.backend.empty([(n + 63) / 64 + 2], .float64))
        make.backend.sumsOfSquares(x, blockSize: 64, into: sums.rows(2..<sums.count))
        make.backend.sumElements(x, scale: 0.5, into: sums.rows(0..<1))
        make.backend.sumElements(sums.rows(2..<sums.count), scale: 2, into: sums.rows(1..<2))
        return ([sums], [])
      })
    cases.append(
      Case(name: "AdamW", shape: "\(n)", narrow: false) { make in
        let (w, g, m) = (make.random([n], 1), make.random([n], 2), make.random([n], 3))
        let v = make.backend.empty([n])
        make.backend.product(m, m, into: v, adds: false)
        make.backend.adamW(
          parameters: w, gradients: g, moment1: m, moment2: v,
          step: AdamWStep(
            learningRate: 0.01, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0.1, step: 3, gradientScale: 0.5))
        return ([w, m, v], [])
      })
    return cases
  }

  // MARK: - Matrices

  private static func matrices(small: Bool) -> [Case] {
    let shapes =
      small ? [(3, 5, 7)] : [(1, 1, 1), (1, 64, 33), (63, 65, 10), (65, 12, 1000), (1000, 136, 96), (128, 256, 512)]
    return shapes.map { m, n, k in
      Case(name: "products", shape: "\(m) x \(n) x \(k)") { make in
        let (a, b) = (make.random([m, k], 1), make.random([k, n], 2))
        let (at, bt) = (make.random([k, m], 3), make.random([n, k], 4))
        var outputs: [Tensor] = []
        for (x, xt, y, yt) in [(a, false, b, false), (a, false, bt, true), (at, true, b, false), (at, true, bt, true)] {
          let (c, added) = (make.output([m, n]), make.backend.tensor([Float](repeating: 2, count: m * n), [m, n]))
          make.backend.multiply(x, transposed: xt, y, transposed: yt, into: c, alpha: 0.5, adds: false)
          make.backend.multiply(x, transposed: xt, y, transposed: yt, into: added, alpha: 1, adds: true)
          outputs += [c, added]
        }
        let (past, onto) = (make.random([m, n], 5), make.output([m, n]))
        make.backend.project(a, [bt], biases: [], onto: past, into: onto)
        outputs.append(onto)
        return (outputs, [])
      }
    }
      + shapes.map { m, n, k in
        // Activations in float32 over weights at rest in bfloat16, and the other way round.
        Case(name: "products of two types", shape: "\(m) x \(n) x \(k)", narrow: false) { make in
          let rounded = make.backend.empty([n, k], .bfloat16)
          make.backend.copy(make.floats([n, k], 2), into: rounded)
          let (x, c) = (make.floats([m, k], 1), make.backend.empty([m, n]))
          make.backend.multiply(x, transposed: false, rounded, transposed: true, into: c, alpha: 1, adds: false)
          return ([c], [])
        }
      }
  }

  // MARK: - Rows and columns

  private static func rows(small: Bool) -> [Case] {
    let shapes = small ? [(5, 12, 3)] : [(1, 1, 1), (63, 12, 3), (65, 96, 8), (1000, 256, 4), (33, 2056, 2)]
    return shapes.map { rows, columns, groups in
      Case(name: "rows and columns", shape: "\(rows) x \(columns)") { make in
        let b = make.backend
        let (x, y) = (make.random([rows, columns], 1), make.random([rows, columns], 2))
        let (byRow, byColumn) = (make.floats([rows], 3), make.floats([groups], 4))
        let (scaled, inner, wide) = (make.output([rows, columns]), b.empty([rows]), make.random([rows, columns], 5))
        b.scaleRows(x, by: byRow, into: scaled, adds: false)
        b.scaleRows(x, by: byRow, into: wide, adds: true)
        b.rowProducts(x, y, into: inner)
        let (columnsScaled, sums) = (make.output([rows, columns]), make.floats([groups], 6))
        let group = columns / groups * groups
        let (part, partY) = (make.random([rows, group], 7), make.random([rows, group], 8))
        let partOut = make.output([rows, group])
        b.scaleColumns(part, by: byColumn, into: partOut, adds: false)
        b.copy(x, into: columnsScaled)
        b.columnProducts(part, partY, into: sums, adds: true)
        let range = columns / 3..<columns
        let (cut, placed, added) = (
          make.output([rows, range.count]), make.output([rows, columns]), make.random([rows, columns], 9)
        )
        b.copyColumns(x, range, into: cut)
        b.addColumns(cut, into: placed, range, adds: false)
        b.addColumns(cut, into: added, range, adds: true)
        let (bias, biased, total) = (make.floats([columns], 10), make.random([rows, columns], 11), b.empty([columns]))
        b.addBias(bias, to: biased)
        b.sumRows(x, into: total, adds: false)
        return ([scaled, wide, inner, columnsScaled, sums, partOut, cut, placed, added, biased, total], [])
      }
    }
      // Of one element all that a norm leaves is its sign.
      + shapes.filter { $0.1 > 1 }.map { rows, columns, _ in
        Case(name: "norms", shape: "\(rows) x \(columns)") { make in
          let b = make.backend
          let (x, dy, gate) = (
            make.random([rows, columns], 1), make.random([rows, columns], 2), make.random([rows, columns], 3)
          )
          let weight = make.floats([columns], 4, scale: 0.3, shift: 1)
          let (y, inverse, dx) = (make.output([rows, columns]), b.empty([rows]), make.random([rows, columns], 5))
          let (dWeight, dWeight2) = (make.floats([columns], 6), b.empty([columns]))
          let (past, dxPast, dWeight3) = (
            make.random([rows, columns], 7), make.output([rows, columns]), b.empty([columns])
          )
          b.normalize(x, weight: weight, epsilon: 1e-5, into: y, inverse: inverse)
          b.normalizeBackward(
            dy, x, weight: weight, inverse: inverse, into: dx, adds: true, dWeight: nil, addsWeight: false)
          b.normalizeBackward(
            dy, x, weight: weight, inverse: inverse, into: nil, adds: false, dWeight: dWeight, addsWeight: true)
          b.normalizeBackward(
            dy, x, weight: weight, inverse: inverse, onto: past, into: dxPast, dWeight: dWeight3, addsWeight: false)
          let (gated, inverse2) = (make.output([rows, columns]), b.empty([rows]))
          let (dx2, dGate) = (make.output([rows, columns]), make.output([rows, columns]))
          b.gatedNormalize(x, gate: gate, weight: weight, epsilon: 1e-5, into: gated, inverse: inverse2)
          b.gatedNormalizeBackward(
            dy, x, gate: gate, weight: weight, inverse: inverse2, dx: dx2, dGate: dGate, dWeight: dWeight2,
            addsWeight: false)
          let (unit, dUnit) = (make.output([rows, 1, columns]), make.output([rows, 1, columns]))
          b.siluNormalize(x.reshaped([rows, 1, columns]), epsilon: 1e-6, into: unit)
          b.siluNormalizeBackward(
            dy.reshaped([rows, 1, columns]), x.reshaped([rows, 1, columns]), epsilon: 1e-6, into: dUnit)
          let (length, dLength) = (make.output([rows, columns]), make.output([rows, columns]))
          b.normalizeLength(x, epsilon: 1e-6, into: length)
          b.normalizeLengthBackward(dy, x, epsilon: 1e-6, into: dLength)
          return (
            [y, inverse, gated, unit, length], [dx, dWeight, dxPast, dWeight3, dx2, dGate, dWeight2, dUnit, dLength]
          )
        }
      }
      + shapes.map { rows, columns, _ in
        Case(name: "gates and losses", shape: "\(rows) x \(columns)") { make in
          let b = make.backend
          let (x, z, dy) = (
            make.random([rows, columns], 1), make.random([rows, columns], 2), make.random([rows, columns], 3)
          )
          let (y, dGate, dUp) = (
            make.output([rows, columns]), make.output([rows, columns]), make.output([rows, columns])
          )
          b.swiGLU(gate: x, up: z, into: y)
          b.swiGLUBackward(dy, gate: x, up: z, dGate: dGate, dUp: dUp)
          let (losses, dx, added) = (b.empty([rows]), make.output([rows, columns]), make.random([rows, columns], 4))
          b.squaredError(x, target: z, seed: 0.5, losses: losses, into: dx, adds: false)
          b.squaredError(x, target: z, seed: 0.5, losses: losses, into: added, adds: true)
          let (aLog, bias) = (make.floats([columns], 5), make.floats([columns], 6))
          let (g, beta) = (b.empty([rows, columns]), b.empty([rows, columns]))
          let (dG, dBeta) = (make.floats([rows, columns], 7), make.floats([rows, columns], 8))
          let (dA, dB) = (make.output([rows, columns]), make.output([rows, columns]))
          let (dALog, dBias) = (b.empty([columns]), b.empty([columns]))
          b.decayGate(a: x, b: z, aLog: aLog, dtBias: bias, g: g, beta: beta)
          b.decayGateBackward(
            dG: dG, dBeta: dBeta, a: x, beta: beta, aLog: aLog, dtBias: bias, dA: dA, dB: dB, dALog: dALog,
            dDtBias: dBias)
          let labels = b.tensor((0..<rows).map { $0 == 2 ? Int32(-100) : Int32($0 * 7 % columns) })
          let (logits, teacher) = (
            make.random([rows, columns], 9, scale: 2), make.random([rows, columns], 10, scale: 2)
          )
          let (crossEntropy, kl) = (b.empty([rows]), b.empty([rows]))
          b.vocabularyLoss(
            logits: logits, teacherLogits: teacher, labels: labels, crossEntropyScale: 0.25, klScale: 0.5,
            crossEntropy: crossEntropy, kl: kl)
          return ([y, losses, g, beta, crossEntropy, kl], [dGate, dUp, dx, added, dA, dB, dALog, dBias, logits])
        }
      }
  }

  // MARK: - Tokens

  private static func sequences(_ documents: [Int]) -> [Case] {
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
  private static func views(_ documents: [Int]) -> Case {
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

  private static func attentions(small: Bool) -> [Case] {
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

  private static func recurrences(small: Bool) -> [Case] {
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

  // MARK: - Tables

  private static func tables(small: Bool) -> [Case] {
    (small ? [(9, 5)] : [(1, 1), (300, 65), (1000, 256)]).map { tokens, columns in
      Case(name: "table rows", shape: "\(tokens) x \(columns)") { make in
        let b = make.backend
        let ids = b.tensor((0..<tokens).map { Int32($0 * $0 % 37) })
        let (table, out) = (make.random([37, columns], 1), make.output([tokens, columns]))
        b.gather(table, ids, into: out)
        let (x, gathered) = (make.random([tokens, columns], 2), make.floats([37, columns], 3))
        b.scatterAdd(x, ids, into: gathered)
        return ([out], [gathered])
      }
    }
  }
}
