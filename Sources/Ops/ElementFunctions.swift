import Tensors

/// f(x), element by element.
package func apply(_ function: ElementFunction, _ x: Tensor) -> Tensor {
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.apply(function, x, into: y)
  let value = y
  return backend.record([x], y) { dy in
    let dx = x.gradientRoom()
    backend.applyBackward(function, dy, x: x, y: value, into: dx)
    x.slot?.accumulate(dx)
  }
}

/// x · y, of one shape, element by element.
package func multiplyElements(_ x: Tensor, _ y: Tensor) -> Tensor {
  let (x, y) = (x.dense, y.dense)
  let backend = x.backend
  let out = backend.empty(like: x)
  backend.product(x, y, into: out, adds: false)
  return backend.record([x, y], out) { dOut in
    x.slot?.accumulate { dx, adds in backend.product(dOut, y, into: dx, adds: adds) }
    y.slot?.accumulate { dy, adds in backend.product(dOut, x, into: dy, adds: adds) }
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
  return backend.record([x, scales], y) { dy in
    x.slot?.accumulate { dx, adds in backend.scaleRows(dy, by: scales, into: dx, adds: adds) }
    if let slot = scales.slot {
      let dScales = backend.empty(like: scales)
      backend.rowProducts(dy, x, into: dScales)
      slot.accumulate(dScales)
    }
  }
}

/// The inner products of the rows of x and y, `[…, D]` each: `[…]`.
package func rowProducts(_ x: Tensor, _ y: Tensor) -> Tensor {
  let (x, y) = (x.dense, y.dense)
  let backend = x.backend
  let out = backend.empty(Array(x.shape.dropLast()), x.dtype)
  backend.rowProducts(x, y, into: out)
  return backend.record([x, y], out) { dOut in
    x.slot?.accumulate { dx, adds in backend.scaleRows(y, by: dOut, into: dx, adds: adds) }
    y.slot?.accumulate { dy, adds in backend.scaleRows(x, by: dOut, into: dy, adds: adds) }
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
  return backend.record([x, scales], y) { dy in
    x.slot?.accumulate { dx, adds in backend.scaleColumns(dy, by: scales, into: dx, adds: adds) }
    scales.slot?.accumulate { dScales, adds in backend.columnProducts(dy, x, into: dScales, adds: adds) }
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
  return backend.record([x, bias], y) { dy in
    x.slot?.accumulate(dy)
    bias.slot?.accumulate { dBias, adds in backend.sumRows(dy, into: dBias, adds: adds) }
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
  return backend.record([x], y) { dy in
    let dx = backend.empty(like: x)
    backend.repeatHeadsBackward(dy, into: dx)
    x.slot?.accumulate(dx)
  }
}

/// Columns `range` of x `[N, C]`: `[N, range.count]`.
package func columns(_ x: Tensor, _ range: Range<Int>) -> Tensor {
  let x = x.dense
  let backend = x.backend
  let y = backend.empty([x.rows, range.count], x.dtype)
  backend.copyColumns(x, range, into: y)
  return backend.record([x], y) { dy in
    x.slot?.accumulate { dx, adds in backend.addColumns(dy, into: dx, range, adds: adds) }
  }
}
