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
  // Two outputs, one node: beta's gradient waits in its slot until g's arrives with the same op.
  let betaSlot = GradientSlot(shape: b.shape, backend: backend)
  g = backend.record(
    g, from: [a, b, aLog, dtBias],
    saving: (a: a.saved, beta: beta, aLog: aLog.saved, dtBias: dtBias.saved, betaSlot: betaSlot)
  ) { node in
    let (backend, saved) = (node.backend, node.saved)
    guard let dBeta = saved.betaSlot.take() else { return }
    let rooms = (0..<4).map { node[$0].room(on: backend) }
    backend.decayGateBackward(
      dG: node.dy, dBeta: dBeta, a: saved.a.value, beta: saved.beta, aLog: saved.aLog.value,
      dtBias: saved.dtBias.value, dA: rooms[0], dB: rooms[1], dALog: rooms[2], dDtBias: rooms[3])
    for (index, room) in rooms.enumerated() { node[index].add(room) }
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
  let inputs = [q, k, v, g, beta].map(\.dense)
  let backend = q.backend
  let scale = 1 / Float(q.shape[2]).squareRoot()
  let o = backend.empty(like: v)
  let saved = backend.gatedDeltaRule(
    q: inputs[0], k: inputs[1], v: inputs[2], g: inputs[3], beta: inputs[4], scale: scale, layout: layout,
    initial: initial, o: o, final: final, saves: backend.records(inputs))
  return recordRecurrence(o, from: inputs, last: 3, state: saved, layout: layout) { dO, inputs, state, layout, rooms in
    dO.backend.gatedDeltaRuleBackward(
      dO: dO, dFinal: nil, q: inputs[0], k: inputs[1], v: inputs[2], g: inputs[3], beta: inputs[4], scale: scale,
      layout: layout, saved: state, dQ: rooms[0], dK: rooms[1], dV: rooms[2], dG: rooms[3], dBeta: rooms[4],
      dInitial: nil)
  }
}
