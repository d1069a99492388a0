import Models

/// A teacher's norms of queries and keys, as far as the projections of a mixer that has no such norms can take them over.
///
/// Such a teacher's query is diag(w) W x over the root mean square of W x. diag(w) W keeps its direction for every input. The
/// division depends on the input; what it does on average stays: the projection is divided by what that root mean square
/// would be for inputs whose channels are independent. (The delta-rule mixers bring queries and keys to one length
/// themselves; there the scale only decides where their SiLU bends.)
struct QueryKeyNorms {
  private let teacher: HybridLM
  private let root: String

  init(of teacher: HybridLM, layer: Int) {
    self.teacher = teacher
    root = "model.layers.\(layer)."
  }

  /// - Parameters:
  ///   - rows: a projection `[heads · size, hidden]` of the teacher
  ///   - name: its norm
  /// - Returns: the projection with the norm in it; as it was where the teacher has none
  func folded(_ rows: [Float], _ name: String) -> [Float] {
    let (hidden, size) = (teacher.configuration.hiddenSize, teacher.configuration.headSize)
    guard let norm = weights("self_attn." + name), let input = weights("input_layernorm") else { return rows }
    var out = rows
    for first in stride(from: 0, to: rows.count, by: size * hidden) {
      var squares = 0.0
      for i in 0..<size * hidden {
        let term = Double(rows[first + i] * input[i % hidden])
        squares += term * term
      }
      let scale = squares > 0 ? Float((Double(size) / squares).squareRoot()) : 1
      for i in 0..<size * hidden { out[first + i] = rows[first + i] * norm[i / hidden] * scale }
    }
    return out
  }

  /// What a norm multiplies by, which some families keep less 1; nil where the layer has no such norm.
  private func weights(_ name: String) -> [Float]? {
    teacher.store[root + name + ".weight"]?.value.toArray().map { teacher.configuration.normsAddOne ? $0 + 1 : $0 }
  }
}
