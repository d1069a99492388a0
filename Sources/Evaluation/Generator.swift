import Models
import Tensors

/// Sequences that a model goes on with side by side, token by token, with the caches of all its layers.
package final class Generator {
  let model: HybridLM
  private let backend: any Backend
  private let caches: [any MixerCache]
  /// Tokens that every sequence has so far.
  package private(set) var lengths: [Int]

  /// Sequences without tokens yet.
  ///
  /// - Parameter capacity: tokens that each will have, where that is known; caches grow past it
  package init(_ model: HybridLM, sequences: Int = 1, capacity: Int = 0, backend: any Backend) {
    self.model = model
    self.backend = backend
    caches = model.makeCaches(backend, sequences: sequences, capacity: capacity)
    lengths = [Int](repeating: 0, count: sequences)
  }

  /// Bytes that the caches hold.
  package var cacheBytes: Int { caches.reduce(0) { $0 + $1.byteCount } }

  /// Drops the sequences that are not in `kept`.
  package func select(_ kept: [Int]) {
    for cache in caches { cache.select(kept) }
    lengths = kept.map { lengths[$0] }
  }

  /// Pretends that every sequence had `length` tokens, of undefined values: for measuring speed.
  package func assume(_ length: Int) {
    for cache in caches { cache.assume(length) }
    lengths = lengths.map { _ in length }
  }

  /// Reads more tokens of every sequence and returns the logits after the last of each, `[sequences, V]`.
  ///
  /// - Parameters:
  ///   - tokens: at least one for each sequence
  ///   - chunk: most tokens of a sequence in one pass; a long prompt in pieces needs little memory
  package func read(_ tokens: [[UInt32]], chunk: Int = 512) -> Tensor {
    precondition(tokens.count == lengths.count, "\(tokens.count) inputs for \(lengths.count) sequences")
    precondition(tokens.allSatisfy { !$0.isEmpty }, "nothing to read")
    let hiddenSize = model.configuration.hiddenSize
    return backend.withoutRecording {
      let last = backend.empty([tokens.count, hiddenSize])
      let longest = tokens.map(\.count).max() ?? 0
      for first in stride(from: 0, to: longest, by: chunk) {
        let parts = tokens.map { Array($0[min(first, $0.count)..<min(first + chunk, $0.count)]) }
        var ranges: [Range<Int>] = []
        for part in parts {
          let start = ranges.last?.upperBound ?? 0
          ranges.append(start..<start + part.count)
        }
        let batch = Batch(
          tokens: backend.tensor(parts.joined().map { Int32(bitPattern: $0) }), segments: Segments(ranges),
          starts: lengths)
        let hidden = model(batch, caches: caches)
        for (sequence, part) in parts.enumerated() where !part.isEmpty {
          lengths[sequence] += part.count
          let end = ranges[sequence].upperBound
          if first + part.count == tokens[sequence].count {
            backend.copy(hidden.rows(end - 1..<end), into: last.rows(sequence..<sequence + 1))
          }
        }
      }
      return model.logits(last)
    }
  }
}
