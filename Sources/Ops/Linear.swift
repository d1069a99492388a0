import Tensors

/// y = x Wᵀ + b.
///
/// - Parameters:
///   - x: `[N, in]`
///   - weight: `[out, in]`
///   - bias: `[out]`
/// - Returns: `[N, out]`, of x's type
package func linear(_ x: Tensor, _ weight: Tensor, bias: Tensor? = nil) -> Tensor {
  linear(x, [weight], biases: bias.map { [$0] } ?? [])
}

/// The same of a matrix whose rows lie in several places, and so its bias.
///
/// - Parameters:
///   - weights: `[out_i, in]` each
///   - biases: of as many elements together as the weights have rows; or none
/// - Returns: `[N, Σ out_i]`
package func linear(_ x: Tensor, _ weights: [Tensor], biases: [Tensor]) -> Tensor {
  let backend = x.backend
  let y = backend.empty([x.rows, weights.reduce(0) { $0 + $1.rows }], x.dtype)
  precondition(
    biases.isEmpty || biases.reduce(0) { $0 + $1.count } == y.columns, "\(biases.map(\.shape)) for \(y.shape)")
  backend.project(x, weights, biases: biases, into: y)
  return backend.record([x] + weights + biases, y) { dy in
    x.slot?.accumulate { dx, adds in backend.projectBackward(dy, weights, into: dx, adds: adds) }
    forEachColumns(of: dy, weights) { dy, weight in
      weight.slot?.accumulate { dw, adds in
        backend.multiply(dy(), transposed: true, x, transposed: false, into: dw, alpha: 1, adds: adds)
      }
    }
    forEachColumns(of: dy, biases) { dy, bias in
      bias.slot?.accumulate { db, adds in backend.sumRows(dy(), into: db, adds: adds) }
    }
  }
}

/// Calls `body` with what gives the columns of y that belong to each of `rows`.
private func forEachColumns(of y: Tensor, _ rows: [Tensor], _ body: (_ columns: () -> Tensor, Tensor) -> Void) {
  var first = 0
  for rows in rows {
    let range = first..<first + rows.rows
    body({ range.count == y.columns ? y : copiedColumns(y, range) }, rows)
    first = range.upperBound
  }
}

private func copiedColumns(_ x: Tensor, _ range: Range<Int>) -> Tensor {
  let part = x.backend.empty([x.rows, range.count], x.dtype)
  x.backend.copyColumns(x, range, into: part)
  return part
}

/// The columns of x, in parts of these widths: views where the backend takes them, else copies. No gradient is added up
/// twice: those of the parts lie side by side.
///
/// - Parameter x: `[N, C]`
/// - Returns: `[N, width]` each
package func split(_ x: Tensor, _ widths: [Int]) -> [Tensor] {
  guard widths.count > 1 else { return [x] }
  let backend = x.backend
  var ranges: [Range<Int>] = []
  for width in widths { ranges.append((ranges.last?.upperBound ?? 0)..<(ranges.last?.upperBound ?? 0) + width) }
  precondition(ranges.last?.upperBound == x.columns, "\(x.shape) in parts of \(widths)")
  let takesViews = backend.takesColumnViews
  var parts = ranges.map { takesViews ? x.columns($0) : copiedColumns(x, $0) }
  guard let tape = backend.tape, let slot = x.slot else { return parts }
  let whole = WholeGradient(of: x)
  let slots = ranges.map { range in
    GradientSlot(
      shape: [x.rows, range.count], dtype: x.dtype, backend: backend,
      place: takesViews ? { whole.gradient.columns(range) } : nil)
  }
  for index in parts.indices { parts[index].slot = slots[index] }
  let (rows, dtype) = (x.rows, x.dtype)
  tape.append {
    let gradients = slots.map { $0.take() }
    guard gradients.contains(where: { $0 != nil }) else { return }
    for (range, gradient) in zip(ranges, gradients) {
      if takesViews {
        if gradient == nil { backend.fill(whole.gradient.columns(range), with: 0) }
      } else {
        backend.addColumns(
          gradient ?? backend.zeros([rows, range.count], dtype), into: whole.gradient, range, adds: range.lowerBound > 0)
      }
    }
    slot.accumulate(whole.gradient)
  }
  return parts
}

/// The gradient of what was split, made when the first of its parts is.
private final class WholeGradient {
  private let make: () -> Tensor
  private(set) lazy var gradient = make()

  init(of x: Tensor) {
    let (shape, dtype, backend) = (x.shape, x.dtype, x.backend)
    make = { backend.empty(shape, dtype) }
  }
}

extension Tensor {
  /// The same values one behind the other, for ops whose kernels want them so: a view of columns is copied.
  var dense: Tensor {
    if isDense { return self }
    let source = self
    let y = backend.empty(like: self)
    backend.copy(source, into: y)
    return backend.record([source], y) { dy in source.slot?.accumulate(dy) }
  }
}

/// Rows of `table` `[V, D]` at the token `ids` `[N]`: `[N, D]`.
package func embedding(_ table: Tensor, _ ids: Tensor) -> Tensor {
  let backend = table.backend
  let out = backend.empty([ids.count, table.columns], backend.activationType)
  backend.gather(table, ids, into: out)
  return backend.record([table], out) { dy in
    table.slot?.accumulate { dTable, adds in
      if !adds { backend.fill(dTable, with: 0) }
      backend.scatterAdd(dy, ids, into: dTable)
    }
  }
}

/// x + y, of one shape: the residual connection.
package func add(_ x: Tensor, _ y: Tensor) -> Tensor {
  let (x, y) = (x.dense, y.dense)
  let backend = x.backend
  let out = backend.empty(like: x)
  backend.sum(x, y, into: out)
  return backend.record([x, y], out) { dy in
    x.slot?.accumulate(dy)
    y.slot?.accumulate(dy)
  }
}
