import CUDA
import Foundation
import Tensors

/// Elements, rows, columns and tables (Kernels/Elements.cu, RowsAndColumns.cu, Tables.cu).
extension CUDABackend {
  typealias A = KernelArgument

  /// Blocks of a kernel whose threads take eight elements each.
  private func eights(_ count: Int) -> (Int, Int) { ((count + 2047) / 2048, 1) }

  /// Kernels that divide places count in 32 bits.
  private func narrow(_ count: Int) -> KernelArgument {
    require(count < 1 << 31, "\(count) elements at once")
    return A(count)
  }

  /// How tensors of one shape lie, of which some may be columns of wider rows.
  private func lie(_ x: Tensor, _ y: Tensor? = nil, _ z: Tensor? = nil) -> KernelArgument {
    guard let wide = [x, y, z].compactMap({ $0 }).first(where: { !$0.isDense }) else { return A(0, 0, 0, 0) }
    require(x.count < 1 << 31, "\(x.count) elements at once")
    func stride(_ tensor: Tensor?) -> Int { tensor.map { $0.isDense ? wide.columns : $0.rowStride } ?? 0 }
    return A(wide.columns, stride(x), stride(y), stride(z))
  }

  package func fill(_ x: Tensor, with value: Float) {
    guard x.count > 0 else { return }
    let view = x.deviceView
    if value.bitPattern == 0, x.isDense {
      return run("fill") { try device.fill(view.address, byte: 0, byteCount: view.byteCount) }
    }
    launch(.elements, "fill", grid: eights(x.count), [x.values, A(wide: x.count), lie(x), A(value)])
  }

  package func copy(_ x: Tensor, into y: Tensor) {
    require(x.count == y.count, "copy of \(x.shape) into \(y.shape)")
    guard x.count > 0 else { return }
    if x.dtype == y.dtype, x.isDense, y.isDense {
      let (from, to) = (x.deviceView, y.deviceView)
      guard from.address != to.address else { return }
      return run("copy") { try device.copy(from: from.address, to: to.address, byteCount: from.byteCount) }
    }
    launch(.elements, "copyValues", grid: eights(x.count), [x.values, y.values, A(wide: x.count), lie(x, y)])
  }

  package func add(_ x: Tensor, scale: Float, into y: Tensor) {
    require(x.count == y.count, "add of \(x.shape) into \(y.shape)")
    launch(
      .elements, "addScaled", grid: eights(x.count),
      [x.values, y.values, y.values, A(wide: x.count), lie(x, y, y), A(scale)])
  }

  package func sum(_ x: Tensor, _ y: Tensor, into out: Tensor) {
    launch(
      .elements, "addScaled", grid: eights(x.count),
      [x.values, y.values, out.values, A(wide: x.count), lie(x, y, out), A(Float(1))])
  }

  package func product(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool) {
    require(x.count == y.count && y.count == out.count, "product of \(x.shape) and \(y.shape)")
    launch(
      .elements, "product", grid: eights(x.count),
      [x.values, y.values, out.values, A(wide: x.count), lie(x, y, out), A(adds ? 1 : 0)])
  }

  /// The number of a function in Elements.cu, and its constants.
  private func code(_ function: ElementFunction) -> (number: Int, scale: Float, epsilon: Float) {
    switch function {
    case .silu: (0, 1, 0)
    case .sigmoid: (1, 1, 0)
    case .logSigmoid(let scale): (2, scale, 0)
    case .softplus: (3, 1, 0)
    case .tanh: (4, 1, 0)
    case .negativeExponential: (5, 1, 0)
    case .scaledSigmoid(let scale): (6, scale, 0)
    case .sigmoidMinusOne: (7, 1, 0)
    case .inverseRoot(let scale, let epsilon): (8, scale, epsilon)
    case .gelu: (9, 1, 0)
    }
  }

  package func apply(_ function: ElementFunction, _ x: Tensor, into y: Tensor) {
    let code = code(function)
    launch(
      .elements, "applyFunction", grid: eights(x.count),
      [x.values, y.values, A(wide: x.count), lie(x, y), A(code.number), A(code.scale), A(code.epsilon)])
  }

  package func applyBackward(_ function: ElementFunction, _ dy: Tensor, x: Tensor, y: Tensor, into dx: Tensor) {
    let code = code(function)
    let read = function.slopeReadsOutput ? y : x
    launch(
      .elements, "applyFunctionBackward", grid: eights(dx.count),
      [dy.values, read.values, dx.values, A(wide: dx.count), lie(dy, read, dx), A(code.number), A(code.scale)])
  }

  // MARK: - Rows and columns

  package func scaleRows(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool) {
    let columns = x.count / max(1, scales.count)
    require(columns * scales.count == x.count && y.count == x.count, "rows of \(x.shape) by \(scales.shape)")
    launch(
      .rowsAndColumns, "scaleRows", threads: x.count,
      [x.values, scales.values, y.values, narrow(x.count), A(columns), A(adds ? 1 : 0)])
  }

  package func rowProducts(_ x: Tensor, _ y: Tensor, into out: Tensor) {
    let columns = x.count / max(1, out.count)
    require(columns * out.count == x.count && y.count == x.count, "rows of \(x.shape), \(y.shape) into \(out.shape)")
    launch(
      .rowsAndColumns, "rowProducts", grid: ((out.count + 7) / 8, 1),
      [x.values, y.values, out.values, A(out.count), A(columns)])
  }

  package func scaleColumns(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool) {
    let group = x.columns / scales.count
    require(group * scales.count == x.columns && y.count == x.count, "columns of \(x.shape) by \(scales.shape)")
    launch(
      .rowsAndColumns, "scaleColumns", threads: x.count,
      [x.values, scales.values, y.values, narrow(x.count), A(x.columns), A(group), A(adds ? 1 : 0)])
  }

  package func columnProducts(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool) {
    sumColumns(x, y, into: out, adds: adds)
  }

  package func sumRows(_ x: Tensor, into sums: Tensor, adds: Bool) { sumColumns(x, nil, into: sums, adds: adds) }

  /// Sums over rows, of x or of x · y, cut into parts by the number of rows alone.
  private func sumColumns(_ x: Tensor, _ y: Tensor?, into out: Tensor, adds: Bool) {
    let (rows, columns) = (x.rows, x.columns)
    let group = columns / out.count
    require(group * out.count == columns && y?.count ?? x.count == x.count, "columns of \(x.shape) into \(out.shape)")
    let rowsPerPart = max(32, (rows + 255) / 256)
    let parts = (rows + rowsPerPart - 1) / rowsPerPart
    let partial = empty([max(1, parts), columns])
    launch(
      .rowsAndColumns, "columnParts", grid: ((columns + 255) / 256, parts),
      [x.values, A(values: y), A(rows), A(columns), A(x.rowStride), A(rowsPerPart), partial.floats])
    launch(
      .rowsAndColumns, "addColumnParts", grid: ((out.count + 7) / 8, 1),
      [partial.floats, A(parts), A(columns), A(group), out.values, A(adds ? 1 : 0)])
  }

  package func addBias(_ bias: Tensor, to y: Tensor) {
    launch(
      .rowsAndColumns, "addBias", grid: eights(y.count),
      [bias.values, y.values, narrow(y.count), A(y.columns), A(y.rowStride)])
  }

  package func copyColumns(_ x: Tensor, _ range: Range<Int>, into y: Tensor) {
    require(range.upperBound <= x.columns && y.count == x.rows * range.count, "columns \(range) of \(x.shape)")
    launch(
      .rowsAndColumns, "copyColumns", threads: y.count,
      [x.values, y.values, narrow(y.count), A(x.columns), A(range.lowerBound), A(range.count)])
  }

  package func addColumns(_ dy: Tensor, into dx: Tensor, _ range: Range<Int>, adds: Bool) {
    require(range.upperBound <= dx.columns && dy.count == dx.rows * range.count, "columns \(range) of \(dx.shape)")
    launch(
      .rowsAndColumns, "addColumns", threads: dx.count,
      [dy.values, dx.values, narrow(dx.count), A(dx.columns), A(range.lowerBound), A(range.count), A(adds ? 1 : 0)])
  }

  package func repeatHeads(_ x: Tensor, into y: Tensor) {
    launch(
      .rowsAndColumns, "repeatHeads", threads: y.count,
      [x.values, y.values, narrow(y.count), A(y.shape[1]), A(x.shape[1]), A(x.shape[2])])
  }

  package func repeatHeadsBackward(_ dy: Tensor, into dx: Tensor) {
    launch(
      .rowsAndColumns, "repeatHeadsBackward", threads: dx.count,
      [dy.values, dx.values, narrow(dx.count), A(dy.shape[1]), A(dx.shape[1]), A(dx.shape[2]), A(dx.rowStride)])
  }

  // MARK: - Tables

  package func gather(_ table: Tensor, _ ids: Tensor, into out: Tensor) {
    launch(
      .tables, "gatherRows", grid: (ids.count, 1),
      [table.values, ids.integers, out.values, A(table.rows), A(table.columns)])
  }

  package func scatterAdd(_ x: Tensor, _ ids: Tensor, into table: Tensor) {
    launch(
      .tables, "scatterAddRows", grid: (ids.count, 1),
      [x.values, ids.integers, table.values, A(ids.count), A(table.rows), A(table.columns)])
  }

  /// Cosines and sines of the angles of positions 0, 1, …: `[positions, half]` each.
  struct RotaryTables {
    let half: Int
    let angles: RotaryAngles
    let cosines: Tensor
    let sines: Tensor
  }

  /// The tables for these angles, kept for as long as the backend: a model may have several kinds.
  private func rotaryTables(_ limit: Int, half: Int, angles: RotaryAngles) -> RotaryTables {
    if let known = rotary.first(where: { $0.half == half && $0.angles == angles }) {
      if known.cosines.rows >= limit { return known }
      rotary.removeAll { $0.half == half && $0.angles == angles }
    }
    var positions = 256
    while positions < limit { positions *= 2 }
    let tables = RotaryTables(
      half: half, angles: angles, cosines: empty([positions, half]), sines: empty([positions, half]))
    let frequencies = empty([half], .float64)
    (0..<half).map { angles.stretched(pow(Double(angles.theta), -Double($0) / Double(half)), $0, of: half) }
      .withUnsafeBytes { upload($0, into: frequencies).wait() }
    launch(
      .tables, "rotaryTables", threads: positions * half,
      [tables.cosines.floats, tables.sines.floats, A(wide: positions * half), A(half), frequencies.doubles])
    rotary.append(tables)
    return tables
  }

  package func rotate(_ x: Tensor, layout: Layout, angles: RotaryAngles, direction: Float, into y: Tensor) {
    let (heads, size) = (x.shape[1], x.shape[2])
    let tables = rotaryTables(layout.positionLimit, half: size / 2, angles: angles)
    let pairs = x.rows * heads * (size / 2)
    launch(
      .tables, "rotate", threads: pairs,
      [
        x.values, y.values, layout.positions.integers, tables.cosines.floats, tables.sines.floats, narrow(pairs),
        A(heads), A(size), A(wide: x.rowStride), A(wide: y.rowStride), A(direction),
      ])
  }

  // MARK: - Sums in double precision

  package func sumElements(_ x: Tensor, scale: Double, into sum: Tensor) {
    require(sum.count == 1, "one sum into shape \(sum.shape)")
    launch(
      .rowsAndColumns, "sumElements", grid: (1, 1), blockSize: 1024,
      [x.values, A(wide: x.count), A(scale), sum.doubles])
  }

  package func sumsOfSquares(_ x: Tensor, blockSize: Int, into sums: Tensor) {
    require(sums.count == (x.count + blockSize - 1) / blockSize, "sums of \(x.shape) into \(sums.shape)")
    _ = sums.doubles
    run("sumsOfSquares") {
      try rows(.float32).sumsOfSquares(x.deviceView, count: x.count, blockSize: blockSize, into: sums.deviceView)
    }
  }

  // MARK: - Products

  package func multiply(
    _ a: Tensor, transposed aTransposed: Bool, _ b: Tensor, transposed bTransposed: Bool, into c: Tensor,
    alpha: Float, adds: Bool
  ) {
    multiply(
      a, transposed: aTransposed, b, transposed: bTransposed, into: c, alpha: alpha, onto: adds ? c : nil)
  }

  /// Onto the residual stream in the product itself, where all is of one type and there is nothing else to add.
  package func project(_ x: Tensor, _ weights: [Tensor], biases: [Tensor], onto base: Tensor?, into y: Tensor) {
    guard let base, weights.count == 1, biases.isEmpty, base.dtype == y.dtype, base.isDense, y.isDense else {
      return composedProject(x, weights, biases: biases, onto: base, into: y)
    }
    multiply(x, transposed: false, weights[0], transposed: true, into: y, alpha: 1, onto: base)
  }

  /// The product, added to `base`, which lies as c does and may be it.
  private func multiply(
    _ a: Tensor, transposed aTransposed: Bool, _ b: Tensor, transposed bTransposed: Bool, into c: Tensor,
    alpha: Float, onto base: Tensor?
  ) {
    let (m, k) = aTransposed ? (a.columns, a.rows) : (a.rows, a.columns)
    let n = bTransposed ? b.rows : b.columns
    require(
      k == (bTransposed ? b.columns : b.rows) && c.rows == m && c.columns == n,
      "multiply of \(a.shape)\(aTransposed ? "ᵀ" : "") and \(b.shape)\(bTransposed ? "ᵀ" : "") into \(c.shape)")
    guard m > 0, n > 0 else { return }
    operations += 2 * Double(m) * Double(n) * Double(k)
    // Operands are of one type: that of the left one, which holds activations or their gradients.
    let b = converted(b, to: a.dtype)
    let isWide = a.dtype == .float32 && c.dtype == .bfloat16
    let out = isWide ? empty(c.shape) : c
    let isStrided = !(a.isDense && b.isDense && out.isDense)
    if isWide, let base { copy(base, into: out) }
    let shape = MatrixProducts.Shape(
      m: m, n: n, k: k, aTransposed: aTransposed, bTransposed: bTransposed,
      operands: a.dtype == .bfloat16 ? .bfloat16 : .float32, result: out.dtype == .bfloat16 ? .bfloat16 : .float32,
      strides: isStrided ? .init(a: a.rowStride, b: b.rowStride, c: out.rowStride) : nil)
    let (pa, pb, pc) = (a.deviceView, b.deviceView, out.deviceView)
    let pBase = isWide && base != nil ? pc : base?.deviceView
    var isDone = false
    run(profile == nil ? "" : "product \(m) x \(n) x \(k) \(aTransposed ? "T" : "N")\(bTransposed ? "T" : "N")") {
      isDone = try products.multiply(
        shape, pa.address, pb.address, into: pc.address, alpha: alpha, onto: pBase?.address)
    }
    if !isDone {
      if let base, pBase!.address != pc.address { copy(base, into: out) }
      require(out.isDense, "a product into columns of \(c.shape) that the library has no kernel for")
      launch(
        .rowsAndColumns, "plainProduct", threads: m * n,
        [
          a.values, b.values, out.values, A(m), A(n), A(k), A(wide: aTransposed ? 1 : a.rowStride),
          A(wide: aTransposed ? a.rowStride : 1),
          A(wide: bTransposed ? 1 : b.rowStride), A(wide: bTransposed ? b.rowStride : 1), A(alpha),
          A(base == nil ? 0 : 1),
        ])
    }
    if isWide { copy(out, into: c) }
  }

  /// x, or a copy of it in another type.
  func converted(_ x: Tensor, to dtype: DType) -> Tensor {
    guard x.dtype != dtype else { return x }
    let y = empty(x.shape, dtype)
    copy(x, into: y)
    return y
  }

  package var takesColumnViews: Bool { true }

  /// x, or a copy of it with its rows end to end.
  func dense(_ x: Tensor) -> Tensor {
    if x.isDense { return x }
    let y = empty(like: x)
    copy(x, into: y)
    return y
  }

  /// Lets `body` write to y, or to a tensor of the type `dtype`, with rows end to end where it `isDense`, that is copied to
  /// y then.
  func writing(
    _ y: Tensor, as dtype: DType, adds: Bool = false, isDense: Bool = false, _ body: (Tensor) -> Void
  ) {
    guard y.dtype != dtype || (isDense && !y.isDense) else { return body(y) }
    let out = empty(y.shape, dtype)
    if adds { copy(y, into: out) }
    body(out)
    copy(out, into: y)
  }
}
