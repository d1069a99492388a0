/// Fused kernels of elements, rows and columns, composed of the core.
extension Backend {
  package func sum(_ x: Tensor, _ y: Tensor, into out: Tensor) {
    copy(x, into: out)
    add(y, scale: 1, into: out)
  }

  /// As the outer product of ones and the bias.
  package func addBias(_ bias: Tensor, to y: Tensor) {
    multiply(
      filled([y.rows, 1], with: 1), transposed: false, bias.reshaped([1, bias.count]), transposed: false, into: y,
      alpha: 1, adds: true)
  }

  package func sumRows(_ x: Tensor, into sums: Tensor, adds: Bool) {
    multiply(
      filled([1, x.rows], with: 1), transposed: false, x, transposed: false, into: sums.reshaped([1, sums.count]),
      alpha: 1, adds: adds)
  }

  package func adamW(
    parameters: Tensor, gradients: Tensor, moment1: Tensor, moment2: Tensor, step: AdamWStep, copy lowered: Tensor
  ) {
    adamW(parameters: parameters, gradients: gradients, moment1: moment1, moment2: moment2, step: step)
    copy(parameters, into: lowered)
  }

  package func swiGLU(gate: Tensor, up: Tensor, into y: Tensor) {
    product(activated(gate), up, into: y, adds: false)
  }

  package func swiGLUBackward(_ dy: Tensor, gate: Tensor, up: Tensor, dGate: Tensor, dUp: Tensor) {
    let active = activated(gate)
    let dActive = empty(gate.shape)
    product(dy, up, into: dActive, adds: false)
    product(dy, active, into: dUp, adds: false)
    applyBackward(.silu, dActive, x: gate, y: active, into: dGate)
  }

  package func repeatHeads(_ x: Tensor, into y: Tensor) {
    forEachHead(of: y, groups: x) { head, group, one in
      copyColumns(x, group, into: one)
      addColumns(one, into: y, head, adds: head.lowerBound > 0)
    }
  }

  package func repeatHeadsBackward(_ dy: Tensor, into dx: Tensor) {
    forEachHead(of: dy, groups: dx) { head, group, one in
      copyColumns(dy, head, into: one)
      addColumns(one, into: dx, group, adds: head.lowerBound > 0)
    }
  }

  /// Calls `body` with the columns of every head of x [N, H, K], those of its group in `groups` [N, G, K], and room for one.
  private func forEachHead(
    of x: Tensor, groups: Tensor, _ body: (_ head: Range<Int>, _ group: Range<Int>, _ one: Tensor) -> Void
  ) {
    let (heads, count, size) = (x.shape[1], groups.shape[1], x.shape[2])
    let one = empty([x.rows, size])
    for head in 0..<heads {
      let group = head * count / heads
      body(head * size..<(head + 1) * size, group * size..<(group + 1) * size, one)
    }
  }

  package func squaredError(
    _ x: Tensor, target: Tensor, seed: Float, losses: Tensor, into dx: Tensor?, adds: Bool
  ) {
    let size = Float(x.columns)
    let difference = empty(x.shape)
    copy(x, into: difference)
    add(target, scale: -1, into: difference)
    rowProducts(difference, difference, into: losses)
    let sums = empty(losses.shape)
    copy(losses, into: sums)
    fill(losses, with: 0)
    add(sums, scale: 1 / size, into: losses)
    guard let dx else { return }
    if !adds { fill(dx, with: 0) }
    add(difference, scale: seed * 2 / size, into: dx)
  }

  /// SiLU(x), as a tensor of its own.
  func activated(_ x: Tensor) -> Tensor {
    let y = empty(x.shape)
    apply(.silu, x, into: y)
    return y
  }

  /// scale · x, as a tensor of its own.
  func scaled(_ x: Tensor, by scale: Float) -> Tensor {
    let y = zeros(x.shape)
    add(x, scale: scale, into: y)
    return y
  }
}
