import Foundation
import Tensors

/// What moves information between tokens: as it is defined, token by token.
extension ReferenceBackend {
  package func rotate(_ x: Tensor, layout: Layout, angles: RotaryAngles, direction: Float, into y: Tensor) {
    let (heads, size) = (x.shape[1], x.shape[2])
    let half = size / 2
    let (x, y, positions) = (view(x), view(y), view(layout.positions))
    for index in 0..<x.count {
      let (token, i) = (index / (heads * size), index % size)
      let frequency = pow(Double(angles.theta), -2 * Double(i % half) / Double(size))
      let angle = positions[token] * angles.stretched(frequency, i % half, of: half) * Double(direction)
      let other = i < half ? -x[index + half] : x[index - half]
      y[index] = x[index] * cos(angle) + other * sin(angle)
    }
  }

  // MARK: - Attention

  /// Calls `body` with every query that sees keys, and the keys it sees.
  private func forEachQuery(_ spans: AttentionSpans, _ body: (_ query: Int, _ keys: Range<Int>) -> Void) {
    for span in spans.list {
      for (i, query) in span.queries.enumerated() {
        let end = span.keys.upperBound - span.queries.count + i + 1
        body(query, max(span.keys.lowerBound, end - (span.window ?? span.keys.count))..<end)
      }
    }
  }

  package func attend(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, spans: AttentionSpans, into o: Tensor, logSums: Tensor
  ) {
    let (heads, groups, size) = (q.shape[1], k.shape[1], q.shape[2])
    let (q, k, v, o, logSums) = (view(q), view(k), view(v), view(o), view(logSums))
    forEachQuery(spans) { n, keys in
      for h in 0..<heads {
        let (row, g) = ((n * heads + h) * size, h * groups / heads)
        let scores = keys.map { key in
          (0..<size).reduce(0) { $0 + q[row + $1] * k[(key * groups + g) * size + $1] } / Double(size).squareRoot()
        }
        let most = scores.max()!
        let logSum = log(scores.reduce(0) { $0 + exp($1 - most) }) + most
        logSums[n * heads + h] = logSum
        for i in 0..<size {
          o[row + i] = zip(keys, scores).reduce(0) { $0 + exp($1.1 - logSum) * v[($1.0 * groups + g) * size + i] }
        }
      }
    }
  }

  package func attendBackward(
    _ dO: Tensor, _ q: Tensor, _ k: Tensor, _ v: Tensor, _ o: Tensor, logSums: Tensor, spans: AttentionSpans,
    dQ: Tensor, dK: Tensor, dV: Tensor
  ) {
    fill(dK, with: 0)
    fill(dV, with: 0)
    let (heads, groups, size) = (q.shape[1], k.shape[1], q.shape[2])
    let scale = 1 / Double(size).squareRoot()
    let (dO, q, k, v, o, logSums) = (view(dO), view(q), view(k), view(v), view(o), view(logSums))
    let (dQ, dK, dV) = (view(dQ), view(dK), view(dV))
    forEachQuery(spans) { n, keys in
      for h in 0..<heads {
        let (row, g) = ((n * heads + h) * size, h * groups / heads)
        for i in 0..<size { dQ[row + i] = 0 }
        let delta = (0..<size).reduce(0) { $0 + dO[row + $1] * o[row + $1] }
        for key in keys {
          let at = (key * groups + g) * size
          let score = (0..<size).reduce(0) { $0 + q[row + $1] * k[at + $1] } * scale
          let probability = exp(score - logSums[n * heads + h])
          let dProbability = (0..<size).reduce(0) { $0 + dO[row + $1] * v[at + $1] }
          let dScore = probability * (dProbability - delta) * scale
          for i in 0..<size {
            dQ[row + i] += dScore * k[at + i]
            dK[at + i] += dScore * q[row + i]
            dV[at + i] += probability * dO[row + i]
          }
        }
      }
    }
  }

  // MARK: - Convolution

  package func convolve(_ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor?, into u: Tensor) {
    let channels = x.columns
    let (x, kernels, history, u) = (view(x), view(kernels), history.map(view), view(u))
    for (s, segment) in layout.segments.ranges.enumerated() {
      for t in segment {
        for c in 0..<channels {
          var sum = 0.0
          for w in 0..<4 {
            let from = t - 3 + w
            let input =
              from >= segment.lowerBound
              ? x[from * channels + c] : history?[(s * 4 + from - segment.lowerBound + 4) * channels + c] ?? 0
            sum += kernels[(t * channels + c) * 4 + w] * input
          }
          u[t * channels + c] = sum
        }
      }
    }
  }

  package func convolveBackward(
    _ du: Tensor, _ x: Tensor, kernels: Tensor, layout: Layout, dx: Tensor, dKernels: Tensor?
  ) {
    fill(dx, with: 0)
    let channels = x.columns
    let (du, x, kernels, dx, dKernels) = (view(du), view(x), view(kernels), view(dx), dKernels.map(view))
    for segment in layout.segments.ranges {
      for t in segment {
        for c in 0..<channels {
          for w in 0..<4 {
            let (from, tap) = (t - 3 + w, (t * channels + c) * 4 + w)
            if from >= segment.lowerBound {
              dx[from * channels + c] += kernels[tap] * du[t * channels + c]
              dKernels?[tap] = x[from * channels + c] * du[t * channels + c]
            } else {
              dKernels?[tap] = 0
            }
          }
        }
      }
    }
  }

  // MARK: - The recurrence

  /// What one head of one segment reads, and where.
  private struct Recurrence {
    let q, k, v, alpha, beta, g: View
    let heads: Int
    let keys: Int
    let values: Int

    /// The state after token t, from the one before, and αᵀ S of that.
    func step(_ state: [Double], _ t: Int, _ h: Int) -> (next: [Double], read: [Double]) {
      let (key, value) = ((t * heads + h) * keys, (t * heads + h) * values)
      let read = (0..<values).map { j in
        (0..<keys).reduce(0) { $0 + alpha[key + $1] * state[$1 * values + j] }
      }
      let next = state.indices.map { index in
        let (i, j) = (index / values, index % values)
        return exp(g[key + i]) * state[index] + beta[key + i] * read[j] + k[key + i] * v[value + j]
      }
      return (next, read)
    }
  }

  package func diagonalPlusLowRank(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float, layout: Layout,
    initial: Tensor?, o: Tensor, final: Tensor?, saves: Bool
  ) -> SavedState? {
    let (heads, keys, values) = (q.shape[1], q.shape[2], v.shape[2])
    let size = keys * values
    // Backward computes all states again from the first.
    let first = zeros([layout.segments.ranges.count, heads, keys, values])
    if let initial { copy(initial, into: first) }
    let recurrence = Recurrence(
      q: view(q), k: view(k), v: view(v), alpha: view(alpha), beta: view(beta), g: view(g), heads: heads, keys: keys,
      values: values)
    let (starts, o, final) = (view(first), view(o), final.map(view))
    for (s, segment) in layout.segments.ranges.enumerated() {
      for h in 0..<heads {
        let place = (s * heads + h) * size
        var state = (0..<size).map { starts[place + $0] }
        for t in segment {
          state = recurrence.step(state, t, h).next
          let (key, value) = ((t * heads + h) * keys, (t * heads + h) * values)
          for j in 0..<values {
            o[value + j] =
              Double(scale) * (0..<keys).reduce(0) { $0 + recurrence.q[key + $1] * state[$1 * values + j] }
          }
        }
        for i in 0..<size { final?[place + i] = state[i] }
      }
    }
    return saves ? SavedState([first]) : nil
  }

  package func diagonalPlusLowRankBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float,
    layout: Layout, saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dAlpha: Tensor, dBeta: Tensor, dG: Tensor,
    dInitial: Tensor?
  ) {
    let (heads, keys, values) = (q.shape[1], q.shape[2], v.shape[2])
    let size = keys * values
    let scale = Double(scale)
    let recurrence = Recurrence(
      q: view(q), k: view(k), v: view(v), alpha: view(alpha), beta: view(beta), g: view(g), heads: heads, keys: keys,
      values: values)
    let (first, dO, dFinal) = (view(saved.tensors[0]), view(dO), dFinal.map(view))
    let (dQ, dK, dV, dInitial) = (view(dQ), view(dK), view(dV), dInitial.map(view))
    let (dAlpha, dBeta, dG) = (view(dAlpha), view(dBeta), view(dG))
    for (s, segment) in layout.segments.ranges.enumerated() {
      for h in 0..<heads {
        let place = (s * heads + h) * size
        var states = [(0..<size).map { first[place + $0] }]
        var reads: [[Double]] = []
        for t in segment {
          let (next, read) = recurrence.step(states[states.count - 1], t, h)
          states.append(next)
          reads.append(read)
        }
        var dState = (0..<size).map { dFinal?[place + $0] ?? 0 }
        for (index, t) in segment.enumerated().reversed() {
          let (key, value) = ((t * heads + h) * keys, (t * heads + h) * values)
          let (before, after, read) = (states[index], states[index + 1], reads[index])
          func row(_ x: [Double], _ i: Int, _ weight: (Int) -> Double) -> Double {
            (0..<values).reduce(0) { $0 + x[i * values + $1] * weight($1) }
          }
          for i in 0..<keys {
            dQ[key + i] = scale * row(after, i) { dO[value + $0] }
            for j in 0..<values { dState[i * values + j] += scale * recurrence.q[key + i] * dO[value + j] }
            dK[key + i] = row(dState, i) { recurrence.v[value + $0] }
            dBeta[key + i] = row(dState, i) { read[$0] }
            dG[key + i] = exp(recurrence.g[key + i]) * row(dState, i) { before[i * values + $0] }
          }
          let dRead = (0..<values).map { j in
            (0..<keys).reduce(0) { $0 + recurrence.beta[key + $1] * dState[$1 * values + j] }
          }
          for j in 0..<values {
            dV[value + j] = (0..<keys).reduce(0) { $0 + recurrence.k[key + $1] * dState[$1 * values + j] }
          }
          for i in 0..<keys {
            dAlpha[key + i] = row(before, i) { dRead[$0] }
            for j in 0..<values {
              let at = i * values + j
              dState[at] = exp(recurrence.g[key + i]) * dState[at] + recurrence.alpha[key + i] * dRead[j]
            }
          }
        }
        for i in 0..<size { dInitial?[place + i] = dState[i] }
      }
    }
  }
}
