import Foundation

/// Every op once more, in double precision and in the most obvious way: what the tests compare with and take finite
/// differences of. Arrays are flat and row-major.
package enum Naive {
  package static func sigmoid(_ x: Double) -> Double { 1 / (1 + exp(-x)) }
  package static func silu(_ x: Double) -> Double { x * sigmoid(x) }

  /// x [n, i] · wᵀ [o, i] + b [o]
  package static func linear(_ x: [Double], _ w: [Double], _ b: [Double], inputs: Int) -> [Double] {
    let outputs = w.count / inputs
    return (0..<x.count / inputs * outputs).map { index in
      let (n, o) = (index / outputs, index % outputs)
      return (0..<inputs).reduce(b[o]) { $0 + x[n * inputs + $1] * w[o * inputs + $1] }
    }
  }

  package static func rmsNorm(_ x: [Double], _ w: [Double], epsilon: Double) -> [Double] {
    let size = w.count
    return x.indices.map { i in
      let row = x[i / size * size..<(i / size + 1) * size]
      let mean = row.reduce(0) { $0 + $1 * $1 } / Double(size)
      return x[i] / (mean + epsilon).squareRoot() * w[i % size]
    }
  }

  package static func siluNormalize(_ x: [Double], size: Int, epsilon: Double) -> [Double] {
    let a = x.map(silu)
    return a.indices.map { i in
      let sum = a[i / size * size..<(i / size + 1) * size].reduce(0) { $0 + $1 * $1 }
      return a[i] / (sum + epsilon).squareRoot()
    }
  }

  /// x [n, heads, size], one position a token.
  package static func rotate(_ x: [Double], heads: Int, size: Int, positions: [Int32], theta: Double) -> [Double] {
    x.indices.map { index in
      let (token, i) = (index / (heads * size), index % size)
      let half = size / 2
      let angle = Double(positions[token]) * pow(theta, -2 * Double(i % half) / Double(size))
      let other = i < half ? -x[index + half] : x[index - half]
      return x[index] * cos(angle) + other * sin(angle)
    }
  }

  /// q [n, heads, size], k and v [m, groups, size]; `visible(query)` lists the keys of a query.
  package static func attention(
    _ q: [Double], _ k: [Double], _ v: [Double], heads: Int, groups: Int, size: Int, visible: (Int) -> [Int]
  ) -> [Double] {
    var o = [Double](repeating: 0, count: q.count)
    for n in 0..<q.count / (heads * size) {
      for h in 0..<heads {
        let g = h * groups / heads
        let keys = visible(n)
        let scores = keys.map { key in
          (0..<size).reduce(0) { $0 + q[(n * heads + h) * size + $1] * k[(key * groups + g) * size + $1] }
            / Double(size).squareRoot()
        }
        let most = scores.max() ?? 0
        let weights = scores.map { exp($0 - most) }
        let sum = weights.reduce(0, +)
        for (key, weight) in zip(keys, weights) {
          for i in 0..<size { o[(n * heads + h) * size + i] += weight / sum * v[(key * groups + g) * size + i] }
        }
      }
    }
    return o
  }

  /// x [n, channels], kernels [n, channels, 4].
  package static func dynamicConvolution(
    _ x: [Double], _ kernels: [Double], channels: Int, segments: [Range<Int>]
  ) -> [Double] {
    var y = [Double](repeating: 0, count: x.count)
    for segment in segments {
      for t in segment {
        for c in 0..<channels {
          var u = 0.0
          for w in 0..<4 where t - 3 + w >= segment.lowerBound {
            u += kernels[(t * channels + c) * 4 + w] * x[(t - 3 + w) * channels + c]
          }
          y[t * channels + c] = silu(u)
        }
      }
    }
    return y
  }

  package static func decay(_ a: [Double], _ aLog: [Double], _ bias: [Double]) -> [Double] {
    a.indices.map { i in
      let h = i % aLog.count
      return -exp(aLog[h]) * log1p(exp(a[i] + bias[h]))
    }
  }

  /// The recurrence as it is written, token by token.
  package static func gatedDeltaRule(
    q: [Double], k: [Double], v: [Double], g: [Double], beta: [Double], heads: Int, keys: Int, values: Int,
    segments: [Range<Int>], initial: [Double]? = nil
  ) -> (o: [Double], final: [Double]) {
    var o = [Double](repeating: 0, count: v.count)
    var final: [Double] = []
    let scale = 1 / Double(keys).squareRoot()
    for (s, segment) in segments.enumerated() {
      for h in 0..<heads {
        let first = (s * heads + h) * keys * values
        var state =
          initial.map { Array($0[first..<first + keys * values]) } ?? [Double](repeating: 0, count: keys * values)
        for t in segment {
          let (kt, vt) = ((t * heads + h) * keys, (t * heads + h) * values)
          let decay = exp(g[t * heads + h])
          for i in state.indices { state[i] *= decay }
          for j in 0..<values {
            let known = (0..<keys).reduce(0) { $0 + state[$1 * values + j] * k[kt + $1] }
            let delta = beta[t * heads + h] * (v[vt + j] - known)
            for i in 0..<keys { state[i * values + j] += k[kt + i] * delta }
          }
          for j in 0..<values {
            o[vt + j] = (0..<keys).reduce(0) { $0 + state[$1 * values + j] * q[kt + $1] } * scale
          }
        }
        final += state
      }
    }
    return (o, final)
  }

  /// Cross-entropy and KL of each row; zero where the label is negative.
  package static func vocabularyLosses(
    _ hidden: [Double], _ weight: [Double], teacher: ([Double], [Double])?, labels: [Int32], size: Int
  ) -> (crossEntropy: [Double], kl: [Double]) {
    let vocabulary = weight.count / size
    func logProbabilities(_ hidden: [Double], _ weight: [Double], _ n: Int) -> [Double] {
      let width = weight.count / vocabulary
      let z = (0..<vocabulary).map { v in
        (0..<width).reduce(0) { $0 + hidden[n * width + $1] * weight[v * width + $1] }
      }
      let most = z.max()!
      let sum = log(z.reduce(0) { $0 + exp($1 - most) }) + most
      return z.map { $0 - sum }
    }
    var (crossEntropy, kl) = ([Double](), [Double]())
    for (n, label) in labels.enumerated() {
      guard label >= 0 else {
        crossEntropy.append(0)
        kl.append(0)
        continue
      }
      let p = logProbabilities(hidden, weight, n)
      crossEntropy.append(-p[Int(label)])
      let t = teacher.map { logProbabilities($0.0, $0.1, n) } ?? p
      kl.append(zip(t, p).reduce(0) { $0 + exp($1.0) * ($1.0 - $1.1) })
    }
    return (crossEntropy, kl)
  }
}
