import Tensors

/// f(x), element by element.
package func apply(_ function: ElementFunction, _ x: Tensor) -> Tensor {
  let backend = x.backend
  let y = applied(function, x)
  // Of x and y the node keeps the one that is read; if y is made again, it is made of x.
  let keepsOutput = function.slopeReadsOutput && backend.tape?.recomputation != .cheap
  return backend.record(
    y, from: [x], saving: (x: x.saved(if: !keepsOutput), y: keepsOutput ? y : nil as Tensor?)
  ) { saved in
    applied(function, saved.x!.value)
  } backward: { node in
    let (backend, saved) = (node.backend, node.saved)
    let dx = node[0].room(on: backend)
    let x = saved.x?.value
    let y = saved.y ?? (function.slopeReadsOutput ? applied(function, x!) : x!)
    backend.applyBackward(function, node.dy, x: x ?? y, y: y, into: dx)
    node[0].add(dx)
  }
}

private func applied(_ function: ElementFunction, _ x: Tensor) -> Tensor {
  let y = x.backend.empty(like: x)
  x.backend.apply(function, x, into: y)
  return y
}

/// x · y, of one shape, element by element.
package func multiplyElements(_ x: Tensor, _ y: Tensor) -> Tensor {
  let (x, y) = (x.dense, y.dense)
  let backend = x.backend
  let out = backend.empty(like: x)
  backend.product(x, y, into: out, adds: false)
  return backend.record(
    out, from: [x, y], saving: (x: x.saved(if: y.slot != nil), y: y.saved(if: x.slot != nil))
  ) { node in
    let (backend, saved) = (node.backend, node.saved)
    node[0].accumulate { dx, adds in backend.product(node.dy, saved.y!.value, into: dx, adds: adds) }
    node[1].accumulate { dy, adds in backend.product(node.dy, saved.x!.value, into: dy, adds: adds) }
  }
}

/// Every row of x times its own scale.
///
/// - Parameters:
///   - x: `[…, D]`
///   - scales: one for each row of D
package func scaleRows(_ x: Tensor, by scales: Tensor) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.scaleRows(x, by: scales, into: y, adds: false)
  return backend.record(
    y, from: [x, scales], saving: (x: x.saved(if: scales.slot != nil), scales: scales.saved)
  ) { node in
    let (backend, saved) = (node.backend, node.saved)
    node[0].accumulate { dx, adds in backend.scaleRows(node.dy, by: saved.scales.value, into: dx, adds: adds) }
    guard let x = saved.x?.value else { return }
    let dScales = node[1].room(on: backend)
    backend.rowProducts(node.dy, x, into: dScales)
    node[1].add(dScales)
  }
}

/// The inner products of the rows of x and y, `[…, D]` each: `[…]`.
package func rowProducts(_ x: Tensor, _ y: Tensor) -> Tensor {
  let (x, y) = (x.dense, y.dense)
  let backend = x.backend
  let out = backend.empty(Array(x.shape.dropLast()), x.dtype)
  backend.rowProducts(x, y, into: out)
  return backend.record(
    out, from: [x, y], saving: (x: x.saved(if: y.slot != nil), y: y.saved(if: x.slot != nil))
  ) { node in
    let (backend, saved) = (node.backend, node.saved)
    node[0].accumulate { dx, adds in backend.scaleRows(saved.y!.value, by: node.dy, into: dx, adds: adds) }
    node[1].accumulate { dy, adds in backend.scaleRows(saved.x!.value, by: node.dy, into: dy, adds: adds) }
  }
}

/// The columns of x times scales, of which each serves as many columns in a row as there are more.
///
/// - Parameters:
///   - x: `[N, C]`
///   - scales: `[S]`, S dividing C
package func scaleColumns(_ x: Tensor, by scales: Tensor) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.scaleColumns(x, by: scales, into: y, adds: false)
  return backend.record(
    y, from: [x, scales], saving: (x: x.saved(if: scales.slot != nil), scales: scales.saved)
  ) { node in
    let (backend, saved) = (node.backend, node.saved)
    node[0].accumulate { dx, adds in backend.scaleColumns(node.dy, by: saved.scales.value, into: dx, adds: adds) }
    node[1].accumulate { dScales, adds in
      backend.columnProducts(node.dy, saved.x!.value, into: dScales, adds: adds)
    }
  }
}

/// x + bias, for every row.
///
/// - Parameters:
///   - x: `[N, C]`
///   - bias: `[C]`
package func addBias(_ x: Tensor, _ bias: Tensor) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.copy(x, into: y)
  backend.addBias(bias, to: y)
  return backend.record(y, from: [x, bias], saving: ()) { node in
    node[0].add(node.dy)
    node[1].accumulate { dBias, adds in node.backend.sumRows(node.dy, into: dBias, adds: adds) }
  }
}

/// Each head of x as often as it takes to make `heads` of them.
///
/// - Parameter x: `[N, G, K]`, G dividing `heads`
/// - Returns: `[N, heads, K]`, head h reading head h · G / heads
package func repeatHeads(_ x: Tensor, _ heads: Int) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty([x.shape[0], heads, x.shape[2]], x.dtype)
  backend.repeatHeads(x, into: y)
  return backend.record(y, from: [x], saving: ()) { node in
    let dx = node[0].room(on: node.backend)
    node.backend.repeatHeadsBackward(node.dy, into: dx)
    node[0].add(dx)
  }
}

/// Columns `range` of x `[N, C]`: `[N, range.count]`.
package func columns(_ x: Tensor, _ range: Range<Int>) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty([x.rows, range.count], x.dtype)
  backend.copyColumns(x, range, into: y)
  return backend.record(y, from: [x], saving: ()) { node in
    node[0].accumulate { dx, adds in node.backend.addColumns(node.dy, into: dx, range, adds: adds) }
  }
}
