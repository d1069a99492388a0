import CPUBackend
import Foundation
import Ops
import Tensors
import TestSupport
import Testing

/// The recurrences of linear attention and what their gates are made of, each against ``ReferenceBackend``.
@Suite struct LinearAttentionTests {
  @Test(arguments: [1, 15, 16, 50]) func elementFunctionsMatch(size: Int) {
    let functions: [(String, ElementFunction)] = [
      ("silu", .silu), ("sigmoid", .sigmoid), ("logSigmoid", .logSigmoid(scale: 0.25)), ("softplus", .softplus),
      ("tanh", .tanh), ("negativeExponential", .negativeExponential), ("scaledSigmoid", .scaledSigmoid(scale: -0.6)),
      ("gelu", .gelu), ("sigmoidMinusOne", .sigmoidMinusOne), ("inverseRoot", .inverseRoot(scale: 0.1, epsilon: 1)),
    ]
    for (name, function) in functions {
      expectGood(
        name,
        checkGradients([TestInput("x", [3, size], seed: 1, scale: 4)]) {
          apply(function, $0[0])
        })
    }
  }

  @Test(arguments: [1, 15, 16, 50]) func productsThatBroadcastMatch(size: Int) {
    let (x, y) = (TestInput("x", [6, 2, size], seed: 2), TestInput("y", [6, 2, size], seed: 3))
    expectGood(
      "multiply",
      checkGradients([x, y]) {
        multiplyElements($0[0], $0[1])
      })
    expectGood(
      "scaleRows",
      checkGradients([x, TestInput("s", [6, 2], seed: 4)]) {
        scaleRows($0[0], by: $0[1])
      })
    expectGood(
      "rowProducts",
      checkGradients([x, y]) {
        rowProducts($0[0], $0[1])
      })
    for scales in [2, 2 * size] {
      expectGood(
        "scaleColumns \(scales)",
        checkGradients([TestInput("x", [6, 2 * size], seed: 2), TestInput("s", [scales], seed: 5)]) {
          scaleColumns($0[0], by: $0[1])
        })
    }
    expectGood(
      "addBias",
      checkGradients([TestInput("x", [6, size], seed: 2), TestInput("b", [size], seed: 6)]) {
        addBias($0[0], $0[1])
      })
    expectGood(
      "repeatHeads",
      checkGradients([TestInput("x", [5, 2, size], seed: 7)]) {
        repeatHeads($0[0], 6)
      })
    expectGood(
      "columns",
      checkGradients([TestInput("x", [5, 3 * size], seed: 8)]) {
        columns($0[0], size..<2 * size)
      })
  }

  @Test(arguments: [1, 15, 16, 50]) func rowNormsMatch(size: Int) {
    expectGood(
      "normalizeLength",
      checkGradients([TestInput("x", [6, 2, size], seed: 9)]) {
        normalizeLength($0[0])
      })
    expectGood(
      "standardize",
      checkGradients([TestInput("x", [6, 2, size], seed: 10)]) {
        standardize($0[0], epsilon: 1e-3)
      })
  }

  @Test(arguments: [1, 3, 5, 64], [1, 16, 33]) func shortConvolutionMatches(tokens: Int, channels: Int) {
    func layout(_ x: Tensor) -> Layout { Layout(Segments([0..<tokens, tokens..<tokens + 2]), on: x.backend) }
    let x = TestInput("x", [tokens + 2, channels], seed: 11)
    let inputs = [x, TestInput("w", [channels, 1, 4], seed: 12), TestInput("b", [channels], seed: 13)]
    expectGood(
      "shortConvolution",
      checkGradients(inputs) { shortConvolution($0[0], weight: $0[1], bias: $0[2], layout: layout($0[0])) })
    expectGood(
      "shortConvolution without bias",
      checkGradients([inputs[0], inputs[1]]) { shortConvolution($0[0], weight: $0[1], layout: layout($0[0])) })
    expectGood("tokenShift", checkGradients([x]) { tokenShift($0[0], layout: layout($0[0])) })
  }

  // MARK: - Recurrences

  /// The chunkwise form against the recurrence, with states handed in and out, at lengths around a chunk's.
  @Test(arguments: [1, 2, 15, 16, 17, 63, 64, 65, 1009], [1, 6])
  func decayedAttentionMatches(tokens: Int, gates: Int) {
    let (heads, keys, values) = (2, 6, 5)
    let n = tokens + 3
    for decay: Float in [0.3, 20] {
      let errors = compareWithReference { backend in
        func random(_ shape: [Int], _ seed: UInt64) -> Tensor {
          backend.tensor(randomFloats(shape.reduce(1, *), seed: seed), shape)
        }
        let g = randomFloats(n * heads * gates, seed: 24).map { -abs($0) * decay }
        let final = backend.empty([2, heads, keys, values])
        let o = decayedAttention(
          q: random([n, heads, keys], 21), k: random([n, heads, keys], 22), v: random([n, heads, values], 23),
          g: backend.tensor(g, gates == 1 ? [n, heads] : [n, heads, keys]), scale: 1 / Float(keys).squareRoot(),
          layout: Layout(Segments([0..<tokens, tokens..<n]), on: backend),
          initial: random([2, heads, keys, values], 25), final: final)
        return [o, final]
      }
      print("decayedAttention T=\(tokens) gates=\(gates) decay=\(decay): output \(errors[0]), state \(errors[1])")
      #expect(errors.allSatisfy { $0 < 2e-6 }, "T \(tokens), gates \(gates), decay \(decay): \(errors)")
    }
  }

  @Test(arguments: [1, 2, 17, 65], [1, 4]) func decayedAttentionGradientsMatch(tokens: Int, gates: Int) {
    let (heads, keys, values) = (2, 4, 3)
    let n = tokens + 2
    func layout(_ x: Tensor) -> Layout { Layout(Segments([0..<tokens, tokens..<n]), on: x.backend) }
    expectGood(
      "decayedAttention T=\(tokens) gates=\(gates)",
      checkGradients([
        TestInput("q", [n, heads, keys], seed: 31), TestInput("k", [n, heads, keys], seed: 32),
        TestInput("v", [n, heads, values], seed: 33),
        TestInput("g", gates == 1 ? [n, heads] : [n, heads, keys], seed: 34, scale: 0.2, shift: -0.4),
      ]) {
        decayedAttention(
          q: $0[0], k: $0[1], v: $0[2], g: $0[3], scale: 1 / Float(keys).squareRoot(), layout: layout($0[0]))
      })
  }

  @Test(arguments: [1, 2, 63, 64, 65, 130]) func diagonalPlusLowRankMatches(tokens: Int) {
    let (heads, keys, values) = (2, 4, 3)
    let n = tokens + 2
    func layout(_ x: Tensor) -> Layout { Layout(Segments([0..<tokens, tokens..<n]), on: x.backend) }
    expectGood(
      "diagonalPlusLowRank T=\(tokens)",
      checkGradients([
        TestInput("q", [n, heads, keys], seed: 41), TestInput("k", [n, heads, keys], seed: 42),
        TestInput("v", [n, heads, values], seed: 43),
        TestInput("g", [n, heads, keys], seed: 44, scale: 0.2, shift: -0.6),
        TestInput("alpha", [n, heads, keys], seed: 45, scale: 0.3),
        TestInput("beta", [n, heads, keys], seed: 46, scale: 0.3),
      ]) {
        diagonalPlusLowRank(
          q: $0[0], k: $0[1], v: $0[2], alpha: $0[4], beta: $0[5], g: $0[3], scale: 1 / Float(keys).squareRoot(),
          layout: layout($0[0]))
      })
  }
}
