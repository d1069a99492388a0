import Tensors

/// SiLU(x) = x · sigmoid(x), element by element.
package func silu(_ x: Tensor) -> Tensor { apply(.silu, x) }

/// SiLU(gate) · up (Shazeer, 2020).
package func swiGLU(gate: Tensor, up: Tensor) -> Tensor {
  let backend = gate.backend
  let y = backend.empty(like: gate)
  backend.swiGLU(gate: gate, up: up, into: y)
  return backend.record([gate, up], y) { dy in
    let (dGate, dUp) = (gate.gradientRoom(), up.gradientRoom())
    backend.swiGLUBackward(dy, gate: gate, up: up, dGate: dGate, dUp: dUp)
    gate.slot?.accumulate(dGate)
    up.slot?.accumulate(dUp)
  }
}
