import Tensors

/// Rotary position embedding by halves (Su et al., 2021; Hugging Face's `rotate_half`).
///
/// - Parameters:
///   - x: `[N, H, D]`
///   - layout: says the position of every token
package func rotaryEmbedding(_ x: Tensor, layout: Layout, theta: Float) -> Tensor {
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.rotate(x, layout: layout, theta: theta, direction: 1, into: y)
  return backend.record([x], y) { dy in
    let dx = x.gradientRoom()
    backend.rotate(dy, layout: layout, theta: theta, direction: -1, into: dx)
    x.slot?.accumulate(dx)
  }
}

/// Causal softmax attention with grouped keys, scaled by D^−½.
///
/// - Parameters:
///   - q: `[N, H, D]`
///   - k: `[M, G, D]`, G dividing H; query head h reads key head h · G / H
///   - v: `[M, G, D]`
///   - spans: which keys each run of queries sees
/// - Returns: `[N, H, D]`
package func attention(_ q: Tensor, _ k: Tensor, _ v: Tensor, spans: AttentionSpans) -> Tensor {
  let (q, k) = (q.dense, k.dense)
  let backend = q.backend
  let o = backend.empty(like: q)
  let logSums = backend.empty([q.shape[0], q.shape[1]])
  backend.attend(q, k, v, spans: spans, into: o, logSums: logSums)
  return backend.record([q, k, v], o) { dO in
    let (dQ, dK, dV) = (q.gradientRoom(), k.gradientRoom(), v.gradientRoom())
    backend.attendBackward(
      dO, q, k, v, o, logSums: logSums, spans: spans, dQ: dQ, dK: dK, dV: dV)
    q.slot?.accumulate(dQ)
    k.slot?.accumulate(dK)
    v.slot?.accumulate(dV)
  }
}
