/// Linear attention as the diagonal plus low rank recurrence S ← e^g ∘ S + β (αᵀ S) + k vᵀ, α reading the state before it
/// decays.
extension Backend {
  package func decayGate(a: Tensor, b: Tensor, aLog: Tensor, dtBias: Tensor, g: Tensor, beta: Tensor) {
    scaleColumns(softplusSteps(a, dtBias).steps, by: decayRates(aLog), into: g, adds: false)
    apply(.sigmoid, b, into: beta)
  }

  package func decayGateBackward(
    dG: Tensor, dBeta: Tensor, a: Tensor, beta: Tensor, aLog: Tensor, dtBias: Tensor, dA: Tensor,
    dB: Tensor, dALog: Tensor, dDtBias: Tensor
  ) {
    let rates = decayRates(aLog)
    let (shifted, steps) = softplusSteps(a, dtBias)
    let dSteps = empty(a.shape)
    scaleColumns(dG, by: rates, into: dSteps, adds: false)
    applyBackward(.softplus, dSteps, x: shifted, y: steps, into: dA)
    sumRows(dA, into: dDtBias, adds: false)
    columnProducts(dG, steps, into: dALog, adds: false)
    product(dALog, rates, into: dALog, adds: false)
    applyBackward(.sigmoid, dBeta, x: beta, y: beta, into: dB)
  }

  /// −e^aLog
  private func decayRates(_ aLog: Tensor) -> Tensor {
    let rates = empty(aLog.shape)
    apply(.negativeExponential, aLog, into: rates)
    return rates
  }

  /// a + dtBias, and its softplus.
  private func softplusSteps(_ a: Tensor, _ dtBias: Tensor) -> (shifted: Tensor, steps: Tensor) {
    let (shifted, steps) = (empty(a.shape), empty(a.shape))
    copy(a, into: shifted)
    addBias(dtBias, to: shifted)
    apply(.softplus, shifted, into: steps)
    return (shifted, steps)
  }

  // MARK: - Gated delta rule

  /// S ← e^g S + k (β (v − e^g Sᵀ k))ᵀ: α is −e^g k, and β k takes both other places.
  package func gatedDeltaRule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float, layout: Layout, initial: Tensor?,
    o: Tensor, final: Tensor?, saves: Bool
  ) -> SavedState? {
    let parts = DeltaRuleParts(self, k: k, g: g, beta: beta)
    return diagonalPlusLowRank(
      q: q, k: parts.written, v: v, alpha: parts.alpha, beta: parts.written, g: parts.g, scale: scale, layout: layout,
      initial: initial, o: o, final: final, saves: saves)
  }

  package func gatedDeltaRuleBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float,
    layout: Layout, saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor, dBeta: Tensor,
    dInitial: Tensor?
  ) {
    let parts = DeltaRuleParts(self, k: k, g: g, beta: beta)
    let (dWritten, dAlpha, dLowRank, dGates) = (empty(k.shape), empty(k.shape), empty(k.shape), empty(k.shape))
    diagonalPlusLowRankBackward(
      dO: dO, dFinal: dFinal, q: q, k: parts.written, v: v, alpha: parts.alpha, beta: parts.written, g: parts.g,
      scale: scale, layout: layout, saved: saved, dQ: dQ, dK: dWritten, dV: dV, dAlpha: dAlpha, dBeta: dLowRank,
      dG: dGates, dInitial: dInitial)
    add(dLowRank, scale: 1, into: dWritten)
    scaleRows(dWritten, by: beta, into: dK, adds: false)
    scaleRows(dAlpha, by: parts.decay, into: dK, adds: true)
    rowProducts(dWritten, k, into: dBeta)
    // −e^g is its own derivative.
    let dDecay = empty(g.shape)
    rowProducts(dAlpha, k, into: dDecay)
    rowProducts(dGates, filled(k.shape, with: 1), into: dG)
    product(dDecay, parts.decay, into: dG, adds: true)
  }

  // MARK: - Decayed attention

  /// Nothing of the state is read back: α and β are zero.
  package func decayedAttention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, layout: Layout, initial: Tensor?, o: Tensor,
    final: Tensor?, saves: Bool
  ) -> SavedState? {
    let none = zeros(k.shape)
    return diagonalPlusLowRank(
      q: q, k: k, v: v, alpha: none, beta: none, g: byChannel(g, k), scale: scale, layout: layout, initial: initial,
      o: o, final: final, saves: saves)
  }

  package func decayedAttentionBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: Float, layout: Layout,
    saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor, dInitial: Tensor?
  ) {
    let none = zeros(k.shape)
    let (dAlpha, dBeta, dGates) = (empty(k.shape), empty(k.shape), empty(k.shape))
    diagonalPlusLowRankBackward(
      dO: dO, dFinal: dFinal, q: q, k: k, v: v, alpha: none, beta: none, g: byChannel(g, k), scale: scale,
      layout: layout, saved: saved, dQ: dQ, dK: dK, dV: dV, dAlpha: dAlpha, dBeta: dBeta, dG: dGates,
      dInitial: dInitial)
    if g.count == k.count {
      copy(dGates, into: dG)
    } else {
      rowProducts(dGates, filled(k.shape, with: 1), into: dG)
    }
  }

  /// Gates `[N, H]` for every key channel, `[N, H, K]`; gates a channel as they are.
  fileprivate func byChannel(_ g: Tensor, _ k: Tensor) -> Tensor {
    guard g.count != k.count else { return g.reshaped(k.shape) }
    let gates = empty(k.shape)
    scaleRows(filled(k.shape, with: 1), by: g, into: gates, adds: false)
    return gates
  }
}

/// What the gated delta rule hands to the general recurrence.
private struct DeltaRuleParts {
  /// −e^g, `[N, H]`
  let decay: Tensor
  /// −e^g k, β k, and g by channel, `[N, H, K]` each
  let alpha: Tensor
  let written: Tensor
  let g: Tensor

  init(_ backend: any Backend, k: Tensor, g: Tensor, beta: Tensor) {
    decay = backend.empty(g.shape)
    backend.apply(.negativeExponential, g, into: decay)
    (alpha, written) = (backend.empty(k.shape), backend.empty(k.shape))
    backend.scaleRows(k, by: decay, into: alpha, adds: false)
    backend.scaleRows(k, by: beta, into: written, adds: false)
    self.g = backend.byChannel(g, k)
  }
}
