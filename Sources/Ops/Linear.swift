import Tensors

/// y = x Wᵀ + b, added to what flows past it.
///
/// - Parameters:
///   - x: `[N, in]`
///   - weight: `[out, in]`
///   - bias: `[out]`
///   - residual: `[N, out]`, the residual stream where the product ends a branch of it
/// - Returns: `[N, out]`, of x's type
package func linear(_ x: Tensor, _ weight: Tensor, bias: Tensor? = nil, onto residual: Tensor? = nil) -> Tensor {
  linear(x, [weight], biases: bias.map { [$0] } ?? [], onto: residual)
}

/// The same of a matrix whose rows lie in several places, and so its bias.
///
/// - Parameters:
///   - weights: `[out_i, in]` each
///   - biases: of as many elements together as the weights have rows; or none
/// - Returns: `[N, Σ out_i]`
package func linear(_ x: Tensor, _ weights: [Tensor], biases: [Tensor], onto residual: Tensor? = nil) -> Tensor {
  let backend = x.backend
  let residual = residual?.dense
  let y = backend.empty([x.rows, weights.reduce(0) { $0 + $1.rows }], x.dtype)
  precondition(
    biases.isEmpty || biases.reduce(0) { $0 + $1.count } == y.columns, "\(biases.map(\.shape)) for \(y.shape)")
  precondition(residual.map { $0.shape == y.shape } ?? true, "\(y.shape) onto \(residual?.shape ?? [])")
  backend.project(x, weights, biases: biases, onto: residual, into: y)
  // A frozen matrix is all that the gradient of x needs, and x that of a matrix.
  let trains = weights.contains { $0.slot != nil }
  return backend.record(
    y, from: [x] + weights + biases + (residual.map { [$0] } ?? []),
    saving: (x: x.saved(if: trains), weights: x.slot == nil ? [] : weights.map(\.detached))
  ) { [rows = weights.map(\.rows), elements = biases.map(\.count), addsResidual = residual != nil] node in
    let (backend, saved) = (node.backend, node.saved)
    if addsResidual { node[1 + rows.count + elements.count].add(node.dy) }
    node[0].accumulate { dx, adds in backend.projectBackward(node.dy, saved.weights, into: dx, adds: adds) }
    for (index, range) in ranges(of: rows).enumerated() where node[1 + index].isAsked {
      let (dy, x) = (copiedColumns(node.dy, range), saved.x!.value)
      node[1 + index].accumulate { dw, adds in
        backend.multiply(dy, transposed: true, x, transposed: false, into: dw, alpha: 1, adds: adds)
      }
    }
    for (index, range) in ranges(of: elements).enumerated() where node[1 + rows.count + index].isAsked {
      let dy = copiedColumns(node.dy, range)
      node[1 + rows.count + index].accumulate { db, adds in backend.sumRows(dy, into: db, adds: adds) }
    }
  }
}

/// Ranges of these lengths, one behind the other.
private func ranges(of lengths: [Int]) -> [Range<Int>] {
  lengths.reduce(into: []) { ranges, length in
    let first = ranges.last?.upperBound ?? 0
    ranges.append(first..<first + length)
  }
}

/// Columns `range` of x, as a tensor of their own where they are not all.
private func copiedColumns(_ x: Tensor, _ range: Range<Int>) -> Tensor {
  if range.count == x.columns { return x }
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
  let ranges = ranges(of: widths)
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
  tape.append { [rows = x.rows, dtype = x.dtype] in
    let gradients = slots.map { $0.take() }
    guard gradients.contains(where: { $0 != nil }) else { return }
    for (range, gradient) in zip(ranges, gradients) {
      if takesViews {
        if gradient == nil { backend.fill(whole.gradient.columns(range), with: 0) }
      } else {
        backend.addColumns(
          gradient ?? backend.zeros([rows, range.count], dtype), into: whole.gradient, range,
          adds: range.lowerBound > 0)
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
    make = { [shape = x.shape, dtype = x.dtype, backend = x.backend] in backend.empty(shape, dtype) }
  }
}

extension Tensor {
  /// The same values one behind the other, for ops whose kernels want them so: a view of columns is copied.
  var dense: Tensor {
    if isDense { return self }
    let source = self
    let y = backend.empty(like: self)
    backend.copy(source, into: y)
    return backend.record(y, from: [source], saving: source.saved) { saved in
      let source = saved.value
      let y = source.backend.empty(like: source)
      source.backend.copy(source, into: y)
      return y
    } backward: { node in
      node[0].add(node.dy)
    }
  }
}

/// Rows of `table` `[V, D]` at the token `ids` `[N]`: `[N, D]`.
package func embedding(_ table: Tensor, _ ids: Tensor) -> Tensor {
  let backend = table.backend
  let out = backend.empty([ids.count, table.columns], backend.activationType)
  backend.gather(table, ids, into: out)
  return backend.record(out, from: [table], saving: ids) { node in
    node[0].accumulate { dTable, adds in
      if !adds { node.backend.fill(dTable, with: 0) }
      node.backend.scatterAdd(node.dy, node.saved, into: dTable)
    }
  }
}

/// x + y, of one shape: the residual connection.
package func add(_ x: Tensor, _ y: Tensor) -> Tensor {
  let (x, y) = (x.dense, y.dense)
  let backend = x.backend
  let out = backend.empty(like: x)
  backend.sum(x, y, into: out)
  return backend.record(out, from: [x, y], saving: ()) { node in
    node[0].add(node.dy)
    node[1].add(node.dy)
  }
}
