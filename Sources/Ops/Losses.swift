import Tensors

/// Losses are the roots of the tape: they seed the gradient of their input as they are computed, so that
/// `[tokens, vocabulary]` never exists whole and no scalar tensor is needed.

/// Per-token losses over the vocabulary, `[N]` each, zero where the label is negative.
package struct VocabularyLosses {
  package let crossEntropy: Tensor
  package let kl: Tensor
}

/// What the student imitates: the teacher's last hidden states `[N, D']` and its head `[V, D']`.
package struct TeacherHead {
  package let hidden: Tensor
  package let weight: Tensor

  package init(hidden: Tensor, weight: Tensor) {
    self.hidden = hidden
    self.weight = weight
  }
}

/// Cross-entropy against `labels` and forward KL(teacher ‖ student), with the head's product fused in.
///
/// - Parameters:
///   - hidden: `[N, D]`, after the final norm
///   - weight: `[V, D]`, the head
///   - teacher: needed for `klSeed` ≠ 0
///   - labels: `[N]` int32, negative for tokens that do not count
///   - crossEntropySeed: gradient of the loss with respect to each token's cross-entropy
///   - klSeed: the same for its KL
package func vocabularyLoss(
  hidden: Tensor, weight: Tensor, teacher: TeacherHead? = nil, labels: Tensor, crossEntropySeed: Float = 0,
  klSeed: Float = 0
) -> VocabularyLosses {
  let backend = hidden.backend
  let (tokens, vocabulary) = (hidden.rows, weight.rows)
  let losses = VocabularyLosses(crossEntropy: backend.empty([tokens]), kl: backend.empty([tokens]))
  let chunk = min(tokens, backend.vocabularyRows(vocabulary))
  let asksGradient = backend.tape != nil
  let dHidden = asksGradient && hidden.slot != nil ? backend.empty(like: hidden) : nil
  for first in stride(from: 0, to: tokens, by: chunk) {
    let rows = first..<min(tokens, first + chunk)
    let x = hidden.rows(rows)
    let logits = backend.empty([rows.count, vocabulary], hidden.dtype)
    backend.multiply(x, transposed: false, weight, transposed: true, into: logits, alpha: 1, adds: false)
    let teacherLogits = teacher.map { teacher in
      let logits = backend.empty([rows.count, vocabulary], hidden.dtype)
      backend.multiply(
        teacher.hidden.rows(rows), transposed: false, teacher.weight, transposed: true, into: logits,
        alpha: 1, adds: false)
      return logits
    }
    backend.vocabularyLoss(
      logits: logits, teacherLogits: teacherLogits, labels: labels.rows(rows),
      crossEntropyScale: crossEntropySeed, klScale: klSeed, crossEntropy: losses.crossEntropy.rows(rows),
      kl: losses.kl.rows(rows))
    guard asksGradient else { continue }
    if let dHidden {
      backend.multiply(
        logits, transposed: false, weight, transposed: false, into: dHidden.rows(rows), alpha: 1,
        adds: false)
    }
    weight.slot?.accumulate { dWeight, adds in
      backend.multiply(logits, transposed: true, x, transposed: false, into: dWeight, alpha: 1, adds: adds)
    }
  }
  if let dHidden { hidden.slot?.accumulate(dHidden) }
  return losses
}

/// Squared error to `target`, averaged over channels: `[N]`. Seeds x with `seed` times its gradient.
///
/// - Parameters:
///   - x: `[N, D]`
///   - target: `[N, D]`
package func squaredError(_ x: Tensor, target: Tensor, seed: Float) -> Tensor {
  let backend = x.backend
  let losses = backend.empty([x.rows])
  if backend.tape != nil, let slot = x.slot {
    slot.accumulate { dx, adds in
      backend.squaredError(x, target: target, seed: seed, losses: losses, into: dx, adds: adds)
    }
  } else {
    backend.squaredError(x, target: target, seed: seed, losses: losses, into: nil, adds: false)
  }
  return losses
}
