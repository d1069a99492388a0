import Tensors

/// SiLU of a causal convolution whose taps depend on the token (RECIPE section 3.2):
/// u[t, c] = Σ_w kernels[t, c, w] · x[t − 3 + w, c].
///
/// - Parameters:
///   - x: `[N, C]`
///   - kernels: `[N, C, 4]`, tap 3 for the current token
///   - layout: segments, runs of tokens that see only themselves
///   - history: `[segments, 4, C]`, the inputs before each segment, newest last; no gradient flows there
package func dynamicConvolution(
  _ x: Tensor, kernels: Tensor, layout: Layout, history: Tensor? = nil
) -> Tensor {
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.dynamicConvolve(x, kernels: kernels, layout: layout, history: history, into: y)
  return backend.record(y, from: [x, kernels], saving: (x: x.saved, kernels: kernels.saved, layout: layout)) { saved in
    let x = saved.x.value
    let y = x.backend.empty(like: x)
    x.backend.dynamicConvolve(x, kernels: saved.kernels.value, layout: saved.layout, history: nil, into: y)
    return y
  } backward: { [isContinued = history != nil] node in
    precondition(!isContinued, "a convolution that continues a cache has no backward pass")
    let (backend, saved) = (node.backend, node.saved)
    let (dx, dKernels) = (node[0].room(on: backend), node[1].room(on: backend))
    backend.dynamicConvolveBackward(
      node.dy, saved.x.value, kernels: saved.kernels.value, layout: saved.layout, dx: dx, dKernels: dKernels)
    node[0].add(dx)
    node[1].add(dKernels)
  }
}

/// The same with taps that two layers make of the token (JetBlock's kernel generator): the second layer's product is part of
/// the op, so that taps need not exist whole.
///
/// - Parameters:
///   - x: `[N, C]`
///   - inner: `[N, R]`, what the first layer makes
///   - weight: `[4·C, R]`, four rows a channel
///   - bias: `[4·C]`
package func dynamicConvolution(
  _ x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor, layout: Layout, history: Tensor? = nil
) -> Tensor {
  let backend = x.backend
  let inner = inner.dense
  let y = backend.empty(like: x)
  let inputs = [x, inner, weight, bias]
  let state = backend.generatedConvolve(
    x, inner: inner, weight: weight, bias: bias, layout: layout, history: history, into: y,
    saves: backend.records(inputs) && backend.tape?.recomputation == Recomputation.none)
  return backend.record(
    y, from: inputs,
    saving: (x: x.saved, inner: inner.saved, weight: weight.saved, bias: bias.saved, layout: layout, state: state)
  ) { saved in
    let x = saved.x.value
    let y = x.backend.empty(like: x)
    _ = x.backend.generatedConvolve(
      x, inner: saved.inner.value, weight: saved.weight.value, bias: saved.bias.value, layout: saved.layout,
      history: nil, into: y, saves: false)
    return y
  } backward: { [isContinued = history != nil] node in
    precondition(!isContinued, "a convolution that continues a cache has no backward pass")
    let (backend, saved) = (node.backend, node.saved)
    let (dx, dInner) = (node[0].room(on: backend), node[1].room(on: backend))
    // Gradients of parameters are added where they lie; a frozen one has none.
    func run(_ dWeight: Tensor?, _ addsWeight: Bool, _ dBias: Tensor?, _ addsBias: Bool) {
      backend.generatedConvolveBackward(
        node.dy, saved.x.value, inner: saved.inner.value, weight: saved.weight.value, bias: saved.bias.value,
        layout: saved.layout, saved: saved.state, dx: dx, dInner: dInner, dWeight: dWeight, addsWeight: addsWeight,
        dBias: dBias,
        addsBias: addsBias)
    }
    func withBias(_ dWeight: Tensor?, _ addsWeight: Bool) {
      guard node[3].isAsked else { return run(dWeight, addsWeight, nil, false) }
      node[3].accumulate { dBias, adds in run(dWeight, addsWeight, dBias, adds) }
    }
    if node[2].isAsked { node[2].accumulate { dWeight, adds in withBias(dWeight, adds) } } else { withBias(nil, false) }
    node[0].add(dx)
    node[1].add(dInner)
  }
}
