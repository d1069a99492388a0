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
  return backend.record([x, kernels], y) { dy in
    precondition(history == nil, "a convolution that continues a cache has no backward pass")
    let dx = x.gradientRoom()
    let dKernels = backend.empty(like: kernels)
    backend.dynamicConvolveBackward(
      dy, x, kernels: kernels, layout: layout, dx: dx, dKernels: dKernels)
    x.slot?.accumulate(dx)
    kernels.slot?.accumulate(dKernels)
  }
}
