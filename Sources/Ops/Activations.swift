import Tensors

/// SiLU(x) = x · sigmoid(x), element by element.
package func silu(_ x: Tensor) -> Tensor { apply(.silu, x) }

/// SiLU(gate) · up (Shazeer, 2020).
package func swiGLU(gate: Tensor, up: Tensor) -> Tensor {
  let backend = gate.backend
  let y = backend.empty(like: gate)
  backend.swiGLU(gate: gate, up: up, into: y)
  return backend.record(y, from: [gate, up], saving: (gate: gate.saved, up: up.saved)) { saved in
    let gate = saved.gate.value
    let y = gate.backend.empty(like: gate)
    gate.backend.swiGLU(gate: gate, up: saved.up.value, into: y)
    return y
  } backward: { node in
    let (backend, saved) = (node.backend, node.saved)
    let (dGate, dUp) = (node[0].room(on: backend), node[1].room(on: backend))
    backend.swiGLUBackward(node.dy, gate: saved.gate.value, up: saved.up.value, dGate: dGate, dUp: dUp)
    node[0].add(dGate)
    node[1].add(dUp)
  }
}
