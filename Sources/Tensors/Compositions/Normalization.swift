/// Norms over rows, composed of the core: sums of squares are inner products, means are inner products with ones.
extension Backend {
  package func normalize(_ x: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor) {
    let size = weight.count
    let y = y.reshaped([y.count / size, size])
    rowProducts(x, x, into: inverse)
    apply(.inverseRoot(scale: 1 / Float(size), epsilon: epsilon), inverse, into: inverse)
    scaleRows(x, by: inverse, into: y, adds: false)
    scaleColumns(y, by: weight, into: y, adds: false)
  }

  package func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, into dx: Tensor?, adds: Bool,
    dWeight: Tensor?, addsWeight: Bool
  ) {
    let size = weight.count
    let rows = [x.count / size, size]
    if let dx {
      let weighted = empty(rows)
      scaleColumns(dy.reshaped(rows), by: weight, into: weighted, adds: false)
      removeProjection(weighted, along: x, inverse: inverse, scale: 1 / Float(size), into: dx, adds: adds)
    }
    if let dWeight {
      let normed = empty(rows)
      scaleRows(x, by: inverse, into: normed, adds: false)
      columnProducts(dy.reshaped(rows), normed, into: dWeight, adds: addsWeight)
    }
  }

  package func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, onto base: Tensor, into dx: Tensor,
    dWeight: Tensor?, addsWeight: Bool
  ) {
    if base.storage !== dx.storage || base.offset != dx.offset { copy(base, into: dx) }
    normalizeBackward(
      dy, x, weight: weight, inverse: inverse, into: dx, adds: true, dWeight: dWeight, addsWeight: addsWeight)
  }

  /// dx = r · dy − scale · r³ (dy · x) x, row by row, r being `inverse`: the gradient of x · r with r = 1 / √(scale Σ x² + ε).
  private func removeProjection(
    _ dy: Tensor, along x: Tensor, inverse: Tensor, scale: Float, into dx: Tensor, adds: Bool
  ) {
    let along = empty(inverse.shape)
    rowProducts(dy, x, into: along)
    for _ in 0..<3 { product(along, inverse, into: along, adds: false) }
    scaleRows(dy, by: inverse, into: dx, adds: adds)
    scaleRows(x, by: scaled(along, by: -scale), into: dx, adds: true)
  }

  package func gatedNormalize(
    _ x: Tensor, gate: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor
  ) {
    normalize(x, weight: weight, epsilon: epsilon, into: y, inverse: inverse)
    product(y, activated(gate), into: y, adds: false)
  }

  package func gatedNormalizeBackward(
    _ dy: Tensor, _ x: Tensor, gate: Tensor, weight: Tensor, inverse: Tensor, dx: Tensor, dGate: Tensor,
    dWeight: Tensor?, addsWeight: Bool
  ) {
    let rows = [x.count / weight.count, weight.count]
    let active = activated(gate)
    let (normed, dActive, dNormed) = (empty(rows), empty(gate.shape), empty(gate.shape))
    scaleRows(x, by: inverse, into: normed, adds: false)
    scaleColumns(normed, by: weight, into: normed, adds: false)
    product(dy, normed, into: dActive, adds: false)
    product(dy, active, into: dNormed, adds: false)
    applyBackward(.silu, dActive, x: gate, y: active, into: dGate)
    normalizeBackward(
      dNormed, x, weight: weight, inverse: inverse, into: dx, adds: false, dWeight: dWeight, addsWeight: addsWeight)
  }

  package func normalizeLength(_ x: Tensor, epsilon: Float, into y: Tensor) {
    scaleRows(x, by: inverseLengths(x, epsilon), into: y, adds: false)
  }

  package func normalizeLengthBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor) {
    removeProjection(dy, along: x, inverse: inverseLengths(x, epsilon), scale: 1, into: dx, adds: false)
  }

  /// 1 / √(Σ x² + epsilon) over the last dimension.
  private func inverseLengths(_ x: Tensor, _ epsilon: Float) -> Tensor {
    let inverse = empty(Array(x.shape.dropLast()))
    rowProducts(x, x, into: inverse)
    apply(.inverseRoot(scale: 1, epsilon: epsilon), inverse, into: inverse)
    return inverse
  }

  package func siluNormalize(_ x: Tensor, epsilon: Float, into y: Tensor) {
    normalizeLength(activated(x), epsilon: epsilon, into: y)
  }

  package func siluNormalizeBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor) {
    let active = activated(x)
    let dActive = empty(x.shape)
    normalizeLengthBackward(dy, active, epsilon: epsilon, into: dActive)
    applyBackward(.silu, dActive, x: x, y: active, into: dx)
  }

  package func standardize(_ x: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor) {
    let size = Float(x.shape[x.shape.count - 1])
    copy(x, into: y)
    removeMeans(y, of: inverse.count)
    rowProducts(y, y, into: inverse)
    apply(.inverseRoot(scale: 1 / size, epsilon: epsilon), inverse, into: inverse)
    scaleRows(y, by: inverse, into: y, adds: false)
  }

  package func standardizeBackward(_ dy: Tensor, y: Tensor, inverse: Tensor, into dx: Tensor) {
    let size = Float(y.shape[y.shape.count - 1])
    let slopes = empty(inverse.shape)
    rowProducts(dy, y, into: slopes)
    copy(dy, into: dx)
    removeMeans(dx, of: inverse.count)
    scaleRows(y, by: scaled(slopes, by: -1 / size), into: dx, adds: true)
    scaleRows(dx, by: inverse, into: dx, adds: false)
  }

  /// x −= its mean, for each of `rows` rows.
  private func removeMeans(_ x: Tensor, of rows: Int) {
    let (ones, sums) = (filled(x.shape, with: 1), empty([rows]))
    rowProducts(x, ones, into: sums)
    scaleRows(ones, by: scaled(sums, by: -Float(rows) / Float(x.count)), into: x, adds: true)
  }
}
