import Tensors

/// y = x Wᵀ + b.
///
/// - Parameters:
///   - x: `[N, in]`
///   - weight: `[out, in]`
///   - bias: `[out]`
/// - Returns: `[N, out]`, of x's type
package func linear(_ x: Tensor, _ weight: Tensor, bias: Tensor? = nil) -> Tensor {
  let backend = x.backend
  let y = backend.empty([x.rows, weight.rows], x.dtype)
  backend.multiply(x, transposed: false, weight, transposed: true, into: y, alpha: 1, adds: false)
  if let bias { backend.addBias(bias, to: y) }
  return backend.record([x, weight, bias], y) { dy in
    x.slot?.accumulate { dx, adds in
      backend.multiply(dy, transposed: false, weight, transposed: false, into: dx, alpha: 1, adds: adds)
    }
    weight.slot?.accumulate { dw, adds in
      backend.multiply(dy, transposed: true, x, transposed: false, into: dw, alpha: 1, adds: adds)
    }
    bias?.slot?.accumulate { db, adds in backend.sumRows(dy, into: db, adds: adds) }
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
  let backend = x.backend
  let out = backend.empty(like: x)
  backend.sum(x, y, into: out)
  return backend.record([x, y], out) { dy in
    x.slot?.accumulate(dy)
    y.slot?.accumulate(dy)
  }
}
