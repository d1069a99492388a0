import Tensors

/// The gates of the delta rule: g = −e^aLog · softplus(a + dtBias), the log decay, and beta = sigmoid(b).
///
/// - Parameters:
///   - a: `[N, H]`
///   - b: `[N, H]`
///   - aLog: `[H]`
///   - dtBias: `[H]`
/// - Returns: g and beta, `[N, H]` each.
package func decayGate(
  a: Tensor, b: Tensor, aLog: Tensor, dtBias: Tensor
) -> (g: Tensor, beta: Tensor) {
  let backend = a.backend
  var g = backend.empty(a.shape)
  var beta = backend.empty(b.shape)
  backend.decayGate(a: a, b: b, aLog: aLog, dtBias: dtBias, g: g, beta: beta)
  let betaValue = beta
  // Two outputs, one node: beta's gradient waits in its slot until g's arrives with the same op.
  let betaSlot = GradientSlot(shape: b.shape, backend: backend)
  g = backend.record([a, b, aLog, dtBias], g) { dG in
    guard let dBeta = betaSlot.take() else { return }
    let (dA, dB) = (a.gradientRoom(), b.gradientRoom())
    let (dALog, dDtBias) = (backend.empty(like: aLog), backend.empty(like: dtBias))
    backend.decayGateBackward(
      dG: dG, dBeta: dBeta, a: a, beta: betaValue, aLog: aLog, dtBias: dtBias, dA: dA, dB: dB,
      dALog: dALog, dDtBias: dDtBias)
    a.slot?.accumulate(dA)
    b.slot?.accumulate(dB)
    aLog.slot?.accumulate(dALog)
    dtBias.slot?.accumulate(dDtBias)
  }
  if g.slot != nil { beta.slot = betaSlot }
  return (g, beta)
}

/// The gated delta rule (Yang, Kautz and Hatamizadeh, 2024), per head with state S `[K, V]`:
/// S ← e^g S; S ← S + k (β (v − Sᵀ k))ᵀ; o = Sᵀ q · K^−½.
///
/// - Parameters:
///   - q: `[N, H, K]`
///   - k: `[N, H, K]`
///   - v: `[N, H, V]`
///   - g: `[N, H]`, log decay, at most 0
///   - beta: `[N, H]`
///   - layout: the state starts anew at each of its segments
///   - initial: `[segments, H, K, V]`; zeros when nil. No gradient flows there.
///   - final: receives the states after the last tokens
/// - Returns: `[N, H, V]`
package func gatedDeltaRule(
  q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, layout: Layout, initial: Tensor? = nil,
  final: Tensor? = nil
) -> Tensor {
  let (q, k, v, g, beta) = (q.dense, k.dense, v.dense, g.dense, beta.dense)
  let backend = q.backend
  let scale = 1 / Float(q.shape[2]).squareRoot()
  let o = backend.empty(like: v)
  let saved = backend.gatedDeltaRule(
    q: q, k: k, v: v, g: g, beta: beta, scale: scale, layout: layout, initial: initial, o: o,
    final: final, saves: wantsGradient([q, k, v, g, beta]))
  guard let saved else { return o }
  return backend.record([q, k, v, g, beta], o) { dO in
    let (dQ, dK, dV) = (backend.empty(like: q), backend.empty(like: k), backend.empty(like: v))
    let (dG, dBeta) = (backend.empty(like: g), backend.empty(like: beta))
    backend.gatedDeltaRuleBackward(
      dO: dO, dFinal: nil, q: q, k: k, v: v, g: g, beta: beta, scale: scale, layout: layout,
      saved: saved, dQ: dQ, dK: dK, dV: dV, dG: dG, dBeta: dBeta, dInitial: nil)
    q.slot?.accumulate(dQ)
    k.slot?.accumulate(dK)
    v.slot?.accumulate(dV)
    beta.slot?.accumulate(dBeta)
    g.slot?.accumulate(dG)
  }
}
