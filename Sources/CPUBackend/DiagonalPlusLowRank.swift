import Tensors

/// The recurrence of RWKV7 (Peng et al., 2025): a diagonal decay plus a rank-one change of the state, token by token,
///
///     S ← e^g ∘ S + β (αᵀ S) + k vᵀ        o = scale · Sᵀ q
///
/// with α reading the state before the decay. Backward computes the states of a chunk again from the one at its start.
extension CPUBackend {
  package func diagonalPlusLowRank(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float, layout: Layout,
    initial: Tensor?, o: Tensor, final: Tensor?, saves: Bool
  ) -> SavedState? {
    let starts = saves ? chunkStates(layout, q, v) : nil
    let (heads, K, V) = (q.shape[1], q.shape[2], v.shape[2])
    let (pq, po) = (q.floats, o.floats)
    let inputs = LowRankInputs(k: k.floats, v: v.floats, alpha: alpha.floats, beta: beta.floats, g: g.floats)
    let (initialStates, finalStates, saved) = (initial?.floats, final?.floats, starts?.floats)
    let (segments, ordinals) = (layout.segments, firstChunks(layout))
    parallel(segments.ranges.count * heads) { slice in
      let (s, h) = (slice / heads, slice % heads)
      var scratch = Scratch(Scratch.rounded(K * V) + Scratch.rounded(V) + Scratch.rounded(K))
      defer { scratch.free() }
      let (state, read, decay) = (scratch.take(K * V), scratch.take(V), scratch.take(K))
      if let initialStates {
        state.update(from: initialStates + slice * K * V, count: K * V)
      } else {
        state.update(repeating: 0, count: K * V)
      }
      for (index, t) in segments.ranges[s].enumerated() {
        if index % Self.chunkLength == 0, let saved {
          let ordinal = ordinals[s] + index / Self.chunkLength
          (saved + (ordinal * heads + h) * K * V).update(from: state, count: K * V)
        }
        let place = t * heads + h
        inputs.step(state, into: state, read: read, decay: decay, place, keys: K, values: V)
        let (query, out) = (pq + place * K, po + place * V)
        out.update(repeating: 0, count: V)
        for i in 0..<K { axpy(query[i] * scale, state + i * V, into: out, V) }
      }
      finalStates.map { ($0 + slice * K * V).update(from: state, count: K * V) }
    }
    return starts.map { SavedState([$0]) }
  }

  /// What a step of the recurrence reads.
  private struct LowRankInputs: @unchecked Sendable {
    let k: FloatPointer
    let v: FloatPointer
    let alpha: FloatPointer
    let beta: FloatPointer
    let g: FloatPointer

    /// The state after the token and head at `place`; `read` becomes αᵀ S and `decay` e^g.
    @inline(__always)
    func step(
      _ state: FloatPointer, into next: FloatPointer, read: FloatPointer, decay: FloatPointer, _ place: Int, keys: Int,
      values: Int
    ) {
      let (key, value, alpha) = (k + place * keys, v + place * values, alpha + place * keys)
      let (beta, gate) = (beta + place * keys, g + place * keys)
      read.update(repeating: 0, count: values)
      for i in 0..<keys { axpy(alpha[i], state + i * values, into: read, values) }
      sweep(keys) { i, n in decay.store(gate.lanes(i, n).exponential, i, n) }
      for i in 0..<keys {
        let (row, out) = (state + i * values, next + i * values)
        let (d, b, x) = (Lanes(repeating: decay[i]), Lanes(repeating: beta[i]), Lanes(repeating: key[i]))
        sweep(values) { j, n in
          out.store(
            (row.lanes(j, n) * d).addingProduct(b, read.lanes(j, n)).addingProduct(x, value.lanes(j, n)), j, n)
        }
      }
    }
  }

  package func diagonalPlusLowRankBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float,
    layout: Layout, saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dAlpha: Tensor, dBeta: Tensor, dG: Tensor,
    dInitial: Tensor?
  ) {
    let (heads, K, V) = (q.shape[1], q.shape[2], v.shape[2])
    let (pq, pdo, saved) = (q.floats, dO.floats, saved.tensors[0].floats)
    let inputs = LowRankInputs(k: k.floats, v: v.floats, alpha: alpha.floats, beta: beta.floats, g: g.floats)
    let (pdq, pdk, pdv) = (dQ.floats, dK.floats, dV.floats)
    let (pda, pdb, pdg) = (dAlpha.floats, dBeta.floats, dG.floats)
    let (finalGradients, initialGradients) = (dFinal?.floats, dInitial?.floats)
    let (segments, ordinals) = (layout.segments, firstChunks(layout))
    let step = Self.chunkLength
    let capacity = min(step, max(1, segments.ranges.map(\.count).max() ?? 0))
    parallel(segments.ranges.count * heads) { slice in
      let (s, h) = (slice / heads, slice % heads)
      let range = segments.ranges[s]
      var scratch = Scratch(
        (capacity + 2) * Scratch.rounded(K * V) + (capacity + 1) * Scratch.rounded(V) + Scratch.rounded(K))
      defer { scratch.free() }
      let dState = scratch.take(K * V)
      let states = (0...capacity).map { _ in scratch.take(K * V) }
      let reads = (0..<capacity).map { _ in scratch.take(V) }
      let (dRead, decay) = (scratch.take(V), scratch.take(K))
      if let finalGradients {
        dState.update(from: finalGradients + slice * K * V, count: K * V)
      } else {
        dState.update(repeating: 0, count: K * V)
      }
      for chunk in (0..<(range.count + step - 1) / step).reversed() {
        let first = range.lowerBound + chunk * step
        let count = min(step, range.upperBound - first)
        states[0].update(from: saved + ((ordinals[s] + chunk) * heads + h) * K * V, count: K * V)
        for t in 0..<count {
          inputs.step(
            states[t], into: states[t + 1], read: reads[t], decay: decay, (first + t) * heads + h, keys: K, values: V)
        }
        for t in (0..<count).reversed() {
          let place = (first + t) * heads + h
          let (gradient, value, read) = (pdo + place * V, inputs.v + place * V, reads[t])
          let dValue = pdv + place * V
          dValue.update(repeating: 0, count: V)
          dRead.update(repeating: 0, count: V)
          for i in 0..<K {
            let at = place * K + i
            let row = dState + i * V
            axpy(pq[at] * scale, gradient, into: row, V)
            pdq[at] = scale * dot(states[t + 1] + i * V, gradient, V)
            pdk[at] = dot(row, value, V)
            pdb[at] = dot(row, read, V)
            axpy(inputs.k[at], row, into: dValue, V)
            axpy(inputs.beta[at], row, into: dRead, V)
          }
          for i in 0..<K {
            let at = place * K + i
            let (row, before) = (dState + i * V, states[t] + i * V)
            let decay = Self.decay(inputs.g[at])
            pda[at] = dot(before, dRead, V)
            pdg[at] = decay * dot(row, before, V)
            scaled(decay, row, into: row, V)
            axpy(inputs.alpha[at], dRead, into: row, V)
          }
        }
      }
      initialGradients.map { ($0 + slice * K * V).update(from: dState, count: K * V) }
    }
  }

  /// e^g, as the forward pass has it.
  private static func decay(_ g: Float) -> Float { Lanes(repeating: g).exponential[0] }
}
