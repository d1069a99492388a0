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
  let (q, k, v, alpha, beta, g) = (q.dense, k.dense, v.dense, alpha.dense, beta.dense, g.dense)
  let backend = q.backend
  let o = backend.empty(like: v)
  let inputs = [q, k, v, alpha, beta, g]
  let saved = backend.diagonalPlusLowRank(
    q: q, k: k, v: v, alpha: alpha, beta: beta, g: g, scale: scale, layout: layout, initial: initial, o: o,
    final: final, saves: wantsGradient(inputs))
  guard let saved else { return o }
  return backend.record(inputs, o) { dO in
    let gradients = inputs.map { backend.empty(like: $0) }
    backend.diagonalPlusLowRankBackward(
      dO: dO, dFinal: nil, q: q, k: k, v: v, alpha: alpha, beta: beta, g: g, scale: scale, layout: layout,
      saved: saved, dQ: gradients[0], dK: gradients[1], dV: gradients[2], dAlpha: gradients[3], dBeta: gradients[4],
      dG: gradients[5], dInitial: nil)
    for (input, gradient) in zip(inputs, gradients) { input.slot?.accumulate(gradient) }
  }
}
