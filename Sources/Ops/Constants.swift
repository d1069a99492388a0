import Tensors

/// x · factor.
///
/// - Parameter x: `[N, C]`
package func scaled(_ x: Tensor, by factor: Float) -> Tensor {
  if factor == 1 { return x }
  let scale = x.backend.empty([1])
  x.backend.fill(scale, with: factor)
  return scaleColumns(x, by: scale)
}

/// x + 1.
///
/// - Parameter x: `[C]`
package func plusOne(_ x: Tensor) -> Tensor {
  let ones = x.backend.empty(like: x)
  x.backend.fill(ones, with: 1)
  return addBias(x.reshaped([1, x.count]), ones).reshaped(x.shape)
}
