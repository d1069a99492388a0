import Tensors

/// What ``BackendCheck`` runs: odd sizes, everything that a backend is asked for; what mixes tokens is in SequenceCases.
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
