import Foundation
import Models
import NN
import Tensors

/// How the next token is chosen.
package struct Sampling: Sendable {
  /// 0 takes the most likely token.
  package var temperature: Double
  /// Tokens that may be chosen at all; 0 for all.
  package var topK: Int
  /// Least probability mass from which is chosen; 1 for all.
  package var topP: Double

  package init(temperature: Double = 0, topK: Int = 0, topP: Double = 1) {
    self.temperature = temperature
    self.topK = topK
    self.topP = topP
  }

  /// The choice for these logits.
  package func choose(_ logits: [Float], random: inout RandomStream) -> Int {
    let best = logits.indices.max { logits[$0] < logits[$1] }!
    guard temperature > 0 else { return best }
    var candidates = logits.indices.map { (id: $0, weight: exp(Double(logits[$0] - logits[best]) / temperature)) }
    candidates.sort { ($0.weight, $1.id) > ($1.weight, $0.id) }
    if topK > 0 { candidates = Array(candidates.prefix(topK)) }
    let mass = candidates.reduce(0) { $0 + $1.weight }
    var kept = 0.0
    var count = 0
    while count < candidates.count, kept < topP * mass {
      kept += candidates[count].weight
      count += 1
    }
    var target = Double(random.uniform()) * kept
    for candidate in candidates.prefix(count) {
      target -= candidate.weight
      if target < 0 { return candidate.id }
    }
    return candidates[0].id
  }
}

/// One sequence that a model goes on with, token by token, with the caches of all its layers.
package final class Generator {
  private let model: HybridLM
  private let backend: any Backend
  private let caches: [any MixerCache]
  private var position = 0

  /// A sequence without tokens yet.
  package init(_ model: HybridLM, backend: any Backend) {
    self.model = model
    self.backend = backend
    caches = model.makeCaches(backend)
  }

  /// Bytes that the caches hold.
  package var cacheBytes: Int { caches.reduce(0) { $0 + $1.byteCount } }

  /// Reads `tokens` and returns the logits after the last of them, `[V]`.
  ///
  /// - Parameter chunk: Tokens of one pass; a long prompt in pieces needs little memory.
  package func read(_ tokens: [UInt32], chunk: Int = 1024) -> [Float] {
    precondition(!tokens.isEmpty, "nothing to read")
    return backend.withoutRecording {
      var last: Tensor?
      for first in stride(from: 0, to: tokens.count, by: chunk) {
        let part = tokens[first..<min(first + chunk, tokens.count)].map { Int32(bitPattern: $0) }
        let batch = Batch(
          tokens: backend.tensor(part), segments: Segments(count: 1, length: part.count), start: position)
        let hidden = model(batch, caches: caches)
        last = hidden.rows(part.count - 1..<part.count)
        position += part.count
      }
      return model.logits(last!).toArray()
    }
  }
}
