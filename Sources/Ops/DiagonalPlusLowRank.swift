import Tensors

/// RWKV7's recurrence (Peng et al., 2025), per head with state S `[K, V]`:
/// S ← e^g ∘ S + β (αᵀ S) + k vᵀ; o = scale · Sᵀ q. α reads the state before it decays.
///
/// - Parameters:
///   - q: `[N, H, K]`
///   - k: `[N, H, K]`
///   - v: `[N, H, V]`
///   - alpha: `[N, H, K]`
///   - beta: `[N, H, K]`
///   - g: `[N, H, K]`, log decay, at most 0
///   - layout: the state starts anew at each of its segments
///   - initial: `[segments, H, K, V]`; zeros when nil. No gradient flows there.
///   - final: receives the states after the last tokens
/// - Returns: `[N, H, V]`
package func diagonalPlusLowRank(
  q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, g: Tensor, scale: Float, layout: Layout,
  initial: Tensor? = nil, final: Tensor? = nil
) -> Tensor {
  let inputs = [q, k, v, alpha, beta, g].map(\.dense)
  let backend = q.backend
  let o = backend.empty(like: v)
  let saved = backend.diagonalPlusLowRank(
    q: inputs[0], k: inputs[1], v: inputs[2], alpha: inputs[3], beta: inputs[4], g: inputs[5], scale: scale,
    layout: layout, initial: initial, o: o, final: final, saves: backend.records(inputs))
  return recordRecurrence(o, from: inputs, last: 5, state: saved, layout: layout) { dO, inputs, state, layout, rooms in
    dO.backend.diagonalPlusLowRankBackward(
      dO: dO, dFinal: nil, q: inputs[0], k: inputs[1], v: inputs[2], alpha: inputs[3], beta: inputs[4], g: inputs[5],
      scale: scale, layout: layout, saved: state, dQ: rooms[0], dK: rooms[1], dV: rooms[2], dAlpha: rooms[3],
      dBeta: rooms[4], dG: rooms[5], dInitial: nil)
  }
}
