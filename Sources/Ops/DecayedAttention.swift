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
  let inputs = [q, k, v, g].map(\.dense)
  let (q, k, v, g) = (inputs[0], inputs[1], inputs[2], inputs[3])
  let backend = q.backend
  let o = backend.empty(like: v)
  let saved = backend.decayedAttention(
    q: q, k: k, v: v, g: g, scale: scale, layout: layout, initial: initial, o: o, final: final,
    saves: backend.records(inputs))
  return recordRecurrence(o, from: inputs, last: 3, state: saved, layout: layout) { dO, inputs, state, layout, rooms in
    dO.backend.decayedAttentionBackward(
      dO: dO, dFinal: nil, q: inputs[0], k: inputs[1], v: inputs[2], g: inputs[3], scale: scale, layout: layout,
      saved: state, dQ: rooms[0], dK: rooms[1], dV: rooms[2], dG: rooms[3], dInitial: nil)
  }
}
