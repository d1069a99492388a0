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
  private let checkpointing: Bool
  private let backend: any Backend

  /// - Parameters:
  ///   - teacher: needed where a weight of a distillation loss is above zero
  ///   - checkpointing: keep only the input of each layer for backward
  package init(
    student: HybridLM, teacher: HybridLM?, weights: LossWeights, checkpointing: Bool, backend: any Backend
  ) {
    self.student = student
    self.teacher = teacher
    self.weights = weights
    self.checkpointing = checkpointing
    self.backend = backend
  }

  /// Whether gradients go through all layers, so that the last layer has its own first; else the first layer has.
  package var crossesLayers: Bool { weights.hidden + weights.logits + weights.crossEntropy > 0 }

  /// The sums of the losses of `data`. With `counts`, the gradients of the means over the global batch are added
  /// up in the slots of the student's parameters.
  ///
  /// - Parameters:
  ///   - willUse: is told of every part of the student before its parameters are read
  ///   - hasGradients: is told of every part once nothing more will be added to its gradients
  package func callAsFunction(
    _ data: SequenceBatch, gradientsOver counts: TokenCounts?, willUse: @escaping (ModelPart) -> Void = { _ in },
    hasGradients: @escaping (ModelPart) -> Void = { _ in }
  ) -> LossSums {
    let batch = Batch(tokens: backend.tensor(data.tokens), segments: Segments(data.segments))
    var sums = LossSums()
    if weights.mixerOutput > 0 {
      sums.mixerOutput = alignMixers(batch, counts, willUse) { if !crossesLayers { hasGradients($0) } }
    }
    if crossesLayers {
      runEndToEnd(batch, labels: backend.tensor(data.labels), counts, &sums) { part in
        willUse(part)
        // Recorded before the part runs forward, it is reached when the part has run backward.
        backend.tape?.append { hasGradients(part) }
      }
    }
    return sums
  }

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
    _ batch: Batch, _ counts: TokenCounts?, _ willUse: (ModelPart) -> Void, _ hasGradients: (ModelPart) -> Void
  ) -> Double {
    guard let teacher else { preconditionFailure("mixer_output needs a teacher") }
    let replaced = replacedLayers(teacher)
    guard !replaced.isEmpty else { return 0 }
    let share = 1 / Double(replaced.count)
    var sum = 0.0
    var x = backend.withoutRecording { teacher.embed(batch) }
    for (index, layer) in teacher.layers.enumerated() {
      let (input, target) = backend.withoutRecording { () -> (Tensor, Tensor) in
        let input = layer.mixerInput(x)
        return (input, layer.mixer(input, batch, cache: nil))
      }
      if replaced.contains(index) {
        willUse(.layer(index))
        let mixer = student.activeMixer(index)
        if counts != nil {
          let (losses, tape) = backend.recording {
            squaredError(
              mixer(input, batch, cache: nil), target: target,
              seed: seed(weights.mixerOutput * share, counts?.tokens))
          }
          tape.backward()
          hasGradients(.layer(index))
          sum += losses.hostSum() * share
        } else {
          let output = backend.withoutRecording { mixer(input, batch, cache: nil) }
          sum += squaredError(output, target: target, seed: 0).hostSum() * share
        }
        if index == replaced.last { break }
      }
      x = backend.withoutRecording { layer.complete(x, mixed: target) }
    }
    return sum
  }

  private func runEndToEnd(
    _ batch: Batch, labels: Tensor, _ counts: TokenCounts?, _ sums: inout LossSums, willRun: (ModelPart) -> Void
  ) {
    // What the teacher makes of it; nothing of it is recorded.
    var targets: [Tensor] = []
    var teacherHead: TeacherHead?
    if let teacher, weights.hidden + weights.logits > 0 {
      backend.withoutRecording {
        let hidden = teacher(batch) { _, x in
          if weights.hidden > 0 { targets.append(x) }
        }
        if weights.logits > 0 { teacherHead = TeacherHead(hidden: hidden, weight: teacher.head) }
      }
    }
    let share = 1 / Double(student.layers.count)
    var hiddenLosses: [Tensor] = []
    func forward() -> VocabularyLosses? {
      // A student that only imitates hidden states needs no head.
      let hidden = student(batch, checkpointing: checkpointing, willRun: willRun) { index, x in
        if weights.hidden > 0 {
          hiddenLosses.append(
            squaredError(x, target: targets[index], seed: seed(weights.hidden * share, counts?.tokens)))
        }
      }
      guard weights.logits + weights.crossEntropy > 0 || counts == nil else { return nil }
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
    sums.crossEntropy = losses?.crossEntropy.hostSum() ?? 0
    sums.logits = losses?.kl.hostSum() ?? 0
    sums.hidden = hiddenLosses.reduce(0) { $0 + $1.hostSum() } * share
  }
}
