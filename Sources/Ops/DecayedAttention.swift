import Tensors

/// Linear attention with a decaying state, per head S `[K, V]`: S ← e^g S + k vᵀ; o = scale · Sᵀ q. With one gate a head
/// it is what RetNet and Mamba2 compute, with one a key channel GLA (Yang et al., 2024).
///
/// - Parameters:
///   - q: `[N, H, K]`
///   - k: `[N, H, K]`
///   - v: `[N, H, V]`
///   - g: `[N, H]` or `[N, H, K]`, log decay, at most 0
///   - segments: the state starts anew at each
///   - initial: `[segments, H, K, V]`; zeros when nil. No gradient flows there.
///   - final: receives the states after the last tokens
/// - Returns: `[N, H, V]`
package func decayedAttention(
  q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, segments: Segments, initial: Tensor? = nil,
  final: Tensor? = nil
) -> Tensor {
  let backend = q.backend
  let o = backend.empty(v.shape)
  let starts = savedStarts([q, k, v, g], heads: q.shape[1], keys: q.shape[2], values: v.shape[2], segments)
  backend.decayedAttention(
    q: q, k: k, v: v, g: g, scale: scale, segments: segments, initial: initial, o: o, final: final, starts: starts)
  guard let starts else { return o }
  return backend.record([q, k, v, g], o) { dO in
    let (dQ, dK, dV) = (backend.empty(q.shape), backend.empty(k.shape), backend.empty(v.shape))
    let dG = backend.empty(g.shape)
    backend.decayedAttentionBackward(
      dO: dO, dFinal: nil, q: q, k: k, v: v, g: g, scale: scale, segments: segments, starts: starts, dQ: dQ, dK: dK,
      dV: dV, dG: dG, dInitial: nil)
    q.slot?.accumulate(dQ)
    k.slot?.accumulate(dK)
    v.slot?.accumulate(dV)
    g.slot?.accumulate(dG)
  }
}

/// Room for the states at the starts of all chunks, where a gradient will need them.
func savedStarts(_ inputs: [Tensor], heads: Int, keys: Int, values: Int, _ segments: Segments) -> Tensor? {
  let backend = inputs[0].backend
  guard backend.tape != nil, inputs.contains(where: { $0.slot != nil }) else { return nil }
  return backend.empty([GatedDeltaRuleState.chunkCount(segments), heads, keys, values])
}
