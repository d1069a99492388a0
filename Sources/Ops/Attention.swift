import Tensors

/// Rotary position embedding by halves (Su et al., 2021; Hugging Face's `rotate_half`).
///
/// - Parameters:
///   - x: `[N, H, D]`
///   - layout: says the position of every token
package func rotaryEmbedding(_ x: Tensor, layout: Layout, angles: RotaryAngles) -> Tensor {
  let backend = x.backend
  let y = backend.empty(like: x)
  backend.rotate(x, layout: layout, angles: angles, direction: 1, into: y)
  return backend.record(y, from: [x], saving: (x: x.saved, layout: layout)) { saved in
    let x = saved.x.value
    let y = x.backend.empty(like: x)
    x.backend.rotate(x, layout: saved.layout, angles: angles, direction: 1, into: y)
    return y
  } backward: { node in
    let dx = node[0].room(on: node.backend)
    node.backend.rotate(node.dy, layout: node.saved.layout, angles: angles, direction: -1, into: dx)
    node[0].add(dx)
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
  return backend.record(
    o, from: [q, k, v],
    saving: (q: q.saved, k: k.saved, v: v.saved, o: o, logSums: logSums, spans: spans)
  ) { node in
    let (backend, saved) = (node.backend, node.saved)
    let rooms = (0..<3).map { node[$0].room(on: backend) }
    backend.attendBackward(
      node.dy, saved.q.value, saved.k.value, saved.v.value, saved.o, logSums: saved.logSums, spans: saved.spans,
      dQ: rooms[0], dK: rooms[1], dV: rooms[2])
    for (index, room) in rooms.enumerated() { node[index].add(room) }
  }
}
