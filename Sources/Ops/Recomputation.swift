import Tensors

/// Runs `body` so that backward computes again what `policy` says.
///
/// - Parameter x: the only input that gradients flow through, besides parameters that `body` reads.
package func recomputing(_ policy: Recomputation, _ x: Tensor, _ body: @escaping (Tensor) -> Tensor) -> Tensor {
  guard let tape = x.backend.tape, policy != .layer else { return checkpointed(x, body) }
  let outer = tape.recomputation
  tape.recomputation = policy
  defer { tape.recomputation = outer }
  return body(x)
}

/// Runs `body` without keeping its intermediate results; backward computes them again (Chen et al., 2016).
///
/// - Parameter x: the only input that gradients flow through, besides parameters that `body` reads.
package func checkpointed(_ x: Tensor, _ body: @escaping (Tensor) -> Tensor) -> Tensor {
  let backend = x.backend
  guard let tape = backend.tape else { return body(x) }
  var y = backend.withoutRecording { body(x.detached) }
  let slot = GradientSlot(y)
  y.slot = slot
  let input = x.saved
  let gradient = x.slot
  tape.append {
    guard let dy = slot.take() else { return }
    var input = input.value
    if gradient != nil { input.slot = GradientSlot(input) }
    let (output, inner) = backend.recording { body(input) }
    output.slot?.accumulate(dy)
    inner.backward()
    if let dx = input.slot?.take() { gradient?.accumulate(dx) }
  }
  return y
}
