import Tensors

/// Linear attention with a decaying state, per head S `[K, V]`: S ← e^g S + k vᵀ; o = scale · Sᵀ q. With one gate a head
/// it is what RetNet and Mamba2 compute, with one a key channel GLA (Yang et al., 2024).
///
/// - Parameters:
///   - q: `[N, H, K]`
///   - k: `[N, H, K]`
///   - v: `[N, H, V]`
///   - g: `[N, H]` or `[N, H, K]`, log decay, at most 0
///   - layout: the state starts anew at each of its segments
///   - initial: `[segments, H, K, V]`; zeros when nil. No gradient flows there.
///   - final: receives the states after the last tokens
/// - Returns: `[N, H, V]`
package func decayedAttention(
  q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, layout: Layout, initial: Tensor? = nil,
  final: Tensor? = nil
) -> Tensor {
  let (q, k, v, g) = (q.dense, k.dense, v.dense, g.dense)
  let backend = q.backend
  let o = backend.empty(like: v)
  let saved = backend.decayedAttention(
    q: q, k: k, v: v, g: g, scale: scale, layout: layout, initial: initial, o: o, final: final,
    saves: wantsGradient([q, k, v, g]))
  guard let saved else { return o }
  return backend.record([q, k, v, g], o) { dO in
    let (dQ, dK, dV) = (backend.empty(like: q), backend.empty(like: k), backend.empty(like: v))
    let dG = backend.empty(like: g)
    backend.decayedAttentionBackward(
      dO: dO, dFinal: nil, q: q, k: k, v: v, g: g, scale: scale, layout: layout, saved: saved, dQ: dQ, dK: dK,
      dV: dV, dG: dG, dInitial: nil)
    q.slot?.accumulate(dQ)
    k.slot?.accumulate(dK)
    v.slot?.accumulate(dV)
    g.slot?.accumulate(dG)
  }
}

/// Whether an op on these inputs will be asked for its backward pass.
func wantsGradient(_ inputs: [Tensor]) -> Bool {
  inputs[0].backend.tape != nil && inputs.contains { $0.slot != nil }
}
