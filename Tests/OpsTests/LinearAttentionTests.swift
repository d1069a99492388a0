import CPUBackend
import Foundation
import Ops
import Tensors
import TestSupport
import Testing

/// The recurrences of linear attention and what their gates are made of, each against its definition in double precision.
@Suite struct LinearAttentionTests {
  private func expectGood(_ name: String, _ report: GradientReport, output: Double = 2e-6, gradient: Double = 1e-4) {
    print("\(name): output \(report.output), gradients \(report.gradients.values.max() ?? 0)")
    #expect(report.output <= output, "\(name): output \(report.output)")
    for (input, error) in report.gradients { #expect(error <= gradient, "\(name): gradient of \(input) \(error)") }
  }

  @Test(arguments: [1, 15, 16, 50]) func elementFunctionsMatch(size: Int) {
    let functions: [(String, ElementFunction, (Double) -> Double)] = [
      ("sigmoid", .sigmoid, Naive.sigmoid), ("logSigmoid", .logSigmoid(scale: 0.25), { -0.25 * log1p(exp(-$0)) }),
      ("softplus", .softplus, { log1p(exp($0)) }), ("tanh", .tanh, { tanh($0) }),
      ("negativeExponential", .negativeExponential, { -exp($0) }),
      ("scaledSigmoid", .scaledSigmoid(scale: -0.6), { -0.6 * Naive.sigmoid($0) }),
      ("sigmoidMinusOne", .sigmoidMinusOne, { Naive.sigmoid($0) - 1 }),
    ]
    for (name, function, twin) in functions {
      expectGood(
        name,
        checkGradients([TestInput("x", [3, size], seed: 1, scale: 4)]) {
          apply(function, $0[0])
        } twin: {
          $0[0].map(twin)
        })
    }
  }

  @Test(arguments: [1, 15, 16, 50]) func productsThatBroadcastMatch(size: Int) {
    let (x, y) = (TestInput("x", [6, 2, size], seed: 2), TestInput("y", [6, 2, size], seed: 3))
    expectGood(
      "multiply",
      checkGradients([x, y]) {
        multiply($0[0], $0[1])
      } twin: {
        zip($0[0], $0[1]).map(*)
      })
    expectGood(
      "scaleRows",
      checkGradients([x, TestInput("s", [6, 2], seed: 4)]) {
        scaleRows($0[0], by: $0[1])
      } twin: { v in
        v[0].indices.map { v[0][$0] * v[1][$0 / size] }
      })
    expectGood(
      "rowProducts",
      checkGradients([x, y]) {
        rowProducts($0[0], $0[1])
      } twin: { v in
        (0..<12).map { m in (0..<size).reduce(0) { $0 + v[0][m * size + $1] * v[1][m * size + $1] } }
      })
    for scales in [2, 2 * size] {
      expectGood(
        "scaleColumns \(scales)",
        checkGradients([TestInput("x", [6, 2 * size], seed: 2), TestInput("s", [scales], seed: 5)]) {
          scaleColumns($0[0], by: $0[1])
        } twin: { v in
          v[0].indices.map { v[0][$0] * v[1][$0 % (2 * size) / (2 * size / scales)] }
        })
    }
    expectGood(
      "addBias",
      checkGradients([TestInput("x", [6, size], seed: 2), TestInput("b", [size], seed: 6)]) {
        addBias($0[0], $0[1])
      } twin: { v in
        v[0].indices.map { v[0][$0] + v[1][$0 % size] }
      })
    expectGood(
      "repeatHeads",
      checkGradients([TestInput("x", [5, 2, size], seed: 7)]) {
        repeatHeads($0[0], 6)
      } twin: { v in
        (0..<5 * 6 * size).map { i in v[0][(i / (6 * size) * 2 + i / size % 6 / 3) * size + i % size] }
      })
    expectGood(
      "columns",
      checkGradients([TestInput("x", [5, 3 * size], seed: 8)]) {
        columns($0[0], size..<2 * size)
      } twin: { v in
        (0..<5 * size).map { i in v[0][i / size * 3 * size + size + i % size] }
      })
  }

  @Test(arguments: [1, 15, 16, 50]) func rowNormsMatch(size: Int) {
    expectGood(
      "normalizeLength",
      checkGradients([TestInput("x", [6, 2, size], seed: 9)]) {
        normalizeLength($0[0])
      } twin: { v in
        v[0].indices.map { i in
          let row = v[0][i / size * size..<(i / size + 1) * size]
          return v[0][i] / (row.reduce(0) { $0 + $1 * $1 } + 1e-6).squareRoot()
        }
      })
    expectGood(
      "standardize",
      checkGradients([TestInput("x", [6, 2, size], seed: 10)]) {
        standardize($0[0], epsilon: 1e-3)
      } twin: { v in
        v[0].indices.map { i in
          let row = v[0][i / size * size..<(i / size + 1) * size]
          let mean = row.reduce(0, +) / Double(size)
          let variance = row.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(size)
          return (v[0][i] - mean) / (variance + 1e-3).squareRoot()
        }
      })
  }

  @Test(arguments: [1, 3, 5, 64], [1, 16, 33]) func shortConvolutionMatches(tokens: Int, channels: Int) {
    let segments = Segments([0..<tokens, tokens..<tokens + 2])
    let x = TestInput("x", [tokens + 2, channels], seed: 11)
    let inputs = [x, TestInput("w", [channels, 1, 4], seed: 12), TestInput("b", [channels], seed: 13)]
    func convolution(_ v: [[Double]]) -> [Double] {
      var out: [Double] = []
      for range in segments.ranges {
        for t in range {
          for c in 0..<channels {
            var u = v[2][c]
            for w in 0..<4 where t - 3 + w >= range.lowerBound {
              u += v[1][c * 4 + w] * v[0][(t - 3 + w) * channels + c]
            }
            out.append(Naive.silu(u))
          }
        }
      }
      return out
    }
    func shift(_ v: [[Double]]) -> [Double] {
      var out: [Double] = []
      for range in segments.ranges {
        for t in range {
          for c in 0..<channels {
            let before = t > range.lowerBound ? v[0][(t - 1) * channels + c] : 0
            out.append(before - v[0][t * channels + c])
          }
        }
      }
      return out
    }
    let convolved = checkGradients(
      inputs, op: { shortConvolution($0[0], weight: $0[1], bias: $0[2], segments: segments) }, twin: convolution)
    expectGood("shortConvolution", convolved)
    let shifted = checkGradients([x], op: { tokenShift($0[0], segments: segments) }, twin: shift)
    expectGood("tokenShift", shifted)
  }

  // MARK: - Recurrences

  /// S ← e^g S + β (αᵀ S) + k vᵀ; o = scale Sᵀ q, token by token; without α and β the decayed kind. `gates` is 1 for one a
  /// head.
  private func recurrence(
    _ v: [[Double]], alpha: [Double]?, beta: [Double]?, heads: Int, keys: Int, values: Int, gates: Int,
    segments: [Range<Int>], initial: [Double]?
  ) -> (o: [Double], final: [Double]) {
    let (q, k, x, g) = (v[0], v[1], v[2], v[3])
    let scale = 1 / Double(keys).squareRoot()
    var o = [Double](repeating: 0, count: x.count)
    var final: [Double] = []
    let size = keys * values
    for (s, segment) in segments.enumerated() {
      for h in 0..<heads {
        let place = s * heads + h
        var state = [Double](repeating: 0, count: size)
        if let initial { state = Array(initial[place * size..<(place + 1) * size]) }
        for t in segment {
          let at = t * heads + h
          for j in 0..<values {
            var read = 0.0
            if let alpha { for i in 0..<keys { read += alpha[at * keys + i] * state[i * values + j] } }
            for i in 0..<keys {
              let gate = gates == 1 ? g[at] : g[at * keys + i]
              var next = exp(gate) * state[i * values + j]
              if let beta { next += beta[at * keys + i] * read }
              next += k[at * keys + i] * x[at * values + j]
              state[i * values + j] = next
              o[at * values + j] += scale * q[at * keys + i] * next
            }
          }
        }
        final += state
      }
    }
    return (o, final)
  }

  /// The chunkwise form against the recurrence, with states handed in and out, at lengths around a chunk's.
  @Test(arguments: [1, 2, 15, 16, 17, 63, 64, 65, 1000], [1, 6])
  func decayedAttentionMatches(tokens: Int, gates: Int) {
    let (heads, keys, values) = (2, 6, 5)
    let segments = Segments([0..<tokens, tokens..<tokens + 3])
    let n = tokens + 3
    for decay: Float in [0.3, 20] {
      func negative(_ count: Int) -> [Float] { randomFloats(count, seed: 24).map { -abs($0) * decay } }
      let backend = CPUBackend(threads: 2)
      backend.poisonsNewTensors = true
      let arrays = [
        randomFloats(n * heads * keys, seed: 21), randomFloats(n * heads * keys, seed: 22),
        randomFloats(n * heads * values, seed: 23), negative(n * heads * gates),
      ]
      let start = randomFloats(2 * heads * keys * values, seed: 25)
      let final = backend.empty([2, heads, keys, values])
      let o = decayedAttention(
        q: backend.tensor(arrays[0], [n, heads, keys]), k: backend.tensor(arrays[1], [n, heads, keys]),
        v: backend.tensor(arrays[2], [n, heads, values]),
        g: backend.tensor(arrays[3], gates == 1 ? [n, heads] : [n, heads, keys]), scale: 1 / Float(keys).squareRoot(),
        segments: segments, initial: backend.tensor(start, [2, heads, keys, values]), final: final)
      let twin = recurrence(
        arrays.map { $0.map(Double.init) }, alpha: nil, beta: nil, heads: heads, keys: keys, values: values,
        gates: gates,
        segments: segments.ranges, initial: start.map(Double.init))
      let errors = (
        relativeError(o.toArray(), twin.o.map(Float.init)), relativeError(final.toArray(), twin.final.map(Float.init))
      )
      print("decayedAttention T=\(tokens) gates=\(gates) decay=\(decay): output \(errors.0), state \(errors.1)")
      #expect(errors.0 < 2e-6 && errors.1 < 2e-6, "T \(tokens), gates \(gates), decay \(decay): \(errors)")
    }
  }

  @Test(arguments: [1, 2, 17, 65], [1, 4]) func decayedAttentionGradientsMatch(tokens: Int, gates: Int) {
    let (heads, keys, values) = (2, 4, 3)
    let segments = Segments([0..<tokens, tokens..<tokens + 2])
    let n = tokens + 2
    expectGood(
      "decayedAttention T=\(tokens) gates=\(gates)",
      checkGradients([
        TestInput("q", [n, heads, keys], seed: 31), TestInput("k", [n, heads, keys], seed: 32),
        TestInput("v", [n, heads, values], seed: 33),
        TestInput("g", gates == 1 ? [n, heads] : [n, heads, keys], seed: 34, scale: 0.2, shift: -0.4),
      ]) {
        decayedAttention(
          q: $0[0], k: $0[1], v: $0[2], g: $0[3], scale: 1 / Float(keys).squareRoot(), segments: segments)
      } twin: {
        recurrence(
          $0, alpha: nil, beta: nil, heads: heads, keys: keys, values: values, gates: gates, segments: segments.ranges,
          initial: nil
        ).o
      })
  }

  @Test(arguments: [1, 2, 63, 64, 65, 130]) func diagonalPlusLowRankMatches(tokens: Int) {
    let (heads, keys, values) = (2, 4, 3)
    let segments = Segments([0..<tokens, tokens..<tokens + 2])
    let n = tokens + 2
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
          segments: segments)
      } twin: {
        recurrence(
          $0, alpha: $0[4], beta: $0[5], heads: heads, keys: keys, values: values, gates: keys,
          segments: segments.ranges, initial: nil
        ).o
      })
  }
}
