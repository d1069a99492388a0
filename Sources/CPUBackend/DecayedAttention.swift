import Tensors

/// Linear attention whose state decays, by chunks: RetNet, Mamba2 (a gate a head) and GLA (a gate a key channel; Yang et
/// al., 2024). With G the running sum of gates inside a chunk and S₀ the state at its start:
///
///     A[t, i] = Σ_k q[t, k] k[i, k] e^(G[t, k] − G[i, k]), i ≤ t
///     O = scale · (A V + (Q ∘ e^G) S₀)        S = e^Γ ∘ S₀ + (K ∘ e^(Γ − G))ᵀ V, Γ the sum over the chunk
///
/// Only differences that are never positive are exponentiated, so that strong decay underflows and never overflows. A
/// chunk is cut into blocks of 16 tokens: inside a block pairs are taken one by one; between blocks e^(G[t] − G[i]) is
/// e^(G[t] − B) · e^(B − G[i]), B the sum at the start of t's block, both at most one, so that products of matrices serve.
///
/// Gradients of gates follow from those of q and k: where G[t] stands beside q[t] its gradient is q ∘ dq, beside k[i] it
/// is −k ∘ dk.
extension CPUBackend {
  private static let blockLength = 16

  /// A chunk of one head, with what both directions need of it.
  private struct DecayedChunk {
    let c: Int
    let keys: Int
    let q: Matrix
    let k: Matrix
    /// Sums of gates since the start of each token's block, `[c, K]`.
    let local: FloatPointer
    /// e^(B − G) for tokens before the block at hand, in the end e^(Γ − G), `[c, K]`.
    let factors: FloatPointer
    /// e^Γ, `[K]`.
    let decay: FloatPointer
    /// `[c, K]`, for products.
    let rows: FloatPointer
    let moreRows: FloatPointer

    static func size(_ c: Int, _ keys: Int) -> Int { 4 * Scratch.rounded(c * keys) + Scratch.rounded(keys) }

    init(_ c: Int, _ keys: Int, q: Matrix, k: Matrix, scratch: inout Scratch, capacity: Int) {
      (self.c, self.keys, self.q, self.k) = (c, keys, q, k)
      local = scratch.take(capacity * keys)
      factors = scratch.take(capacity * keys)
      rows = scratch.take(capacity * keys)
      moreRows = scratch.take(capacity * keys)
      decay = scratch.take(keys)
    }

    var blocks: [Range<Int>] {
      stride(from: 0, to: c, by: blockLength).map { $0..<min(c, $0 + blockLength) }
    }

    /// Sums the gates of every block; a gate a head stands for all its channels.
    func sumGates(_ g: FloatPointer, stride: Int, byChannel: Bool) {
      for block in blocks {
        for t in block {
          let row = local + t * keys
          if byChannel {
            row.update(from: g + t * stride, count: keys)
          } else {
            row.update(repeating: g[t * stride], count: keys)
          }
          if t > block.lowerBound { axpy(1, row - keys, into: row, keys) }
        }
      }
    }

    /// Goes over the blocks in order; `body` finds `factors` of the tokens before the block in place, and in `decay` what
    /// the chunk's start has decayed to.
    func forEachBlock(_ body: (Range<Int>) -> Void) {
      decay.update(repeating: 1, count: keys)
      for block in blocks {
        body(block)
        let last = local + (block.upperBound - 1) * keys
        for i in 0..<block.upperBound {
          let row = factors + i * keys
          sweep(keys) { d, n in
            let value =
              i < block.lowerBound
              ? row.lanes(d, n) * last.lanes(d, n).exponential
              : (last.lanes(d, n) - local.advanced(by: i * keys).lanes(d, n)).exponential
            row.store(value, d, n)
          }
        }
        sweep(keys) { d, n in decay.store(decay.lanes(d, n) * last.lanes(d, n).exponential, d, n) }
      }
    }

    /// rows = K ∘ factors for the first `count` tokens.
    func decayedKeys(_ count: Int) {
      for i in 0..<count {
        let (key, factor, row) = (k.start + i * k.stride, factors + i * keys, rows + i * keys)
        sweep(keys) { d, n in row.store(key.lanes(d, n) * factor.lanes(d, n), d, n) }
      }
    }

    /// moreRows[t] = q[t] ∘ e^local for the tokens of a block.
    func blockQueries(_ block: Range<Int>) {
      for t in block {
        let (query, sums, row) = (q.start + t * q.stride, local + t * keys, moreRows + t * keys)
        sweep(keys) { d, n in row.store(query.lanes(d, n) * sums.lanes(d, n).exponential, d, n) }
      }
    }

    /// e^(G[t] − G[i]) of two tokens of one block, at lanes d.
    @inline(__always)
    func pairDecay(_ t: Int, _ i: Int, _ d: Int, _ n: Int) -> Lanes {
      ((local + t * keys).lanes(d, n) - (local + i * keys).lanes(d, n)).exponential
    }
  }

  private static func tokenChunks(_ segment: Range<Int>) -> [Range<Int>] {
    let step = Self.chunkLength
    return stride(from: segment.lowerBound, to: segment.upperBound, by: step).map {
      $0..<min($0 + step, segment.upperBound)
    }
  }

  package func decayedAttention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, layout: Layout, initial: Tensor?, o: Tensor,
    final: Tensor?, saves: Bool
  ) -> SavedState? {
    let starts = saves ? chunkStates(layout, q, v) : nil
    let (heads, K, V) = (q.shape[1], q.shape[2], v.shape[2])
    let (pq, pk, pv, pg, po) = (q.floats, k.floats, v.floats, g.floats, o.floats)
    let (initialStates, finalStates, saved) = (initial?.floats, final?.floats, starts?.floats)
    let byChannel = g.shape.count == 3
    let gates = byChannel ? K : 1
    let (segments, ordinals) = (layout.segments, firstChunks(layout))
    let capacity = min(Self.chunkLength, max(1, segments.ranges.map(\.count).max() ?? 0))
    parallel(segments.ranges.count * heads) { slice in
      let (s, h) = (slice / heads, slice % heads)
      var scratch = Scratch(
        DecayedChunk.size(capacity, K) + Scratch.rounded(K * V) + Scratch.rounded(capacity * capacity)
          + Scratch.rounded(capacity * K))
      defer { scratch.free() }
      let state = scratch.take(K * V)
      let scores = scratch.take(capacity * capacity)
      let fromStart = scratch.take(capacity * K)
      if let initialStates {
        state.update(from: initialStates + slice * K * V, count: K * V)
      } else {
        state.update(repeating: 0, count: K * V)
      }
      for (index, tokens) in Self.tokenChunks(segments.ranges[s]).enumerated() {
        let c = tokens.count
        let place = tokens.lowerBound * heads + h
        var local = scratch
        let chunk = DecayedChunk(
          c, K, q: Matrix(pq + place * K, stride: heads * K), k: Matrix(pk + place * K, stride: heads * K),
          scratch: &local, capacity: capacity)
        saved.map { ($0 + ((ordinals[s] + index) * heads + h) * K * V).update(from: state, count: K * V) }
        chunk.sumGates(pg + place * gates, stride: heads * gates, byChannel: byChannel)
        scores.update(repeating: 0, count: c * c)
        chunk.forEachBlock { block in
          Self.scores(chunk, block, into: scores)
          // q ∘ e^G, with what the chunk's start has decayed to by the block.
          for t in block {
            let (row, out) = (chunk.moreRows + t * K, fromStart + t * K)
            sweep(K) { d, n in out.store(row.lanes(d, n) * chunk.decay.lanes(d, n), d, n) }
          }
        }
        let values = Matrix(pv + place * V, stride: heads * V)
        let out = Matrix(po + place * V, stride: heads * V)
        gemm(c, V, c, scale, Matrix(scores, stride: c), values, 0, out)
        gemm(c, V, K, scale, Matrix(fromStart, stride: K), Matrix(state, stride: V), 1, out)
        for d in 0..<K { scaled(chunk.decay[d], state + d * V, into: state + d * V, V) }
        chunk.decayedKeys(c)
        gemm(K, V, c, 1, Matrix(chunk.rows, stride: K).transposed, values, 1, Matrix(state, stride: V))
      }
      finalStates.map { ($0 + slice * K * V).update(from: state, count: K * V) }
    }
    return starts.map { SavedState([$0]) }
  }

  /// Rows of a block of A: with the blocks before by a product, within itself pair by pair.
  private static func scores(_ chunk: DecayedChunk, _ block: Range<Int>, into scores: FloatPointer) {
    let (c, K, first) = (chunk.c, chunk.keys, block.lowerBound)
    chunk.blockQueries(block)
    chunk.decayedKeys(first)
    gemm(
      block.count, first, K, 1, Matrix(chunk.moreRows + first * K, stride: K), Matrix(chunk.rows, stride: K).transposed,
      0,
      Matrix(scores + first * c, stride: c))
    for t in block {
      let query = chunk.q.start + t * chunk.q.stride
      for i in first...t {
        let key = chunk.k.start + i * chunk.k.stride
        var sum = Lanes.zero
        sweep(K) { d, n in sum += query.lanes(d, n) * key.lanes(d, n) * chunk.pairDecay(t, i, d, n) }
        scores[t * c + i] = sum.total
      }
    }
  }

  package func decayedAttentionBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, layout: Layout,
    saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor, dInitial: Tensor?
  ) {
    let (heads, K, V) = (q.shape[1], q.shape[2], v.shape[2])
    let (pq, pk, pv, pg, pdo) = (q.floats, k.floats, v.floats, g.floats, dO.floats)
    let (pdq, pdk, pdv, pdg) = (dQ.floats, dK.floats, dV.floats, dG.floats)
    let (finalGradients, initialGradients, saved) = (dFinal?.floats, dInitial?.floats, saved.tensors[0].floats)
    let byChannel = g.shape.count == 3
    let gates = byChannel ? K : 1
    let (segments, ordinals) = (layout.segments, firstChunks(layout))
    let capacity = min(Self.chunkLength, max(1, segments.ranges.map(\.count).max() ?? 0))
    parallel(segments.ranges.count * heads) { slice in
      let (s, h) = (slice / heads, slice % heads)
      var scratch = Scratch(
        DecayedChunk.size(capacity, K) + Scratch.rounded(K * V) + 2 * Scratch.rounded(capacity * capacity)
          + 2 * Scratch.rounded(capacity * K) + 2 * Scratch.rounded(K))
      defer { scratch.free() }
      let dState = scratch.take(K * V)
      let (scores, dScores) = (scratch.take(capacity * capacity), scratch.take(capacity * capacity))
      let (fromStart, back) = (scratch.take(capacity * K), scratch.take(capacity * K))
      let (dDecay, sums) = (scratch.take(K), scratch.take(K))
      if let finalGradients {
        dState.update(from: finalGradients + slice * K * V, count: K * V)
      } else {
        dState.update(repeating: 0, count: K * V)
      }
      for (index, tokens) in Self.tokenChunks(segments.ranges[s]).enumerated().reversed() {
        let c = tokens.count
        let place = tokens.lowerBound * heads + h
        var local = scratch
        let chunk = DecayedChunk(
          c, K, q: Matrix(pq + place * K, stride: heads * K), k: Matrix(pk + place * K, stride: heads * K),
          scratch: &local, capacity: capacity)
        let start = saved + ((ordinals[s] + index) * heads + h) * K * V
        let (dq, dk) = (Matrix(pdq + place * K, stride: heads * K), Matrix(pdk + place * K, stride: heads * K))
        let values = Matrix(pv + place * V, stride: heads * V)
        let gradient = Matrix(pdo + place * V, stride: heads * V)
        let dv = Matrix(pdv + place * V, stride: heads * V)
        chunk.sumGates(pg + place * gates, stride: heads * gates, byChannel: byChannel)
        scores.update(repeating: 0, count: c * c)
        gemm(c, c, V, scale, gradient, values.transposed, 0, Matrix(dScores, stride: c))
        // What reaches queries through the state at the start: dO S₀ᵀ.
        gemm(c, K, V, scale, gradient, Matrix(start, stride: V).transposed, 0, Matrix(back, stride: K))
        for t in 0..<c { (dk.start + t * dk.stride).update(repeating: 0, count: K) }
        chunk.forEachBlock { block in
          Self.scores(chunk, block, into: scores)
          for t in block {
            let (row, out, through) = (chunk.moreRows + t * K, fromStart + t * K, back + t * K)
            sweep(K) { d, n in
              out.store(row.lanes(d, n) * chunk.decay.lanes(d, n), d, n)
              through.store(through.lanes(d, n) * chunk.decay.lanes(d, n), d, n)
            }
          }
          Self.pairGradients(chunk, block, dScores: dScores, through: back, dq: dq, dk: dk)
        }
        // The state at the end: dV and dK through it, and the gradient of what it decayed by.
        chunk.decayedKeys(c)
        gemm(c, V, c, 1, Matrix(scores, stride: c).transposed, gradient, 0, dv)
        if scale != 1 { for t in 0..<c { scaled(scale, dv.start + t * dv.stride, into: dv.start + t * dv.stride, V) } }
        gemm(c, V, K, 1, Matrix(chunk.rows, stride: K), Matrix(dState, stride: V), 1, dv)
        gemm(c, K, V, 1, values, Matrix(dState, stride: V).transposed, 0, Matrix(back, stride: K))
        dDecay.update(repeating: 0, count: K)
        for t in 0..<c {
          let (out, through, factor) = (dk.start + t * dk.stride, back + t * K, chunk.factors + t * K)
          let row = chunk.rows + t * K
          sweep(K) { d, n in
            out.store(out.lanes(d, n).addingProduct(through.lanes(d, n), factor.lanes(d, n)), d, n)
            dDecay.store(dDecay.lanes(d, n).addingProduct(through.lanes(d, n), row.lanes(d, n)), d, n)
          }
        }
        for d in 0..<K {
          dDecay[d] += chunk.decay[d] * dot(start + d * V, dState + d * V, V)
          scaled(chunk.decay[d], dState + d * V, into: dState + d * V, V)
        }
        gemm(K, V, c, scale, Matrix(fromStart, stride: K).transposed, gradient, 1, Matrix(dState, stride: V))
        // dG[t] = q dq − k dk, and Γ's at the last token; a gate adds to all sums from its token on.
        sums.update(from: dDecay, count: K)
        for t in (0..<c).reversed() {
          let (query, key) = (chunk.q.start + t * chunk.q.stride, chunk.k.start + t * chunk.k.stride)
          let (dQuery, dKey) = (dq.start + t * dq.stride, dk.start + t * dk.stride)
          sweep(K) { d, n in
            let change = query.lanes(d, n) * dQuery.lanes(d, n) - key.lanes(d, n) * dKey.lanes(d, n)
            sums.store(sums.lanes(d, n) + change, d, n)
          }
          let out = pdg + (place + t * heads) * gates
          if byChannel {
            out.update(from: sums, count: K)
          } else {
            var total = Lanes.zero
            sweep(K) { d, n in total += sums.lanes(d, n) }
            out[0] = total.total
          }
        }
      }
      initialGradients.map { ($0 + slice * K * V).update(from: dState, count: K * V) }
    }
  }

  /// dq of a block, and what its rows of A give to dk, from dA; `through` is what reaches q by the state.
  private static func pairGradients(
    _ chunk: DecayedChunk, _ block: Range<Int>, dScores: FloatPointer, through: FloatPointer, dq: Matrix, dk: Matrix
  ) {
    let (c, K, first) = (chunk.c, chunk.keys, block.lowerBound)
    // Queries: (dA K̃ + what came through the state) ∘ e^local.
    gemm(
      block.count, K, first, 1, Matrix(dScores + first * c, stride: c), Matrix(chunk.rows, stride: K), 1,
      Matrix(through + first * K, stride: K))
    for t in block {
      let (row, sums, out) = (through + t * K, chunk.local + t * K, dq.start + t * dq.stride)
      sweep(K) { d, n in out.store(row.lanes(d, n) * sums.lanes(d, n).exponential, d, n) }
    }
    // Keys of the blocks before: (dAᵀ Q̂) ∘ factors; `rows` is free now.
    gemm(
      first, K, block.count, 1, Matrix(dScores + first * c, stride: c).transposed,
      Matrix(chunk.moreRows + first * K, stride: K), 0, Matrix(chunk.rows, stride: K))
    for i in 0..<first {
      let (row, factor, out) = (chunk.rows + i * K, chunk.factors + i * K, dk.start + i * dk.stride)
      sweep(K) { d, n in out.store(out.lanes(d, n).addingProduct(row.lanes(d, n), factor.lanes(d, n)), d, n) }
    }
    for t in block {
      let (query, dQuery) = (chunk.q.start + t * chunk.q.stride, dq.start + t * dq.stride)
      for i in first...t {
        let (key, dKey) = (chunk.k.start + i * chunk.k.stride, dk.start + i * dk.stride)
        let weight = dScores[t * c + i]
        sweep(K) { d, n in
          let decayed = chunk.pairDecay(t, i, d, n) * weight
          dQuery.store(dQuery.lanes(d, n).addingProduct(key.lanes(d, n), decayed), d, n)
          dKey.store(dKey.lanes(d, n).addingProduct(query.lanes(d, n), decayed), d, n)
        }
      }
    }
  }
}
