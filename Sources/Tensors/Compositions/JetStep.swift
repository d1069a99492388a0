/// One token of each of S sequences through a JetBlock, from its projections to the output of the delta rule. Columns of one wider
/// array may be q, k [S, H·K], v [S, H·V], a and b [S, H].
package struct JetStep {
  package let q, k, v, a, b: Tensor
  /// Of the convolution by token and channel, `[S, 4·H·V]`, without their bias `[4·H·V]`; scratch afterwards.
  package let taps, tapBias: Tensor
  /// `[H]`
  package let aLog, dtBias: Tensor
  /// `[S, 4, H·V]`, newest last; takes v in.
  package let history: Tensor
  /// `[S, H, K, V]`, in place.
  package let state: Tensor
  package let epsilon: Float

  package init(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, taps: Tensor, tapBias: Tensor, aLog: Tensor, dtBias: Tensor,
    history: Tensor, state: Tensor, epsilon: Float
  ) {
    (self.q, self.k, self.v, self.a, self.b) = (q, k, v, a, b)
    (self.taps, self.tapBias, self.aLog, self.dtBias) = (taps, tapBias, aLog, dtBias)
    (self.history, self.state, self.epsilon) = (history, state, epsilon)
  }

  package var sequences: Int { state.shape[0] }
  package var heads: Int { state.shape[1] }
  package var keySize: Int { state.shape[2] }
  package var valueSize: Int { state.shape[3] }
  package var scale: Float { 1 / Float(keySize).squareRoot() }
}

extension Backend {
  package func jetStep(_ step: JetStep, layout: Layout, into o: Tensor) {
    composedJetStep(step, layout: layout, into: o)
  }

  /// The composition, also for backends whose own kernel is for some sizes alone.
  package func composedJetStep(_ step: JetStep, layout: Layout, into o: Tensor) {
    let (count, heads) = (step.sequences, step.heads)
    func normalized(_ x: Tensor) -> Tensor {
      let y = empty([count, heads, step.keySize], x.dtype)
      siluNormalize(dense(x).reshaped(y.shape), epsilon: step.epsilon, into: y)
      return y
    }
    addBias(step.tapBias, to: step.taps)
    let v = empty([count, heads * step.valueSize], step.v.dtype)
    let inputs = dense(step.v)
    dynamicConvolve(
      inputs, kernels: step.taps.reshaped([count, heads * step.valueSize, 4]), layout: layout, history: step.history,
      into: v)
    let (g, beta) = (empty([count, heads]), empty([count, heads]))
    decayGate(a: dense(step.a), b: dense(step.b), aLog: step.aLog, dtBias: step.dtBias, g: g, beta: beta)
    _ = gatedDeltaRule(
      q: normalized(step.q), k: normalized(step.k), v: v.reshaped([count, heads, step.valueSize]), g: g, beta: beta,
      scale: step.scale, layout: layout, initial: step.state, o: o, final: step.state, saves: false)
    remember(inputs, layout: layout, in: step.history)
  }

  /// x, or a copy of it with its rows end to end.
  private func dense(_ x: Tensor) -> Tensor {
    if x.isDense { return x }
    let y = empty(like: x)
    copy(x, into: y)
    return y
  }
}
