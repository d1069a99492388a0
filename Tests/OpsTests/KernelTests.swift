import CPUBackend
import Foundation
import Ops
import Tensors
import TestSupport
import Testing

/// Kernels that no op reaches on its own, or that ops reach in one of several ways, against ``ReferenceBackend`` at odd
/// sizes, outputs poisoned with NaN.
@Suite struct KernelTests {
  /// Cross-entropy without a teacher, and rows that do not count.
  @Test(arguments: [1, 15, 101]) func vocabularyLossWithoutTeacherMatches(vocabulary: Int) {
    let errors = compareWithReference { backend in
      let logits = backend.tensor(randomFloats(7 * vocabulary, seed: 8).map { $0 * 5 }, [7, vocabulary])
      let (crossEntropy, kl) = (backend.empty([7]), backend.empty([7]))
      let labels = (0..<7).map { $0 == 2 ? Int32(-100) : Int32($0 % vocabulary) }
      backend.vocabularyLoss(
        logits: logits, teacherLogits: nil, labels: backend.tensor(labels), crossEntropyScale: 0.25, klScale: 0,
        crossEntropy: crossEntropy, kl: kl)
      return [logits, crossEntropy, kl]
    }
    #expect(errors.allSatisfy { $0 < 2e-6 }, "\(errors)")
  }

  /// The core's convolution has no op of its own: only compositions are made of it.
  @Test(arguments: [1, 3, 64, 65], [1, 16, 33]) func convolutionMatches(tokens: Int, channels: Int) {
    func random(_ backend: any Backend, _ shape: [Int], _ seed: UInt64) -> Tensor {
      backend.tensor(randomFloats(shape.reduce(1, *), seed: seed), shape)
    }
    let errors = compareWithReference { backend in
      let n = tokens + 2
      let layout = Layout(Segments([0..<tokens, tokens..<n]), on: backend)
      let (x, kernels) = (random(backend, [n, channels], 1), random(backend, [n, channels, 4], 2))
      let (u, v) = (backend.empty([n, channels]), backend.empty([n, channels]))
      backend.convolve(x, kernels: kernels, layout: layout, history: nil, into: u)
      backend.convolve(x, kernels: kernels, layout: layout, history: random(backend, [2, 4, channels], 3), into: v)
      let (dx, dKernels, dy) = (backend.empty(x.shape), backend.empty(kernels.shape), backend.empty(x.shape))
      let du = random(backend, [n, channels], 4)
      backend.convolveBackward(du, x, kernels: kernels, layout: layout, dx: dx, dKernels: dKernels)
      backend.convolveBackward(du, du, kernels: kernels, layout: layout, dx: dy, dKernels: nil)
      return [u, v, dx, dKernels, dy]
    }
    #expect(errors.allSatisfy { $0 < 1e-6 }, "\(errors)")
  }

  /// What continues caches: convolutions and shifts that know the tokens before.
  @Test(arguments: [1, 2, 5, 64], [1, 17]) func historiesMatch(tokens: Int, channels: Int) {
    let errors = compareWithReference { backend in
      func random(_ shape: [Int], _ seed: UInt64) -> Tensor {
        backend.tensor(randomFloats(shape.reduce(1, *), seed: seed), shape)
      }
      let n = tokens + 3
      let layout = Layout(Segments([0..<tokens, tokens..<tokens, tokens..<n]), on: backend)
      let (x, past) = (random([n, channels], 1), random([3, 4, channels], 2))
      return [
        dynamicConvolution(x, kernels: random([n, channels, 4], 3), layout: layout, history: past),
        shortConvolution(
          x, weight: random([channels, 1, 4], 4), bias: random([channels], 5), layout: layout, history: past),
        tokenShift(x, layout: layout, history: random([3, 1, channels], 6)),
      ]
    }
    #expect(errors.allSatisfy { $0 < 2e-6 }, "\(errors)")
  }

  /// Rows of caches: several runs in one go, and histories that more or fewer new rows than they hold push out.
  @Test(arguments: [1, 17]) func cacheRowsMatch(channels: Int) {
    let errors = compareWithReference { backend in
      func random(_ shape: [Int], _ seed: UInt64) -> Tensor {
        backend.tensor(randomFloats(shape.reduce(1, *), seed: seed), shape)
      }
      let (x, y, history) = (random([9, channels], 1), random([12, channels], 2), random([4, 4, channels], 3))
      backend.copyRows(
        x, into: y,
        [RowMove(from: 7, to: 0, count: 2), RowMove(from: 0, to: 5, count: 3), RowMove(from: 4, to: 3, count: 0)])
      backend.remember(x, layout: Layout(Segments([0..<1, 1..<1, 1..<4, 4..<9]), on: backend), in: history)
      return [y, history]
    }
    #expect(errors == [0, 0])
  }

  /// Products longer and wider than what is packed at a time, of every orientation, written to columns of wider rows.
  @Test(arguments: [(20, 2100, 70), (70, 40, 1100), (17, 2050, 1030)]) func largeProductsMatch(sizes: (Int, Int, Int)) {
    let (rows, columns, inner) = sizes
    for (aTransposed, bTransposed) in [(false, true), (false, false), (true, false), (true, true)] {
      let errors = compareWithReference { backend in
        func random(_ shape: [Int], _ seed: UInt64) -> Tensor {
          backend.tensor(randomFloats(shape.reduce(1, *), seed: seed), shape)
        }
        let a = random(aTransposed ? [inner, rows] : [rows, inner], 1)
        let b = random(bTransposed ? [columns, inner] : [inner, columns], 2)
        let wide = random([rows, columns + 5], 3)
        let c = backend.takesColumnViews ? wide.columns(3..<columns + 3) : backend.empty([rows, columns])
        if !backend.takesColumnViews { backend.copyColumns(wide, 3..<columns + 3, into: c) }
        backend.multiply(
          a, transposed: aTransposed, b, transposed: bTransposed, into: c, alpha: 0.5, adds: true)
        if backend.takesColumnViews { return [wide] }
        let rest = backend.empty(wide.shape)
        backend.copy(wide, into: rest)
        let change = backend.empty(c.shape)
        backend.copyColumns(wide, 3..<columns + 3, into: change)
        backend.add(c, scale: -1, into: change)
        backend.fill(c, with: 0)
        backend.add(change, scale: -1, into: c)
        backend.addColumns(c, into: rest, 3..<columns + 3, adds: true)
        return [rest]
      }
      #expect(errors[0] < 1e-6, "\(sizes) \(aTransposed) \(bTransposed): \(errors)")
    }
  }

  @Test(arguments: [1, 63, 65, 1009]) func optimizerMatches(count: Int) {
    let errors = compareWithReference { backend in
      func random(_ seed: UInt64) -> Tensor { backend.tensor(randomFloats(count, seed: seed), [count]) }
      let (w, g, m) = (random(1), random(2), random(3))
      let v = backend.tensor(randomFloats(count, seed: 4).map { $0 * $0 }, [count])
      backend.adamW(
        parameters: w, gradients: g, moment1: m, moment2: v,
        step: AdamWStep(
          learningRate: 0.01, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0.1, step: 3, gradientScale: 0.5))
      return [w, m, v]
    }
    #expect(errors.allSatisfy { $0 < 1e-6 }, "\(errors)")
  }

  /// Sums in double precision: of float32 and of sums, scaled, of nothing, block by block with a last one that is short, each
  /// where it belongs in a larger tensor. What is not finite passes through.
  @Test(arguments: [0, 1, 15, 63, 64, 65, 1009]) func doubleSumsMatch(count: Int) {
    let blocks = (count + 63) / 64
    for (fault, place) in [(Float(0), 0), (.nan, count / 2), (.infinity, count - 1), (-.infinity, 0)] {
      var values = randomFloats(count, seed: 1)
      if fault != 0, count > 0 { values[place] = fault }
      func sums(_ backend: any Backend) -> [Double] {
        let x = backend.tensor(values, [count])
        let sums = backend.empty([blocks + 4], .float64)
        backend.sumElements(x, scale: 1, into: sums.rows(0..<1))
        backend.sumElements(x, scale: 1.0 / 3, into: sums.rows(1..<2))
        backend.sumsOfSquares(x, blockSize: 64, into: sums.rows(2..<2 + blocks))
        backend.sumElements(sums.rows(1..<2 + blocks), scale: 0.5, into: sums.rows(2 + blocks..<3 + blocks))
        backend.sumElements(sums.rows(0..<0), scale: 2, into: sums.rows(3 + blocks..<4 + blocks))
        return sums.toDoubles()
      }
      let expected = sums(ReferenceBackend())
      let plain = values.reduce(0.0) { $0 + Double($1) }
      let isFaulty = fault != 0 && count > 0
      #expect(expected[0].isFinite != isFaulty && expected.last == 0)
      // The same from right to left, up to a few last bits of what was added up.
      let size = values.reduce(1.0) { $0 + Double(abs($1)) }
      if !isFaulty { #expect(abs(values.reversed().reduce(0.0) { $0 + Double($1) } - expected[0]) < 1e-15 * size) }
      for kind in TestBackend.fast {
        let found = sums(kind.make())
        // In the order of the elements, to the bit: a run's log must not depend on the version that wrote it.
        if !isFaulty { #expect(found[0] == plain && found[1] == plain * (1.0 / 3)) }
        for (x, y) in zip(found, expected) {
          #expect(x == y || (x.isNaN && y.isNaN) || abs(x - y) < 1e-14 * max(size, abs(y)), "\(kind): \(x) \(y)")
        }
      }
    }
  }

  /// One query a span, over keys that end to end are of different lengths: the kernel of decoding.
  @Test(arguments: [1, 5, 512, 513, 1300], [nil, 1, 7, 600]) func decodingAttentionMatches(keys: Int, window: Int?) {
    let (heads, groups, size, sequences) = (6, 2, 10, 3)
    let lengths = (0..<sequences).map { max(1, keys - $0 * 3) }
    let errors = compareWithReference { backend in
      func random(_ shape: [Int], _ seed: UInt64) -> Tensor {
        backend.tensor(randomFloats(shape.reduce(1, *), seed: seed), shape)
      }
      let (q, k) = (random([sequences, heads, size], 3), random([sequences * keys, groups, size], 1))
      let (o, logSums) = (backend.empty(q.shape), backend.empty([sequences, heads]))
      backend.attend(
        q, k, random([sequences * keys, groups, size], 2),
        spans: AttentionSpans(
          (0..<sequences).map {
            AttentionSpan(queries: $0..<$0 + 1, keys: $0 * keys..<$0 * keys + lengths[$0], window: window)
          }), into: o, logSums: logSums)
      return [o, logSums]
    }
    #expect(errors.allSatisfy { $0 < 2e-6 }, "\(errors)")
  }

  /// Rounding to bfloat16, bit by bit against arithmetic in double precision: odd sizes, ties both ways, subnormals, what
  /// rounds to infinity, infinities, both zeros and NaN, in vectors and behind them.
  @Test(arguments: [1, 15, 16, 17, 63, 16_384, 16_409]) func copiesAreRoundedToBFloat16(count: Int) {
    let special: [UInt32] = [
      0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x3F80_7FFF, 0xBF80_8000, 0xBF81_8000, 0x7F7F_FFFF, 0x7F7F_7FFF,
      0xFF7F_8000, 0x7F80_0000, 0xFF80_0000, 0x0000_0000, 0x8000_0000, 0x0000_8000, 0x0001_8000, 0x807F_FFFF,
      0x0000_0001, 0x7FC0_0000, 0x7F80_0001, 0xFF80_FFFF, 0x7FFF_FFFF,
    ]
    var random = UInt32(1)
    let words = (0..<count).map { index -> UInt32 in
      // Every special one in every lane, between words of any exponent.
      random = random &* 1_664_525 &+ 1_013_904_223
      return index % 2 == 0 || count < 64 ? special[(index / 2 + index / 64) % special.count] : random
    }
    let values = words.map(Float.init(bitPattern:))
    let expected = values.map { value in
      value.isNaN
        ? UInt16(value.bitPattern >> 16) | 0x40
        : UInt16(Float(ReferenceBackend.roundedToBFloat16(Double(value))).bitPattern >> 16)
    }
    for kind in TestBackend.fast {
      let backend = kind.make()
      let narrow = backend.empty([count], .bfloat16)
      backend.copy(backend.tensor(values, [count]), into: narrow)
      let wide = backend.empty([count])
      backend.copy(narrow, into: wide)
      // A NaN may come through a reference in doubles with another payload.
      for (index, pair) in zip(narrow.toBits(), expected).enumerated() where pair.0 != pair.1 {
        let bothNaN = [pair.0, pair.1].allSatisfy { $0 & 0x7FFF > 0x7F80 }
        #expect(bothNaN && !(backend is CPUBackend), "\(kind) \(String(words[index], radix: 16)): \(pair)")
      }
      #expect(wide.toArray().map { UInt16($0.bitPattern >> 16) } == narrow.toBits())
    }
  }

  @Test(arguments: [1, 2, 3, 4, 7, 17, 70], [(1, 1), (31, 5), (32, 64), (100, 33), (1100, 600)])
  func bfloat16ProductsMatch(rows: Int, shape: (Int, Int)) {
    let (inner, columns) = shape
    let backend = CPUBackend(threads: 2)
    backend.poisonsNewTensors = true
    // Values that bfloat16 holds exactly, so that float32 must give the same up to the order of sums.
    let values = randomFloats(inner * columns, seed: 4).map { Float(bitPattern: $0.bitPattern & 0xFFFF_0000) }
    let wide = backend.tensor(values, [columns, inner])
    let narrow = backend.empty([columns, inner], .bfloat16)
    values.map { UInt16($0.bitPattern >> 16) }.withUnsafeBytes { backend.upload($0, into: narrow).wait() }
    #expect(narrow.toArray() == values)
    let x = backend.tensor(randomFloats(rows * inner, seed: 5), [rows, inner])
    let dy = backend.tensor(randomFloats(rows * columns, seed: 6), [rows, columns])
    let start = randomFloats(rows * max(inner, columns), seed: 7)
    for adds in [false, true] {
      func product(_ a: Tensor, _ w: Tensor, transposed: Bool, _ size: Int) -> [Float] {
        let out = backend.empty([rows, size])
        if adds { out.upload(Array(start[..<out.count])) }
        backend.multiply(a, transposed: false, w, transposed: transposed, into: out, alpha: 0.5, adds: adds)
        return out.toArray()
      }
      for (a, transposed, size) in [(x, true, columns), (dy, false, inner)] {
        let error = relativeError(
          product(a, narrow, transposed: transposed, size), product(a, wide, transposed: transposed, size))
        #expect(error < 2e-6, "\(transposed) \(adds): \(error)")
      }
    }
    let ids = backend.tensor([Int32(columns - 1), 0])
    #expect(embedding(narrow, ids).toArray() == embedding(wide, ids).toArray())
  }
}
