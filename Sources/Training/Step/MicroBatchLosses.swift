import Models
import NN
import Ops
import Tensors
import TokenStreams

/// Sums of per-token losses, by kind; divided by a token count they are the means that metrics show.
package struct LossSums: Sendable, Equatable {
  package var crossEntropy = 0.0
  package var logits = 0.0
  package var hidden = 0.0
  package var mixerOutput = 0.0

  package static let names = ["cross_entropy", "logits", "hidden", "mixer_output"]

  package init() {}

  /// In the order of ``names``.
  package init(values: some Collection<Double>) {
    let values = Array(values)
    (crossEntropy, logits, hidden, mixerOutput) = (values[0], values[1], values[2], values[3])
  }

  package var values: [Double] { [crossEntropy, logits, hidden, mixerOutput] }

  /// Sums over the global batch as means per token. Vocabulary losses count labels, the others all tokens.
  package func means(_ counts: TokenCounts) -> LossSums {
    let (labels, tokens) = (Double(max(1, counts.labels)), Double(max(1, counts.tokens)))
    return LossSums(values: [
      crossEntropy / labels, logits / labels, hidden / tokens, mixerOutput / tokens,
    ])
  }

  /// Those that these weights ask for, by name.
  func named(_ weights: LossWeights) -> [String: Double] {
    let used = [
      weights.crossEntropy > 0 || weights.logits > 0, weights.logits > 0, weights.hidden > 0,
      weights.mixerOutput > 0,
    ]
    var named: [String: Double] = [:]
    for (index, name) in Self.names.enumerated() where used[index] { named[name] = values[index] }
    return named
  }

  /// The sum that is minimised.
  package func weighted(_ weights: LossWeights) -> Double {
    var total = 0.0
    for (weight, value) in [
      (weights.crossEntropy, crossEntropy), (weights.logits, logits), (weights.hidden, hidden),
      (weights.mixerOutput, mixerOutput),
    ] where weight > 0 { total += weight * value }
    return total
  }
}

/// What the losses of a step are divided by: labels that count, and tokens, of the global batch.
package struct TokenCounts: Sendable {
  package var labels: Int
  package var tokens: Int

  package init(labels: Int, tokens: Int) {
    self.labels = labels
    self.tokens = tokens
  }
}

/// The forward and, where a gradient is asked, backward pass of one micro-batch under a phase's losses.
package struct MicroBatchLosses {
  private let student: HybridLM
  private let teacher: HybridLM?
  private let weights: LossWeights
  private let recompute: LayerRecomputation
  private let backend: any Backend

  /// - Parameters:
  ///   - teacher: needed where a weight of a distillation loss is above zero
  ///   - recompute: what of the student the backward pass computes again
  package init(
    student: HybridLM, teacher: HybridLM?, weights: LossWeights, recompute: LayerRecomputation = .none,
    backend: any Backend
  ) {
    self.student = student
    self.teacher = teacher
    self.weights = weights
    self.recompute = recompute
    self.backend = backend
  }

  /// Whether gradients go through all layers, so that the last layer has its own first; else the first layer has.
  package var crossesLayers: Bool { weights.hidden + weights.logits + weights.crossEntropy > 0 }

  /// Writes the sums of the losses of `data`, which stay on the device. With `counts`, the gradients of the means over
  /// the global batch are added up in the slots of the student's parameters.
  ///
  /// - Parameters:
  ///   - sums: float64, in the order of ``LossSums/names``
  ///   - willUse: is told of every part of the student before its parameters are read
  ///   - hasGradients: is told of every part once nothing more will be added to its gradients
  package func callAsFunction(
    _ data: SequenceBatch, gradientsOver counts: TokenCounts?, into sums: Tensor,
    willUse: @escaping (ModelPart) -> Void = { _ in }, hasGradients: @escaping (ModelPart) -> Void = { _ in }
  ) {
    let batch = Batch(tokens: backend.tensor(data.tokens), segments: Segments(data.segments))
    let sums = SumsByKind(sums)
    if weights.mixerOutput > 0 {
      alignMixers(batch, counts, into: sums.mixerOutput, willUse) { if !crossesLayers { hasGradients($0) } }
    } else {
      clear(sums.mixerOutput)
    }
    guard crossesLayers else { return [sums.crossEntropy, sums.logits, sums.hidden].forEach(clear) }
    runEndToEnd(batch, labels: backend.tensor(data.labels), counts, into: sums) { part in
      willUse(part)
      // Recorded before the part runs forward, it is reached when the part has run backward.
      backend.tape?.append { hasGradients(part) }
    }
  }

  /// The sums of the losses of each of `batches`, without gradients, read back together.
  package func sums(of batches: [SequenceBatch]) -> [LossSums] {
    let sums = StepSums(microBatches: batches.count, on: backend)
    for (index, batch) in batches.enumerated() { self(batch, gradientsOver: nil, into: sums.losses(of: index)) }
    return sums.readBack().losses
  }

  /// Where the sums of one micro-batch go, one element each.
  private struct SumsByKind {
    let crossEntropy: Tensor
    let logits: Tensor
    let hidden: Tensor
    let mixerOutput: Tensor

    init(_ sums: Tensor) {
      let places = LossSums.names.indices.map { sums.rows($0..<$0 + 1) }
      (crossEntropy, logits, hidden, mixerOutput) = (places[0], places[1], places[2], places[3])
    }
  }

  /// A sum of nothing.
  private func clear(_ sum: Tensor) { backend.sumElements(sum.rows(0..<0), scale: 1, into: sum) }

  private func seed(_ weight: Double, _ count: Int?) -> Float {
    count.map { Float(weight / Double(max(1, $0))) } ?? 0
  }

  /// The layers whose mixers are compared with the teacher's: those of another kind; of a supernet, whose layers all hold
  /// the teacher's kind, those that the drawn path makes linear.
  private func replacedLayers(_ teacher: HybridLM) -> [Int] {
    student.layers.indices.filter { index in
      student.configuration.supernetMixer == nil
        ? student.layers[index].type != teacher.layers[index].type : student.path?.role(of: index) == .linear
    }
  }

  /// Every replaced mixer reads the teacher's normalised input of its layer and is compared with the teacher's
  /// mixer. No gradient crosses a layer, so each layer runs backward at once.
  private func alignMixers(
    _ batch: Batch, _ counts: TokenCounts?, into sum: Tensor, _ willUse: (ModelPart) -> Void,
    _ hasGradients: (ModelPart) -> Void
  ) {
    guard let teacher else { preconditionFailure("mixer_output needs a teacher") }
    let replaced = replacedLayers(teacher)
    guard !replaced.isEmpty else { return clear(sum) }
    let share = 1 / Double(replaced.count)
    let layerSums = backend.empty([replaced.count], .float64)
    var x = backend.withoutRecording { teacher.embed(batch) }
    for (index, layer) in teacher.layers.enumerated() {
      let (input, target) = backend.withoutRecording { () -> (Tensor, Tensor) in
        let input = layer.mixerInput(x)
        return (input, layer.mixer(input, batch, cache: nil))
      }
      if let place = replaced.firstIndex(of: index) {
        let losses: Tensor
        willUse(.layer(index))
        let mixer = student.activeMixer(index)
        if counts != nil {
          let (recorded, tape) = backend.recording {
            squaredError(
              mixer(input, batch, cache: nil), target: target,
              seed: seed(weights.mixerOutput * share, counts?.tokens))
          }
          tape.backward()
          hasGradients(.layer(index))
          losses = recorded
        } else {
          let output = backend.withoutRecording { mixer(input, batch, cache: nil) }
          losses = squaredError(output, target: target, seed: 0)
        }
        backend.sumElements(losses, scale: share, into: layerSums.rows(place..<place + 1))
        if index == replaced.last { break }
      }
      x = backend.withoutRecording { layer.complete(x, mixed: target) }
    }
    backend.sumElements(layerSums, scale: 1, into: sum)
  }

  private func runEndToEnd(
    _ batch: Batch, labels: Tensor, _ counts: TokenCounts?, into sums: SumsByKind, willRun: (ModelPart) -> Void
  ) {
    // Where hidden states are compared the teacher runs beside the student, so that one of them exists at a time, else
    // before it; nothing of it is recorded.
    let teacher = weights.hidden + weights.logits > 0 ? teacher : nil
    let runsBeside = weights.hidden > 0
    var taught = teacher.map { teacher in
      backend.withoutRecording { runsBeside ? teacher.embed(batch) : teacher(batch) }
    }
    let share = 1 / Double(student.layers.count)
    let layerSums = backend.empty([weights.hidden > 0 ? student.layers.count : 0], .float64)
    func forward() -> VocabularyLosses? {
      // A student that only imitates hidden states needs no head.
      let hidden = student(batch, recompute: recompute, willRun: willRun) { index, x in
        guard runsBeside, let teacher, let input = taught else { return }
        let target = backend.withoutRecording { teacher.run(layer: index, input, batch) }
        taught = target
        let losses = squaredError(x, target: target, seed: seed(weights.hidden * share, counts?.tokens))
        backend.sumElements(losses, scale: 1, into: layerSums.rows(index..<index + 1))
      }
      guard weights.logits + weights.crossEntropy > 0 || counts == nil else { return nil }
      var teacherHead: TeacherHead?
      if weights.logits > 0, let teacher, let taught {
        teacherHead = TeacherHead(
          hidden: runsBeside ? backend.withoutRecording { teacher.finish(taught) } : taught, weight: teacher.head)
      }
      return vocabularyLoss(
        hidden: hidden, weight: student.head, teacher: teacherHead, labels: labels,
        crossEntropySeed: seed(weights.crossEntropy, counts?.labels),
        klSeed: teacherHead == nil ? 0 : seed(weights.logits, counts?.labels))
    }
    let losses: VocabularyLosses?
    if counts != nil {
      let (recorded, tape) = backend.recording(forward)
      tape.backward()
      losses = recorded
    } else {
      losses = backend.withoutRecording(forward)
    }
    if let losses {
      backend.sumElements(losses.crossEntropy, scale: 1, into: sums.crossEntropy)
      backend.sumElements(losses.kl, scale: 1, into: sums.logits)
    } else {
      [sums.crossEntropy, sums.logits].forEach(clear)
    }
    backend.sumElements(layerSums, scale: share, into: sums.hidden)
  }
}
