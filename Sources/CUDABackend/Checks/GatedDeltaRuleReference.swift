import Foundation

/// The gated delta rule and its gradients, token by token in double precision: what the card's kernels are compared
/// with. Arrays are flat and row-major, shaped as in `GatedDeltaRule`.
package struct GatedDeltaRuleReference: Sendable {
  let heads: Int
  let keySize: Int
  let valueSize: Int
  let segments: [Range<Int>]
  let scale: Double

  package struct Inputs: Sendable {
    package var q, k, v, g, beta, dO: [Float]
    /// `[segments, H, K, V]` or nil.
    package var initial, dFinal: [Float]?
  }

  package struct Results: Sendable {
    package var o, final, dQ, dK, dV, dG, dBeta, dInitial: [Double]
  }

  /// Value channels that one task goes through alone; what sums over channels is added up in their order.
  private static let slice = 16
  /// Tokens between states that are kept for the way back.
  private static let span = 64

  package func run(_ x: Inputs) -> Results {
    let (H, K, V) = (heads, keySize, valueSize)
    let tokens = segments.last?.upperBound ?? 0
    let states = segments.count * H * K * V
    let slices = (V + Self.slice - 1) / Self.slice
    var results = Results(
      o: .init(repeating: 0, count: tokens * H * V), final: .init(repeating: 0, count: states),
      dQ: .init(repeating: 0, count: tokens * H * K), dK: .init(repeating: 0, count: tokens * H * K),
      dV: .init(repeating: 0, count: tokens * H * V), dG: .init(repeating: 0, count: tokens * H),
      dBeta: .init(repeating: 0, count: tokens * H), dInitial: .init(repeating: 0, count: states))
    let partials = (0..<slices).map { _ in
      Partial(keys: tokens * H * K, heads: tokens * H)
    }
    results.o.withUnsafeMutableBufferPointer { o in
      results.final.withUnsafeMutableBufferPointer { final in
        results.dV.withUnsafeMutableBufferPointer { dV in
          results.dInitial.withUnsafeMutableBufferPointer { dInitial in
            nonisolated(unsafe) let places = (o.baseAddress, final.baseAddress, dV.baseAddress, dInitial.baseAddress)
            DispatchQueue.concurrentPerform(iterations: segments.count * H * slices) { task in
              walk(
                x, segment: task / (H * slices), head: task / slices % H, slice: task % slices,
                partial: partials[task % slices], o: places.0, final: places.1, dV: places.2, dInitial: places.3)
            }
          }
        }
      }
    }
    for partial in partials {
      for i in results.dQ.indices {
        results.dQ[i] += partial.dQ[i]
        results.dK[i] += partial.dK[i]
      }
      for i in results.dG.indices {
        results.dG[i] += partial.dG[i]
        results.dBeta[i] += partial.dBeta[i]
      }
    }
    return results
  }

  /// Sums over the channels of one slice; tasks of one slice write different tokens and heads.
  private final class Partial: @unchecked Sendable {
    let dQ, dK, dG, dBeta: UnsafeMutablePointer<Double>

    init(keys: Int, heads: Int) {
      func zeros(_ count: Int) -> UnsafeMutablePointer<Double> {
        let p = UnsafeMutablePointer<Double>.allocate(capacity: max(count, 1))
        p.initialize(repeating: 0, count: count)
        return p
      }
      (dQ, dK, dG, dBeta) = (zeros(keys), zeros(keys), zeros(heads), zeros(heads))
    }

    deinit { for sums in [dQ, dK, dG, dBeta] { sums.deallocate() } }
  }

  private func walk(
    _ x: Inputs, segment: Int, head: Int, slice: Int, partial: Partial, o: UnsafeMutablePointer<Double>?,
    final: UnsafeMutablePointer<Double>?, dV: UnsafeMutablePointer<Double>?, dInitial: UnsafeMutablePointer<Double>?
  ) {
    let (K, V) = (keySize, valueSize)
    let channels = slice * Self.slice..<min(V, (slice + 1) * Self.slice)
    let n = channels.count
    let range = segments[segment]
    let sequence = (segment * heads + head) * K * V
    func index(_ t: Int) -> Int { t * heads + head }

    // One token: the state decays, learns what it lacks, and is asked. Returns what it lacked, v − Sᵀ k.
    func step(_ s: inout [Double], _ t: Int) -> [Double] {
      let i = index(t)
      let decay = exp(Double(x.g[i]))
      for j in s.indices { s[j] *= decay }
      var lack = channels.map { Double(x.v[i * V + $0]) }
      for c in 0..<K {
        let key = Double(x.k[i * K + c])
        for j in 0..<n { lack[j] -= key * s[c * n + j] }
      }
      let b = Double(x.beta[i])
      for c in 0..<K {
        let key = Double(x.k[i * K + c]) * b
        for j in 0..<n { s[c * n + j] += key * lack[j] }
      }
      return lack
    }

    var s = [Double](repeating: 0, count: K * n)
    if let initial = x.initial {
      for c in 0..<K { for j in 0..<n { s[c * n + j] = Double(initial[sequence + c * V + channels.lowerBound + j]) } }
    }
    var kept: [[Double]] = []
    for t in range {
      if (t - range.lowerBound) % Self.span == 0 { kept.append(s) }
      _ = step(&s, t)
      let i = index(t)
      var out = [Double](repeating: 0, count: n)
      for c in 0..<K {
        let query = Double(x.q[i * K + c]) * scale
        for j in 0..<n { out[j] += query * s[c * n + j] }
      }
      for j in 0..<n { o![i * V + channels.lowerBound + j] = out[j] }
    }
    for c in 0..<K { for j in 0..<n { final![sequence + c * V + channels.lowerBound + j] = s[c * n + j] } }

    var ds = [Double](repeating: 0, count: K * n)
    if let dFinal = x.dFinal {
      for c in 0..<K { for j in 0..<n { ds[c * n + j] = Double(dFinal[sequence + c * V + channels.lowerBound + j]) } }
    }
    for (part, start) in kept.enumerated().reversed() {
      let first = range.lowerBound + part * Self.span
      let last = min(range.upperBound, first + Self.span)
      var (states, lacks): ([[Double]], [[Double]]) = ([start], [])
      for t in first..<last {
        var next = states.last!
        lacks.append(step(&next, t))
        states.append(next)
      }
      for t in (first..<last).reversed() {
        let i = index(t)
        let (after, lack) = (states[t - first + 1], lacks[t - first])
        let decay = exp(Double(x.g[i]))
        let before = states[t - first].map { $0 * decay }
        let b = Double(x.beta[i])
        let dOut = channels.map { Double(x.dO[i * V + $0]) * scale }
        var dChange = [Double](repeating: 0, count: n)
        for c in 0..<K {
          let (query, key) = (Double(x.q[i * K + c]), Double(x.k[i * K + c]))
          var (dq, dk) = (0.0, 0.0)
          for j in 0..<n {
            dq += after[c * n + j] * dOut[j]
            ds[c * n + j] += query * dOut[j]
            dk += ds[c * n + j] * b * lack[j]
            dChange[j] += ds[c * n + j] * key
          }
          partial.dQ[i * K + c] = dq
          partial.dK[i * K + c] = dk
        }
        var dBeta = 0.0
        for j in 0..<n {
          dBeta += dChange[j] * lack[j]
          dChange[j] *= b
          dV![i * V + channels.lowerBound + j] = dChange[j]
        }
        partial.dBeta[i] = dBeta
        var dG = 0.0
        for c in 0..<K {
          let key = Double(x.k[i * K + c])
          var dk = 0.0
          for j in 0..<n {
            dk += dChange[j] * before[c * n + j]
            ds[c * n + j] -= key * dChange[j]
            dG += ds[c * n + j] * before[c * n + j]
            ds[c * n + j] *= decay
          }
          partial.dK[i * K + c] -= dk
        }
        partial.dG[i] = dG
      }
    }
    for c in 0..<K { for j in 0..<n { dInitial![sequence + c * V + channels.lowerBound + j] = ds[c * n + j] } }
  }
}
