import Models
import NN
import Tensors

/// How the projections of a student's linear layers begin.
package enum StudentInitialization: String, Sendable, CaseIterable {
  /// N(0, 0.02).
  case random
  /// From the teacher's attention, per head (RECIPE section 5).
  case transfer
}

/// What `transfer` could not bring over in one layer: the heads that found no place, and of those that did the relative
/// Frobenius norms, over all of them, of what is missing of the scores' form W_qᵀ W_k, and of the map from input to output
/// W_o W_v.
package struct TransferLoss: Sendable {
  package let layer: Int
  package let scores: Double
  package let values: Double
  /// The teacher's heads that no head of the student begins from, since it has fewer.
  package let droppedHeads: [Int]
  /// Heads that the teacher has.
  package let heads: Int
}

extension [TransferLoss] {
  /// One line about the heads that were dropped; nil where none was.
  package var droppedHeads: String? {
    let layers = filter { !$0.droppedHeads.isEmpty }
    guard let first = layers.first else { return nil }
    let kept = first.heads - first.droppedHeads.count
    return "transfer keeps \(kept) of the teacher's \(first.heads) heads in \(layers.count) of \(count) layers: "
      + "\(first.droppedHeads.map(String.init).joined(separator: ", ")) are dropped (num_heads is \(kept))"
  }
}

/// A student made from its teacher: what stays is shared with it, what is new begins as asked.
package struct Student {
  package let model: HybridLM
  private let teacher: HybridLM
  private let initialization: StudentInitialization
  private let seed: UInt64
  private let backend: any Backend

  /// Declares the student and lets it share the teacher's values; the new parameters have none until ``complete()``
  /// makes them.
  package init(
    _ configuration: ModelConfiguration, of teacher: HybridLM, initialization: StudentInitialization, seed: UInt64,
    backend: any Backend
  ) throws {
    model = HybridLM(configuration)
    self.teacher = teacher
    self.initialization = initialization
    self.seed = seed
    self.backend = backend
    for (name, s, t) in [
      ("vocab_size", configuration.vocabularySize, teacher.configuration.vocabularySize),
      ("hidden_size", configuration.hiddenSize, teacher.configuration.hiddenSize),
      ("intermediate_size", configuration.intermediateSize, teacher.configuration.intermediateSize),
      ("num_hidden_layers", configuration.layerCount, teacher.configuration.layerCount),
    ] where s != t {
      throw ModelError(
        path: "student", reason: "its \(name) is \(s), the teacher's \(t): they must be equal to inherit its MLPs")
    }
    try Self.checkArithmetic(configuration, of: teacher.configuration)
    try model.inherit(from: teacher)
    if initialization == .transfer { try checkTransfer() }
  }

  /// Refuses a student that would compute something else with what it inherits: parameters fit, and the model is ruined.
  private static func checkArithmetic(_ student: ModelConfiguration, of teacher: ModelConfiguration) throws {
    let kept = student.layerTypes.filter(\.isAttention)
    var pairs: [(name: String, student: String, teacher: String)] = [
      ("rms_norm_eps", "\(student.normEpsilon)", "\(teacher.normEpsilon)"),
      ("hidden_act", student.activation.rawValue, teacher.activation.rawValue),
      ("tie_word_embeddings", "\(student.tiesEmbeddings)", "\(teacher.tiesEmbeddings)"),
      ("scale of embeddings", "\(student.embeddingScale)", "\(teacher.embeddingScale)"),
      ("norms' added one", "\(student.normsAddOne)", "\(teacher.normsAddOne)"),
    ]
    if !kept.isEmpty { pairs.append(("scale of scores", "\(student.queryScale)", "\(teacher.queryScale)")) }
    for (type, other) in zip(student.layerTypes, teacher.layerTypes) where type.isAttention && other.isAttention {
      let (own, others) = (student.architecture.rope(of: type), teacher.architecture.rope(of: other))
      pairs.append(("rope_theta", "\(own.theta)", "\(others.theta)"))
      pairs.append(("rope_scaling", "\(own)", "\(others)"))
    }
    for (name, own, others) in pairs where own != others {
      throw ModelError(
        path: "student",
        reason: "its \(name) is \(own), the teacher's \(others): what it inherits would compute something else with it")
    }
  }

  /// Gives every new parameter its initial value.
  ///
  /// - Returns: what `transfer` lost, a layer each
  @discardableResult
  package func complete() -> [TransferLoss] {
    var losses: [TransferLoss] = []
    for layer in transferredLayers {
      let transferred = transfer(layer)
      for (name, values) in transferred.values {
        guard let parameter = model.store[name] else { continue }
        parameter.value = backend.tensor(values, parameter.shape)
      }
      losses.append(transferred.loss)
    }
    model.initialize(seed: seed, backend: backend)
    return losses
  }

  // MARK: - Transfer

  /// Layers whose attention becomes, or in a supernet gets beside it, a mixer with projections of the same kind.
  private var transferredLayers: [Int] {
    guard initialization == .transfer else { return [] }
    return model.layers.indices.filter { target($0).headShape != nil && teacher.layers[$0].type.isAttention }
  }

  /// The linear mixer of layer `index`; its attention, where it has none.
  private func target(_ index: Int) -> any TokenMixer {
    model.layers[index].alternatives?.linear ?? model.layers[index].mixer
  }

  private func checkTransfer() throws {
    let (source, hidden) = (teacher.configuration, teacher.configuration.hiddenSize)
    guard source.headSize <= hidden else {
      throw ModelError(
        path: "transfer",
        reason:
          "the teacher's heads of \(source.headSize) are wider than its hidden size \(hidden): begin at random (--init random, "
          + "or model.init: random)")
    }
  }

  private func transfer(_ layer: Int) -> (values: [String: [Float]], loss: TransferLoss) {
    let source = teacher.configuration
    guard let shape = target(layer).headShape else { preconditionFailure("layer \(layer) has no heads") }
    let (hidden, size) = (source.hiddenSize, source.headSize)
    let root = "model.layers.\(layer)."
    let path = root + (model.layers[layer].alternatives == nil ? "self_attn." : "linear_attn.")
    func teacherRows(_ name: String) -> [Float] { teacher.store[root + "self_attn." + name]!.value.toArray() }
    let normed = QueryKeyNorms(of: teacher, layer: layer)
    let wq = normed.folded(teacherRows("q_proj.weight"), "q_norm")
    let wk = normed.folded(teacherRows("k_proj.weight"), "k_norm")
    let (wv, wo) = (teacherRows("v_proj.weight"), teacherRows("o_proj.weight"))
    func head(_ rows: [Float], _ h: Int) -> [Float] { Array(rows[h * size * hidden..<(h + 1) * size * hidden]) }
    /// Columns of o_proj that read head h, as rows [size, hidden].
    func outputHead(_ h: Int) -> [Float] {
      let width = source.attentionHeads * size
      return (0..<size).flatMap { d in (0..<hidden).map { wo[$0 * width + h * size + d] } }
    }
    // What no teacher's head fills keeps the initial values of q and v; k and o are zero there, so that it adds nothing
    // yet and its gradient is alive.
    var q = model.store[path + "q_proj.weight"]!.initialValues(seed: seed)
    var v = model.store[path + "v_proj.weight"]!.initialValues(seed: seed)
    var k = [Float](repeating: 0, count: shape.heads * shape.keySize * hidden)
    let width = shape.heads * shape.valueSize
    var o = [Float](repeating: 0, count: hidden * width)
    var (scores, values) = (0.0, 0.0)
    var dropped = Set(0..<source.attentionHeads)
    for j in 0..<shape.heads {
      let h = j * source.attentionHeads / shape.heads
      dropped.remove(h)
      // Keys and values expand by head: the group that head h reads.
      let group = h * source.keyValueHeads / source.attentionHeads
      let forms = fitted(head(wq, h), head(wk, group), to: shape.keySize)
      let maps = fitted(outputHead(h), head(wv, group), to: shape.valueSize)
      let (keyRows, valueRows) = (min(shape.keySize, size), min(shape.valueSize, size))
      q.replaceSubrange(range(j * shape.keySize, keyRows, hidden), with: forms.left)
      k.replaceSubrange(range(j * shape.keySize, keyRows, hidden), with: forms.right)
      v.replaceSubrange(range(j * shape.valueSize, valueRows, hidden), with: maps.right)
      for d in 0..<valueRows {
        for row in 0..<hidden { o[row * width + j * shape.valueSize + d] = maps.left[d * hidden + row] }
      }
      scores += forms.loss * forms.loss / Double(shape.heads)
      values += maps.loss * maps.loss / Double(shape.heads)
    }
    return (
      [
        path + "q_proj.weight": q, path + "k_proj.weight": k, path + "v_proj.weight": v, path + "o_proj.weight": o,
      ],
      TransferLoss(
        layer: layer, scores: scores.squareRoot(), values: values.squareRoot(), droppedHeads: dropped.sorted(),
        heads: source.attentionHeads)
    )
  }

  private func range(_ row: Int, _ count: Int, _ columns: Int) -> Range<Int> { row * columns..<(row + count) * columns }

  /// The two factors as they are where they fit, else their best approximation of `size` rows.
  private func fitted(_ left: [Float], _ right: [Float], to size: Int) -> (left: [Float], right: [Float], loss: Double)
  {
    let rows = teacher.configuration.headSize
    guard size < rows else { return (left, right, 0) }
    let fit = LowRank(left: left, right: right, size: rows, columns: teacher.configuration.hiddenSize, rank: size)
    return (fit.left, fit.right, fit.loss)
  }
}
