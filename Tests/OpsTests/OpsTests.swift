import CPUBackend
import Foundation
import Ops
import Tensors
import TestSupport
import Testing

/// Every op against its naive twin and finite differences, at odd sizes, outputs poisoned with NaN.
@Suite struct OpsTests {
  static let sizes = [1, 3, 17, 63, 65, 130]

  private func expectGood(_ name: String, _ report: GradientReport, output: Double = 2e-6, gradient: Double = 1e-4) {
    let worst = report.gradients.max { $0.value < $1.value }
    print("op \(name): output \(report.output), worst gradient \(worst?.value ?? 0) (\(worst?.key ?? "none"))")
    #expect(report.output <= output, "\(name): output off by \(report.output)")
    for (input, error) in report.gradients {
      #expect(error <= gradient, "\(name): gradient of \(input) off by \(error)")
    }
  }

  @Test(arguments: sizes) func linearMatches(n: Int) {
    let inputs = [
      TestInput("x", [n, 19], seed: 1), TestInput("w", [33, 19], seed: 2), TestInput("b", [33], seed: 3),
    ]
    expectGood(
      "linear \(n)",
      checkGradients(inputs) {
        linear($0[0], $0[1], bias: $0[2])
      } twin: {
        Naive.linear($0[0], $0[1], $0[2], inputs: 19)
      })
  }

  @Test func largeLinearUsesAllTiles() {
    let inputs = [
      TestInput("x", [523, 70], seed: 1), TestInput("w", [611, 70], seed: 2), TestInput("b", [611], seed: 3),
    ]
    expectGood(
      "linear 523x611",
      checkGradients(inputs) {
        linear($0[0], $0[1], bias: $0[2])
      } twin: {
        Naive.linear($0[0], $0[1], $0[2], inputs: 70)
      })
  }

  @Test(arguments: sizes) func rmsNormMatches(size: Int) {
    let inputs = [TestInput("x", [300, size], seed: 4), TestInput("w", [size], seed: 5)]
    expectGood(
      "rmsNorm \(size)",
      checkGradients(inputs) {
        rmsNorm($0[0], weight: $0[1], epsilon: 1e-5)
      } twin: {
        Naive.rmsNorm($0[0], $0[1], epsilon: 1e-5)
      })
  }

  @Test(arguments: sizes) func gatedRMSNormMatches(size: Int) {
    let inputs = [
      TestInput("x", [7, 3, size], seed: 6), TestInput("gate", [7, 3 * size], seed: 7, scale: 3),
      TestInput("w", [size], seed: 8),
    ]
    expectGood(
      "gatedRMSNorm \(size)",
      checkGradients(inputs) {
        gatedRMSNorm($0[0], gate: $0[1], weight: $0[2], epsilon: 1e-5)
      } twin: {
        zip(Naive.rmsNorm($0[0], $0[2], epsilon: 1e-5), $0[1]).map { $0 * Naive.silu($1) }
      })
  }

  @Test(arguments: sizes) func siluNormalizeMatches(size: Int) {
    expectGood(
      "siluNormalize \(size)",
      checkGradients([TestInput("x", [9, 2, size], seed: 9, scale: 2)]) {
        siluNormalize($0[0])
      } twin: {
        Naive.siluNormalize($0[0], size: size, epsilon: 1e-6)
      })
  }

  @Test(arguments: sizes) func activationsMatch(size: Int) {
    expectGood(
      "silu \(size)",
      checkGradients([TestInput("x", [5, size], seed: 10, scale: 20)]) {
        silu($0[0])
      } twin: {
        $0[0].map(Naive.silu)
      })
    expectGood(
      "swiGLU \(size)",
      checkGradients([TestInput("gate", [5, size], seed: 11, scale: 6), TestInput("up", [5, size], seed: 12)]) {
        swiGLU(gate: $0[0], up: $0[1])
      } twin: {
        zip($0[0], $0[1]).map { Naive.silu($0) * $1 }
      })
  }

  @Test func embeddingAndAddMatch() {
    let ids: [Int32] = [3, 0, 3, 3, 6, 1, 0]
    expectGood(
      "embedding",
      checkGradients([TestInput("table", [7, 37], seed: 13)]) {
        embedding($0[0], $0[0].backend.tensor(ids))
      } twin: {
        table in
        ids.flatMap { Array(table[0][Int($0) * 37..<Int($0 + 1) * 37]) }
      })
    // x used twice: the slots may share a gradient but not change each other's.
    expectGood(
      "add",
      checkGradients([TestInput("x", [5, 21], seed: 14), TestInput("y", [5, 21], seed: 15)]) {
        add(add($0[0], $0[1]), silu($0[0]))
      } twin: {
        zip($0[0], $0[1]).map { $0 + $1 + Naive.silu($0) }
      })
  }

  @Test(arguments: [2, 6, 16, 34]) func rotaryMatches(size: Int) {
    let positions: [Int32] = [0, 1, 5, 1000, 131_071]
    expectGood(
      "rotary \(size)",
      checkGradients([TestInput("x", [5, 3, size], seed: 16)]) {
        rotaryEmbedding($0[0], positions: positions, theta: 1e6)
      } twin: {
        Naive.rotate($0[0], heads: 3, size: size, positions: positions, theta: 1e6)
      })
  }

  @Test(arguments: [1, 2, 63, 65, 150], [nil, 1, 17]) func attentionMatches(tokens: Int, window: Int?) {
    let (heads, groups, size) = (4, 2, 10)
    let segments = tokens < 3 ? [0..<tokens] : [0..<tokens / 3, tokens / 3..<tokens]
    let inputs = [
      TestInput("q", [tokens, heads, size], seed: 17, scale: 3),
      TestInput("k", [tokens, groups, size], seed: 18, scale: 3),
      TestInput("v", [tokens, groups, size], seed: 19),
    ]
    expectGood(
      "attention \(tokens) window \(window ?? 0)",
      checkGradients(inputs) { x in
        attention(
          x[0], x[1], x[2], spans: segments.map { AttentionSpan(queries: $0, keys: $0, window: window) })
      } twin: { x in
        Naive.attention(x[0], x[1], x[2], heads: heads, groups: groups, size: size) { n in
          let segment = segments.first { $0.contains(n) }!
          return Array(max(segment.lowerBound, n + 1 - (window ?? tokens))...n)
        }
      })
  }

  @Test func attentionOverSharedKeysMatches() {
    // The eager mask of the reference: spans whose keys overlap.
    let inputs = [
      TestInput("q", [80, 2, 8], seed: 20), TestInput("k", [80, 1, 8], seed: 21), TestInput("v", [80, 1, 8], seed: 22),
    ]
    expectGood(
      "attention shared keys",
      checkGradients(inputs) {
        attention(
          $0[0], $0[1], $0[2],
          spans: [
            AttentionSpan(queries: 0..<1, keys: 0..<80), AttentionSpan(queries: 1..<80, keys: 0..<79, window: 16),
          ])
      } twin: {
        Naive.attention($0[0], $0[1], $0[2], heads: 2, groups: 1, size: 8) { n in
          n == 0 ? Array(0..<80) : Array(max(0, n - 16)..<n)
        }
      })
  }

  @Test(arguments: [1, 2, 3, 5, 64], [1, 15, 16, 50]) func dynamicConvolutionMatches(tokens: Int, channels: Int) {
    let segments = tokens < 5 ? [0..<tokens] : [0..<2, 2..<tokens]
    let inputs = [
      TestInput("x", [tokens, channels], seed: 23), TestInput("kernels", [tokens, channels, 4], seed: 24, scale: 2),
    ]
    expectGood(
      "dynamicConvolution \(tokens)x\(channels)",
      checkGradients(inputs) {
        dynamicConvolution($0[0], kernels: $0[1], segments: Segments(segments))
      } twin: {
        Naive.dynamicConvolution($0[0], $0[1], channels: channels, segments: segments)
      })
  }

  @Test func decayGateMatches() {
    let inputs = [
      TestInput("a", [65, 3], seed: 25, scale: 8), TestInput("b", [65, 3], seed: 26, scale: 4),
      TestInput("aLog", [3], seed: 27), TestInput("dtBias", [3], seed: 28),
    ]
    expectGood(
      "decayGate",
      checkGradients(inputs) {
        let gates = decayGate(a: $0[0], b: $0[1], aLog: $0[2], dtBias: $0[3])
        return add(gates.g, gates.beta)
      } twin: { x in
        zip(Naive.decay(x[0], x[2], x[3]), x[1]).map { $0 + Naive.sigmoid($1) }
      })
  }

  @Test(arguments: [1, 2, 63, 64, 65, 200], [1, 20]) func gatedDeltaRuleMatches(tokens: Int, decay: Float) {
    let (heads, keys, values) = (2, 12, 20)
    let segments = tokens < 64 ? [0..<tokens] : [0..<7, 7..<tokens]
    let inputs = [
      TestInput("q", [tokens, heads, keys], seed: 29), TestInput("k", [tokens, heads, keys], seed: 30, scale: 0.4),
      TestInput("v", [tokens, heads, values], seed: 31),
      // Log decays of about −decay a token: down to e^−40, where nothing may overflow.
      TestInput("g", [tokens, heads], seed: 32, scale: decay, shift: -decay),
      TestInput("beta", [tokens, heads], seed: 33, scale: 0.45, shift: 0.5),
    ]
    expectGood(
      "gatedDeltaRule \(tokens) decay \(decay)",
      checkGradients(inputs) {
        gatedDeltaRule(q: $0[0], k: $0[1], v: $0[2], g: $0[3], beta: $0[4], segments: Segments(segments))
      } twin: {
        Naive.gatedDeltaRule(
          q: $0[0], k: $0[1], v: $0[2], g: $0[3], beta: $0[4], heads: heads, keys: keys, values: values,
          segments: segments
        ).o
      })
  }

  @Test func gatedDeltaRuleContinues() {
    let backend = CPUBackend(threads: 2)
    let (tokens, heads, keys, values) = (1000, 2, 12, 20)
    func random(_ shape: [Int], _ seed: UInt64) -> [Float] { randomFloats(shape.reduce(1, *), seed: seed) }
    let q = random([tokens, heads, keys], 1)
    let k = random([tokens, heads, keys], 2).map { $0 * 0.4 }
    let v = random([tokens, heads, values], 3)
    let g = random([tokens, heads], 4).map { $0 * 0.1 - 0.1 }
    let beta = random([tokens, heads], 5).map { $0 * 0.4 + 0.5 }
    let initial = random([heads, keys, values], 6)
    let naive = Naive.gatedDeltaRule(
      q: q.map(Double.init), k: k.map(Double.init), v: v.map(Double.init), g: g.map(Double.init),
      beta: beta.map(Double.init), heads: heads, keys: keys, values: values, segments: [0..<tokens],
      initial: initial.map(Double.init))
    // In pieces of any size, handing the state on.
    let state = backend.tensor(initial, [1, heads, keys, values])
    var output: [Float] = []
    var first = 0
    for piece in [1, 2, 3, 64, 65, 300, 565] {
      func part(_ x: [Float], _ shape: [Int]) -> Tensor {
        let width = shape.reduce(1, *)
        return backend.tensor(Array(x[first * width..<(first + piece) * width]), [piece] + shape)
      }
      output += gatedDeltaRule(
        q: part(q, [heads, keys]), k: part(k, [heads, keys]), v: part(v, [heads, values]), g: part(g, [heads]),
        beta: part(beta, [heads]), segments: Segments(count: 1, length: piece), initial: state, final: state
      ).toArray()
      first += piece
    }
    let error = relativeError(output, naive.o.map(Float.init))
    let stateError = relativeError(state.toArray(), naive.final.map(Float.init))
    print("gatedDeltaRule in pieces: output \(error), state \(stateError)")
    #expect(error < 5e-6 && stateError < 5e-6)
  }

  @Test(arguments: [1, 63, 70]) func vocabularyLossMatches(tokens: Int) {
    let backend = CPUBackend(threads: 2)
    backend.poisonsNewTensors = true
    let (size, vocabulary) = (9, 101)
    let labels = (0..<tokens).map { $0 % 7 == 3 ? Int32(-1) : Int32($0 * 31 % vocabulary) }
    let hidden = randomFloats(tokens * size, seed: 1)
    let weight = randomFloats(vocabulary * size, seed: 2)
    let (teacherHidden, teacherWeight) = (randomFloats(tokens * 5, seed: 3), randomFloats(vocabulary * 5, seed: 4))
    let (ceSeed, klSeed) = (Float(0.3), Float(0.7))
    var (x, w) = (backend.tensor(hidden, [tokens, size]), backend.tensor(weight, [vocabulary, size]))
    x.slot = GradientSlot(shape: x.shape, backend: backend)
    w.slot = GradientSlot(shape: w.shape, backend: backend)
    let (losses, _) = backend.recording {
      vocabularyLoss(
        hidden: x, weight: w,
        teacher: TeacherHead(
          hidden: backend.tensor(teacherHidden, [tokens, 5]), weight: backend.tensor(teacherWeight, [vocabulary, 5])),
        labels: backend.tensor(labels), crossEntropySeed: ceSeed, klSeed: klSeed)
    }
    func twin(_ hidden: [Double], _ weight: [Double]) -> (crossEntropy: [Double], kl: [Double]) {
      Naive.vocabularyLosses(
        hidden, weight, teacher: (teacherHidden.map(Double.init), teacherWeight.map(Double.init)), labels: labels,
        size: size)
    }
    let (h, m) = (hidden.map(Double.init), weight.map(Double.init))
    let expected = twin(h, m)
    #expect(relativeError(losses.crossEntropy.toArray(), expected.crossEntropy.map(Float.init)) < 2e-6)
    #expect(relativeError(losses.kl.toArray(), expected.kl.map(Float.init)) < 1e-5)
    for (name, tensor, count) in [("hidden", x, h.count), ("weight", w, m.count)] {
      let direction = randomFloats(count, seed: 5).map(Double.init)
      func total(_ sign: Double) -> Double {
        let moved = zip(name == "hidden" ? h : m, direction).map { $0 + sign * 1e-5 * $1 }
        let losses = name == "hidden" ? twin(moved, m) : twin(h, moved)
        return losses.crossEntropy.reduce(0, +) * Double(ceSeed) + losses.kl.reduce(0, +) * Double(klSeed)
      }
      let numeric = (total(1) - total(-1)) / 2e-5
      let analytic = zip(tensor.slot!.gradient!.toArray(), direction).reduce(0) { $0 + Double($1.0) * $1.1 }
      let error = abs(numeric - analytic) / max(abs(numeric), 1e-9)
      print("op vocabularyLoss \(tokens): gradient of \(name) off by \(error)")
      #expect(error < 1e-4)
    }
  }

  @Test func squaredErrorMatches() {
    let backend = CPUBackend(threads: 2)
    var x = backend.tensor(randomFloats(7 * 33, seed: 1), [7, 33])
    let target = backend.tensor(randomFloats(7 * 33, seed: 2), [7, 33])
    x.slot = GradientSlot(shape: x.shape, backend: backend)
    let (losses, _) = backend.recording { squaredError(x, target: target, seed: 0.5) }
    let difference = zip(x.toArray(), target.toArray()).map { $0 - $1 }
    let expected = (0..<7).map { n in difference[n * 33..<(n + 1) * 33].reduce(0) { $0 + $1 * $1 } / 33 }
    #expect(relativeError(losses.toArray(), expected) < 1e-6)
    #expect(relativeError(x.slot!.gradient!.toArray(), difference.map { $0 / 33 }) < 1e-6)
  }

  @Test func checkpointedGivesTheSameGradients() {
    func gradients(checkpointing: Bool) -> [[Float]] {
      let backend = CPUBackend(threads: 2)
      var x = backend.tensor(randomFloats(40 * 24, seed: 1), [40, 24])
      var w = backend.tensor(randomFloats(24 * 24, seed: 2), [24, 24])
      x.slot = GradientSlot(shape: x.shape, backend: backend)
      w.slot = GradientSlot(shape: w.shape, backend: backend)
      let (y, tape) = backend.recording {
        let body = { (x: Tensor) in silu(linear(x, w)) }
        return checkpointing ? checkpointed(x, body) : body(x)
      }
      y.slot!.accumulate(backend.tensor(randomFloats(40 * 24, seed: 3), [40, 24]))
      tape.backward()
      return [x.slot!.gradient!.toArray(), w.slot!.gradient!.toArray()]
    }
    #expect(gradients(checkpointing: true) == gradients(checkpointing: false))
  }

  /// Order-stable: the same bits on any number of threads.
  // MARK: - Decoding and weights of bfloat16

  /// One query a span, over keys that end to end are of different lengths: the kernel of decoding against that of
  /// training.
  @Test(arguments: [1, 5, 512, 513, 1300], [nil, 1, 7, 600]) func decodingAttentionMatches(keys: Int, window: Int?) {
    let backend = CPUBackend(threads: 2)
    backend.poisonsNewTensors = true
    let (heads, groups, size, sequences) = (6, 2, 10, 3)
    let lengths = (0..<sequences).map { max(1, keys - $0 * 3) }
    func random(_ shape: [Int], _ seed: UInt64) -> Tensor {
      backend.tensor(randomFloats(shape.reduce(1, *), seed: seed), shape)
    }
    let k = random([sequences * keys, groups, size], 1)
    let v = random([sequences * keys, groups, size], 2)
    let q = random([sequences, heads, size], 3)
    func spans(_ s: Int, query: Int, count: Int) -> [AttentionSpan] {
      [AttentionSpan(queries: query..<query + count, keys: s * keys..<s * keys + lengths[s], window: window)]
    }
    let o = attention(q, k, v, spans: (0..<sequences).flatMap { spans($0, query: $0, count: 1) }).toArray()
    for s in 0..<sequences {
      // The same query twice, so that the other kernel runs; the second one sees all keys.
      let row = Array(q.toArray()[s * heads * size..<(s + 1) * heads * size])
      guard lengths[s] > 1 else { continue }
      let pair = backend.tensor(row + row, [2, heads, size])
      let both = attention(pair, k, v, spans: spans(s, query: 0, count: 2)).toArray()
      let error = relativeError(Array(o[s * heads * size..<(s + 1) * heads * size]), Array(both[(heads * size)...]))
      #expect(error < 2e-6, "\(error)")
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
    for (index, value) in values.enumerated() { narrow.bfloats[index] = UInt16(value.bitPattern >> 16) }
    #expect(narrow.toArray() == values)
    let x = backend.tensor(randomFloats(rows * inner, seed: 5), [rows, inner])
    let dy = backend.tensor(randomFloats(rows * columns, seed: 6), [rows, columns])
    let start = randomFloats(rows * max(inner, columns), seed: 7)
    for adds in [false, true] {
      func product(_ a: Tensor, _ w: Tensor, transposed: Bool, _ size: Int) -> [Float] {
        let out = backend.empty([rows, size])
        if adds { out.floats.update(from: start, count: out.count) }
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

  @Test func bitsDoNotDependOnThreads() {
    func run(_ threads: Int) -> [[Float]] {
      let backend = CPUBackend(threads: threads)
      var x = backend.tensor(randomFloats(300 * 96, seed: 1), [300, 96])
      var w = backend.tensor(randomFloats(200 * 96, seed: 2), [200, 96])
      var norm = backend.tensor(randomFloats(96, seed: 3), [96])
      x.slot = GradientSlot(shape: x.shape, backend: backend)
      w.slot = GradientSlot(shape: w.shape, backend: backend)
      norm.slot = GradientSlot(shape: norm.shape, backend: backend)
      let (y, tape) = backend.recording { linear(rmsNorm(x, weight: norm, epsilon: 1e-6), w) }
      y.slot!.accumulate(backend.tensor(randomFloats(300 * 200, seed: 4), [300, 200]))
      tape.backward()
      return [y.toArray()] + [x, w, norm].map { $0.slot!.gradient!.toArray() }
    }
    let one = run(1)
    #expect(run(2) == one && run(3) == one)
  }

  /// An id without a row ends the process and says which, instead of reading or writing beyond a table.
  @Test func idsBeyondATableEndTheProcess() async throws {
    let gathered = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      let backend = CPUBackend(threads: 1)
      _ = embedding(backend.zeros([5, 3]), backend.tensor([0, 4, 5] as [Int32]))
    }
    let negative = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      let backend = CPUBackend(threads: 1)
      _ = embedding(backend.zeros([5, 3]), backend.tensor([0, -1] as [Int32]))
    }
    let scattered = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      let backend = CPUBackend(threads: 1)
      backend.scatterAdd(backend.zeros([2, 3]), backend.tensor([1, 7] as [Int32]), into: backend.zeros([5, 3]))
    }
    let labelled = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      let backend = CPUBackend(threads: 1)
      _ = vocabularyLoss(
        hidden: backend.zeros([3, 4]), weight: backend.zeros([5, 4]), labels: backend.tensor([-100, 4, 5] as [Int32]))
    }
    for (result, message) in [
      (gathered, "gather: id 5, number 2 of 3, of a table of 5 rows"),
      (negative, "gather: id -1, number 1 of 2, of a table of 5 rows"),
      (scattered, "scatterAdd: id 7, number 1 of 2, of a table of 5 rows"),
      (labelled, "vocabularyLoss: id 5, number 2 of 3, of a table of 5 rows"),
    ] {
      let output = String(decoding: try #require(result).standardErrorContent, as: UTF8.self)
      #expect(output.contains(message), "\(output)")
    }
  }
}
