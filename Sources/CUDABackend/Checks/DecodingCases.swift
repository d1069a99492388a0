import Tensors

/// Generation: caches, one token of every sequence, the choice of the next.
extension BackendCheck {
  static func decoding(small: Bool) -> [Case] {
    rowsOfCaches(small: small) + cacheAttentions(small: small) + deltaRuleSteps(small: small) + jetSteps(small: small)
      + choices(small: small)
  }

  /// Row moves, histories, and rows stored where positions say, of columns of wider rows too.
  private static func rowsOfCaches(small: Bool) -> [Case] {
    (small ? [5] : [1, 16, 100]).map { columns in
      Case(name: "rows of caches", shape: "\(columns)") { make in
        let b = make.backend
        let wide = make.random([9, columns + 8], 1)
        let x = b.takesColumnViews ? wide.columns(8..<columns + 8) : make.output([9, columns])
        if !b.takesColumnViews { b.copyColumns(wide, 8..<columns + 8, into: x) }
        let (moved, history, cache) = (
          make.random([12, columns], 2), make.random([4, 4, columns], 3), make.random([9, 5, columns], 4)
        )
        b.copyRows(
          x, into: moved,
          [RowMove(from: 7, to: 0, count: 2), RowMove(from: 0, to: 5, count: 3), RowMove(from: 4, to: 3, count: 0)])
        b.remember(x, layout: make.layout([1, 0, 3, 5]), in: history)
        let positions = b.tensor((0..<9).map { Int32($0 * 2) })
        b.storeRows(x, at: positions, in: cache)
        b.advance(positions)
        let counted = b.tensor(positions.toIntegers().map(Float.init), [9])
        return ([moved, history, cache, counted], [])
      }
    }
  }

  private static func cacheAttentions(small: Bool) -> [Case] {
    // Heads, groups, size, room, positions: full caches, rings that went round, one token alone.
    let shapes: [(heads: Int, groups: Int, size: Int, room: Int, positions: [Int])] =
      small
      ? [(6, 2, 64, 70, [0, 69])]
      : [
        (12, 2, 128, 1000, [0, 999, 15, 16, 63, 511]), (16, 8, 128, 1100, [1099, 512, 600]),
        (4, 4, 64, 65, [64, 200, 3]),
        (20, 1, 64, 40, [39]), (3, 1, 24, 33, [32, 5]), (4, 2, 256, 129, [128, 127]),
      ]
    return shapes.map { heads, groups, size, room, positions in
      Case(name: "attention of caches", shape: "\(positions.count) x \(heads)/\(groups) x \(size), \(room)") { make in
        let b = make.backend
        let count = positions.count
        let q = make.random([count, heads, size], 1)
        let (keys, values) = (
          make.random([count, room, groups, size], 2), make.random([count, room, groups, size], 3)
        )
        let o = make.output([count, heads, size])
        b.attendCache(q, keys: keys, values: values, positions: b.tensor(positions.map { Int32($0) }), into: o)
        return ([o], [])
      }
    }
  }

  private static func deltaRuleSteps(small: Bool) -> [Case] {
    let sizes = small ? [(16, 16)] : [(96, 256), (128, 128), (40, 132), (192, 384), (24, 7)]
    return sizes.flatMap { keys, values in
      [false, true].map { isNarrow in
        let states = isNarrow ? "bf16" : "float32"
        return Case(name: "step of the delta rule, states in \(states)", shape: "5 x 3 x \(keys) x \(values)") { make in
          let b = make.backend
          let (count, heads) = (5, 3)
          let q = make.random([count, heads, keys], 1)
          let k = make.random([count, heads, keys], 2, scale: 1 / Float(keys).squareRoot())
          let v = make.random([count, heads, values], 3)
          let (g, beta) = (b.empty([count, heads]), b.empty([count, heads]))
          b.apply(.logSigmoid(scale: 0.5), make.floats([count, heads], 4), into: g)
          b.apply(.sigmoid, make.floats([count, heads], 5), into: beta)
          let state = make.floats([count, heads, keys, values], 6)
          let kept = isNarrow && make.type == .bfloat16 && !make.isReference ? b.empty(state.shape, .bfloat16) : state
          if kept.dtype != state.dtype { b.copy(state, into: kept) }
          let o = make.output([count, heads, values])
          let layout = Layout(decodingAfter: [3, 1, 4, 1, 5], limit: 9, on: b)
          _ = b.gatedDeltaRule(
            q: q, k: k, v: v, g: g, beta: beta, scale: 1 / Float(keys).squareRoot(), layout: layout, initial: kept,
            o: o, final: kept, saves: false)
          return ([o, kept], [])
        }
      }
    }
  }

  private static func jetSteps(small: Bool) -> [Case] {
    let sizes = small ? [(16, 16)] : [(96, 256), (128, 132), (40, 24), (192, 16)]
    return sizes.map { keys, values in
      Case(name: "step of a JetBlock", shape: "5 x 3 x \(keys) x \(values)") { make in
        let b = make.backend
        let (count, heads) = (5, 3)
        let widths = [heads * keys, heads * keys, heads * values, heads, heads, 7]
        let wide = make.random([count, widths.reduce(0, +)], 1)
        var first = 0
        let parts = widths.map { width in
          defer { first += width }
          if b.takesColumnViews { return wide.columns(first..<first + width) }
          let part = make.output([count, width])
          b.copyColumns(wide, first..<first + width, into: part)
          return part
        }
        let channels = heads * values
        let (history, state) = (make.random([count, 4, channels], 2), make.floats([count, heads, keys, values], 3))
        let o = make.output([count, heads, values])
        b.jetStep(
          JetStep(
            q: parts[0], k: parts[1], v: parts[2], a: parts[3], b: parts[4],
            taps: make.random([count, 4 * channels], 4, scale: 0.5),
            tapBias: make.floats([4 * channels], 5, scale: 0.5),
            aLog: make.floats([heads], 6), dtBias: make.floats([heads], 7), history: history, state: state,
            epsilon: 1e-6), layout: Layout(decodingAfter: [3, 1, 4, 1, 5], limit: 9, on: b), into: o)
        return ([o, history, state], [])
      }
    }
  }

  /// The same tokens as the host chooses, of ties, few and many of them, and of rows that are not finite.
  private static func choices(small: Bool) -> [Case] {
    let settings = [
      Sampling(), Sampling(temperature: 1), Sampling(temperature: 0.7, topK: 5), Sampling(temperature: 1.3, topP: 0.6),
      Sampling(temperature: 0.9, topK: 40, topP: 0.9), Sampling(temperature: 0.01),
    ]
    return (small ? [100] : [1, 33, 1000, 151_936]).flatMap { size in
      settings.map { sampling in
        let name = "choice, \(sampling.temperature)/\(sampling.topK)/\(sampling.topP)"
        return Case(name: name, shape: "3 x \(size)") { make in
          let b = make.backend
          let logits = make.random([3, size], 7, scale: 3)
          if size > 1 { b.fill(logits.rows(2..<3).reshaped([size]).rows(size / 2..<size / 2 + 1), with: .nan) }
          let tokens = b.empty([3], .int32)
          b.chooseTokens(logits, sampling, uniforms: b.tensor([0.25, 0.875, 0.5], [3]), into: tokens)
          return ([b.tensor(tokens.toIntegers().map(Float.init), [3])], [])
        }
      }
    }
  }
}
