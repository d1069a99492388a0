import CPUBackend
import Foundation
import Ops
import Tensors
import TestSupport
import Testing

/// Prints the errors of an op and holds them to their bounds.
func expectGood(_ name: String, _ report: GradientReport, output: Double = 2e-6, gradient: Double = 1e-4) {
  let worst = report.gradients.max { $0.value < $1.value }
  let differences = report.differences.values.max() ?? .infinity
  print(
    "op \(name): output \(report.output), worst gradient \(worst?.value ?? 0) (\(worst?.key ?? "none")), reference from its "
      + "finite differences \(differences)")
  #expect(report.output <= output, "\(name): output off by \(report.output)")
  for (input, error) in report.gradients {
    #expect(error <= gradient, "\(name): gradient of \(input) off by \(error)")
  }
  #expect(differences <= 1e-6, "\(name): the reference's gradients are off by \(report.differences)")
}

/// Every op against ``ReferenceBackend`` and its finite differences, at odd sizes, outputs poisoned with NaN.
@Suite struct OpsTests {
  static let sizes = [1, 3, 17, 63, 65, 130, 131]

  @Test(arguments: sizes) func linearMatches(n: Int) {
    let inputs = [
      TestInput("x", [n, 19], seed: 1), TestInput("w", [33, 19], seed: 2), TestInput("b", [33], seed: 3),
    ]
    expectGood(
      "linear \(n)",
      checkGradients(inputs) {
        linear($0[0], $0[1], bias: $0[2])
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
      })
  }

  @Test(arguments: sizes) func rmsNormMatches(size: Int) {
    let inputs = [TestInput("x", [300, size], seed: 4), TestInput("w", [size], seed: 5)]
    expectGood(
      "rmsNorm \(size)",
      checkGradients(inputs) {
        rmsNorm($0[0], weight: $0[1], epsilon: 1e-5)
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
      })
  }

  @Test(arguments: sizes) func siluNormalizeMatches(size: Int) {
    expectGood(
      "siluNormalize \(size)",
      checkGradients([TestInput("x", [9, 2, size], seed: 9, scale: 2)]) {
        siluNormalize($0[0])
      })
  }

  @Test(arguments: sizes) func activationsMatch(size: Int) {
    expectGood(
      "silu \(size)",
      checkGradients([TestInput("x", [5, size], seed: 10, scale: 20)]) {
        silu($0[0])
      })
    expectGood(
      "swiGLU \(size)",
      checkGradients([TestInput("gate", [5, size], seed: 11, scale: 6), TestInput("up", [5, size], seed: 12)]) {
        swiGLU(gate: $0[0], up: $0[1])
      })
  }

  @Test func embeddingAndAddMatch() {
    let ids: [Int32] = [3, 0, 3, 3, 6, 1, 0]
    expectGood(
      "embedding",
      checkGradients([TestInput("table", [7, 37], seed: 13)]) {
        embedding($0[0], $0[0].backend.tensor(ids))
      })
    // x used twice: the slots may share a gradient but not change each other's.
    expectGood(
      "add",
      checkGradients([TestInput("x", [5, 21], seed: 14), TestInput("y", [5, 21], seed: 15)]) {
        add(add($0[0], $0[1]), silu($0[0]))
      })
  }

  @Test(arguments: [2, 6, 16, 34]) func rotaryMatches(size: Int) {
    let positions = [0, 1, 5, 1000, 131_071]
    expectGood(
      "rotary \(size)",
      checkGradients([TestInput("x", [5, 3, size], seed: 16)]) {
        rotaryEmbedding(
          $0[0], layout: Layout(Segments(count: 5, length: 1), starts: positions, on: $0[0].backend),
          angles: RotaryAngles(theta: 1e6))
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
        attention(x[0], x[1], x[2], spans: Layout(Segments(segments), on: x[0].backend).spans(window: window))
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
          spans: AttentionSpans([
            AttentionSpan(queries: 0..<1, keys: 0..<80), AttentionSpan(queries: 1..<80, keys: 0..<79, window: 16),
          ]))
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
        dynamicConvolution($0[0], kernels: $0[1], layout: Layout(Segments(segments), on: $0[0].backend))
      })
  }

  /// Taps made of the token: strips of 256 tokens, blocks of 64 channels, and what is shorter.
  @Test(arguments: [1, 5, 64, 300], [1, 15, 16, 70]) func generatedConvolutionMatches(tokens: Int, channels: Int) {
    let segments = tokens < 5 ? [0..<tokens] : [0..<2, 2..<tokens]
    let inputs = [
      TestInput("x", [tokens, channels], seed: 23), TestInput("inner", [tokens, 9], seed: 24),
      TestInput("weight", [4 * channels, 9], seed: 25), TestInput("bias", [4 * channels], seed: 26),
    ]
    expectGood(
      "generatedConvolution \(tokens)x\(channels)",
      checkGradients(inputs) {
        dynamicConvolution(
          $0[0], inner: $0[1], weight: $0[2], bias: $0[3], layout: Layout(Segments(segments), on: $0[0].backend))
      })
  }

  /// Layers of one input whose matrices lie together, apart, or some of each, and all ops that read columns of what they
  /// make in place: a gradient of every part, and of none.
  @Test(arguments: [1, 17, 65], [[0, 1, 2], [0, 0, 1], [0, 0, 0]]) func packedLayersMatch(n: Int, places: [Int]) {
    let widths = [24, 8, 40]
    let inputs =
      [TestInput("x", [n, 19], seed: 1)]
      + Set(places).sorted().map { place in
        let rows = zip(places, widths).reduce(0) { $0 + ($1.0 == place ? $1.1 : 0) }
        return TestInput("w\(place)", [rows, 19], seed: UInt64(place + 2))
      } + [TestInput("b", [72], seed: 9), TestInput("norm", [12], seed: 10)]
    expectGood(
      "packed \(n) \(places)",
      checkGradients(inputs) { x in
        let parts = split(linear(x[0], Array(x[1..<x.count - 2]), biases: [x[x.count - 2]]), widths)
        let layout = Layout(Segments(count: 1, length: n), on: x[0].backend)
        let rotated = rotaryEmbedding(parts[0].reshaped([n, 2, 12]), layout: layout, angles: RotaryAngles(theta: 100))
          .reshaped([n, 24])
        let normed = siluNormalize(parts[0].reshaped([n, 2, 12])).reshaped([n, 24])
        let gated = gatedRMSNorm(rotated.reshaped([n, 2, 12]), gate: parts[0], weight: x[x.count - 1], epsilon: 1e-5)
        // Of the last part no gradient is asked but through its first columns.
        let up = columns(parts[2], 0..<24)
        return add(add(swiGLU(gate: parts[0], up: up), normed), gated)
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
        gatedDeltaRule(
          q: $0[0], k: $0[1], v: $0[2], g: $0[3], beta: $0[4], layout: Layout(Segments(segments), on: $0[0].backend))
      })
  }

  @Test func gatedDeltaRuleContinues() {
    let (tokens, heads, keys, values) = (1000, 2, 12, 20)
    func random(_ shape: [Int], _ seed: UInt64) -> [Float] { randomFloats(shape.reduce(1, *), seed: seed) }
    let q = random([tokens, heads, keys], 1)
    let k = random([tokens, heads, keys], 2).map { $0 * 0.4 }
    let v = random([tokens, heads, values], 3)
    let g = random([tokens, heads], 4).map { $0 * 0.1 - 0.1 }
    let beta = random([tokens, heads], 5).map { $0 * 0.4 + 0.5 }
    let initial = random([heads, keys, values], 6)
    // In pieces of any size, handing the state on; the reference in one.
    let errors = compareWithReference { backend in
      let state = backend.tensor(initial, [1, heads, keys, values])
      let output = backend.empty([tokens, heads, values])
      var first = 0
      for piece in backend is ReferenceBackend ? [tokens] : [1, 2, 3, 64, 65, 300, 565] {
        func part(_ x: [Float], _ shape: [Int]) -> Tensor {
          let width = shape.reduce(1, *)
          return backend.tensor(Array(x[first * width..<(first + piece) * width]), [piece] + shape)
        }
        let o = gatedDeltaRule(
          q: part(q, [heads, keys]), k: part(k, [heads, keys]), v: part(v, [heads, values]), g: part(g, [heads]),
          beta: part(beta, [heads]), layout: Layout(Segments(count: 1, length: piece), on: backend), initial: state,
          final: state)
        backend.copy(o, into: output.rows(first..<first + piece))
        first += piece
      }
      return [output, state]
    }
    print("gatedDeltaRule in pieces: output \(errors[0]), state \(errors[1])")
    #expect(errors.allSatisfy { $0 < 5e-6 })
  }

  /// Losses and the gradients that they seed, against the reference's; and the reference's against differences of its
  /// losses.
  @Test(arguments: [1, 63, 70]) func vocabularyLossMatches(tokens: Int) {
    let (size, vocabulary) = (9, 101)
    let labels = (0..<tokens).map { $0 % 7 == 3 ? Int32(-1) : Int32($0 * 31 % vocabulary) }
    let hidden = randomFloats(tokens * size, seed: 1).map(Double.init)
    let weight = randomFloats(vocabulary * size, seed: 2).map(Double.init)
    let (teacherHidden, teacherWeight) = (randomFloats(tokens * 5, seed: 3), randomFloats(vocabulary * 5, seed: 4))
    let (ceSeed, klSeed) = (Float(0.3), Float(0.7))
    func run(_ backend: any Backend, _ hidden: Tensor, _ weight: Tensor) -> [Tensor] {
      var (x, w) = (hidden, weight)
      x.slot = GradientSlot(shape: x.shape, backend: backend)
      w.slot = GradientSlot(shape: w.shape, backend: backend)
      let (losses, _) = backend.recording {
        vocabularyLoss(
          hidden: x, weight: w,
          teacher: TeacherHead(
            hidden: backend.tensor(teacherHidden, [tokens, 5]), weight: backend.tensor(teacherWeight, [vocabulary, 5])),
          labels: backend.tensor(labels), crossEntropySeed: ceSeed, klSeed: klSeed)
      }
      return [losses.crossEntropy, losses.kl, x.slot!.gradient!, w.slot!.gradient!]
    }
    let errors = compareWithReference { backend in
      run(
        backend, backend.tensor(hidden.map(Float.init), [tokens, size]),
        backend.tensor(weight.map(Float.init), [vocabulary, size]))
    }
    print("op vocabularyLoss \(tokens): losses and gradients off by \(errors)")
    #expect(errors[0] < 2e-6 && errors[1] < 1e-5 && errors[2] < 1e-5 && errors[3] < 1e-5)
    let reference = ReferenceBackend()
    func results(_ hidden: [Double], _ weight: [Double]) -> [[Double]] {
      run(
        reference, reference.tensor(doubles: hidden, [tokens, size]),
        reference.tensor(doubles: weight, [vocabulary, size])
      ).map(reference.doubles)
    }
    for (index, count) in [(2, hidden.count), (3, weight.count)] {
      let direction = randomFloats(count, seed: 5).map(Double.init)
      func total(_ sign: Double) -> Double {
        let moved = zip(index == 2 ? hidden : weight, direction).map { $0 + sign * 1e-5 * $1 }
        let losses = index == 2 ? results(moved, weight) : results(hidden, moved)
        return losses[0].reduce(0, +) * Double(ceSeed) + losses[1].reduce(0, +) * Double(klSeed)
      }
      let numeric = (total(1) - total(-1)) / 2e-5
      let analytic = zip(results(hidden, weight)[index], direction).reduce(0) { $0 + $1.0 * $1.1 }
      let error = abs(numeric - analytic) / max(abs(numeric), 1e-9)
      #expect(error < 1e-6, "gradient \(index): \(error)")
    }
  }

  @Test(arguments: [1, 33, 65], [false, true]) func squaredErrorMatches(size: Int, adds: Bool) {
    let errors = compareWithReference { backend in
      var x = backend.tensor(randomFloats(7 * size, seed: 1), [7, size])
      let target = backend.tensor(randomFloats(7 * size, seed: 2), [7, size])
      x.slot = GradientSlot(shape: x.shape, backend: backend)
      if adds { x.slot?.accumulate(backend.tensor(randomFloats(7 * size, seed: 3), [7, size])) }
      let (losses, _) = backend.recording { squaredError(x, target: target, seed: 0.5) }
      return [losses, x.slot!.gradient!]
    }
    #expect(errors.allSatisfy { $0 < 1e-6 }, "\(errors)")
  }

  /// To the bit: what is computed again is computed alike. And what is not kept is not there.
  @Test func recomputationGivesTheSameGradients() {
    func gradients(_ policy: Recomputation) -> (kept: Int, gradients: [[Float]]) {
      let backend = CPUBackend(threads: 2)
      var x = backend.tensor(randomFloats(40 * 24, seed: 1), [40, 24])
      var w = backend.tensor(randomFloats(24 * 24, seed: 2), [24, 24])
      x.slot = GradientSlot(shape: x.shape, backend: backend)
      w.slot = GradientSlot(shape: w.shape, backend: backend)
      let before = backend.liveBytes
      let (y, tape) = backend.recording {
        recomputing(policy, x) { x in
          let norm = rmsNorm(x, weight: backend.filled([24], with: 1.5), epsilon: 1e-5)
          let inner = silu(linear(norm, w))
          return linear(swiGLU(gate: inner, up: silu(linear(inner, w))), w)
        }
      }
      let kept = backend.liveBytes - before
      y.slot!.accumulate(backend.tensor(randomFloats(40 * 24, seed: 3), [40, 24]))
      tape.backward()
      return (kept, [x.slot!.gradient!.toArray(), w.slot!.gradient!.toArray()])
    }
    let ways = Recomputation.allCases.map(gradients)
    #expect(ways.allSatisfy { $0.gradients == ways[0].gradients })
    #expect(ways[0].kept > ways[1].kept && ways[1].kept > ways[2].kept, "\(ways.map(\.kept))")
  }

  /// Order-stable: the same bits on any number of threads.
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
