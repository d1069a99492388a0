import Models
import Tensors

/// Sequences that a model goes on with side by side, token by token, with the caches of all its layers.
package final class Generator {
  let model: HybridLM
  private let backend: any Backend
  private let caches: [any MixerCache]
  /// Of activations, and so of keys and values: that of the model's matrices, where the backend computes in it.
  let activations: DType
  /// Tokens that every sequence has so far.
  package private(set) var lengths: [Int]
  /// Tokens that every sequence has room for.
  private var capacity: Int
  /// One token more of every sequence, again and again; nil when sequences have changed since.
  private var decoding: Decoding?

  /// Sequences without tokens yet.
  ///
  /// - Parameters:
  ///   - capacity: tokens that each will have, where that is known; caches grow past it
  ///   - stateType: of the states of recurrences
  package init(
    _ model: HybridLM, sequences: Int = 1, capacity: Int = 0, stateType: DType = .float32, backend: any Backend
  ) {
    (self.model, self.backend, self.capacity) = (model, backend, max(capacity, 64))
    activations = model.head.dtype == .bfloat16 ? .bfloat16 : .float32
    caches = backend.computing(in: activations) {
      model.makeCaches(
        backend, CacheRoom(sequences: sequences, capacity: max(capacity, 64), stateType: stateType))
    }
    lengths = [Int](repeating: 0, count: sequences)
  }

  /// Bytes that the caches hold.
  package var cacheBytes: Int { caches.reduce(0) { $0 + $1.byteCount } }

  /// Drops the sequences that are not in `kept`.
  package func select(_ kept: [Int]) {
    decoding = nil
    for cache in caches { cache.select(kept) }
    lengths = kept.map { lengths[$0] }
  }

  /// Pretends that every sequence had `length` tokens, with caches filled at random: for measuring speed.
  package func assume(_ length: Int) {
    reserve(length)
    for cache in caches { cache.fillAtRandom() }
    decoding = nil
    lengths = lengths.map { _ in length }
  }

  /// Makes room for sequences of `length` tokens, and some more where they outgrow what was asked for.
  private func reserve(_ length: Int) {
    guard length > capacity else { return }
    decoding = nil
    capacity = max(length, capacity + capacity / 2)
    for cache in caches { cache.reserve(capacity) }
  }

  /// Reads more tokens of every sequence and returns the logits after the last of each, `[sequences, V]`.
  ///
  /// - Parameters:
  ///   - tokens: at least one for each sequence
  ///   - chunk: most tokens of a sequence in one pass, of a long prompt in pieces; nil: what suits the backend
  package func read(_ tokens: [[UInt32]], chunk: Int? = nil) -> Tensor {
    precondition(tokens.count == lengths.count, "\(tokens.count) inputs for \(lengths.count) sequences")
    precondition(tokens.allSatisfy { !$0.isEmpty }, "nothing to read")
    decoding = nil
    let hiddenSize = model.configuration.hiddenSize
    let chunk = chunk ?? max(1, backend.promptTokens / tokens.count)
    reserve(zip(lengths, tokens).map { $0 + $1.count }.max() ?? 0)
    return backend.computing(in: activations) {
      let last = backend.empty([tokens.count, hiddenSize], backend.activationType)
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

  /// The tokens that `sampling` chooses from `logits` `[sequences, V]`, on the device.
  ///
  /// - Parameter uniforms: in [0, 1), one a sequence
  /// - Throws: `JobError` where the logits are not finite
  package func choose(from logits: Tensor, _ sampling: Sampling, uniforms: [Float]) throws -> [UInt32] {
    let tokens = backend.empty([lengths.count], .int32)
    backend.chooseTokens(logits, sampling, uniforms: backend.tensor(uniforms, [uniforms.count]), into: tokens)
    return try checked(tokens)
  }

  /// Reads one token of every sequence and chooses the next one from the logits behind it. What one step enqueues, the
  /// following ones repeat (``Backend/routine(_:)``).
  ///
  /// - Parameters:
  ///   - tokens: of every sequence; nil for those that were chosen last
  ///   - uniforms: as of ``choose(from:_:uniforms:)``
  package func step(_ tokens: [UInt32]?, _ sampling: Sampling, uniforms: [Float]) throws -> [UInt32] {
    reserve((lengths.max() ?? 0) + 1)
    let step = decoding.flatMap { $0.sampling == sampling ? $0 : nil } ?? makeDecoding(sampling)
    decoding = step
    if let tokens {
      tokens.map { Int32(bitPattern: $0) }.withUnsafeBytes { backend.upload($0, into: step.tokens).wait() }
    }
    step.uniforms.upload(uniforms)
    backend.computing(in: activations) { step.work.run() }
    lengths = lengths.map { $0 + 1 }
    return try checked(step.tokens)
  }

  /// Logits `[sequences, V]` that the last ``step(_:_:uniforms:)`` chose from.
  package var logits: Tensor? { decoding?.logits }

  private func checked(_ tokens: Tensor) throws -> [UInt32] {
    try tokens.toIntegers().map {
      guard $0 >= 0 else { throw model.unusable("the model's output") }
      return UInt32($0)
    }
  }

  /// A step that is repeated, and the tensors through which it is told and tells what changes.
  private struct Decoding {
    let sampling: Sampling
    /// That are read; then those that were chosen.
    let tokens: Tensor
    let uniforms: Tensor
    let logits: Tensor
    let work: any Routine
  }

  private func makeDecoding(_ sampling: Sampling) -> Decoding {
    let (count, model, caches, backend) = (lengths.count, model, caches, backend)
    return backend.computing(in: activations) {
      let tokens = backend.empty([count], .int32)
      let uniforms = backend.empty([count])
      let logits = backend.empty([count, model.configuration.vocabularySize], backend.activationType)
      let layout = Layout(decodingAfter: lengths, limit: capacity, on: backend)
      let batch = Batch(tokens: tokens, layout: layout)
      let work = backend.routine {
        let hidden = model(batch, caches: caches)
        backend.project(hidden, [model.head], biases: [], onto: nil, into: logits)
        backend.chooseTokens(logits, sampling, uniforms: uniforms, into: tokens)
        backend.advance(layout.positions)
      }
      return Decoding(sampling: sampling, tokens: tokens, uniforms: uniforms, logits: logits, work: work)
    }
  }
}

extension Backend {
  /// Runs `body` with activations of this type, where the device computes in it, and without recording for gradients.
  fileprivate func computing<Result>(in type: DType, _ body: () throws -> Result) rethrows -> Result {
    let former = activationType
    activationType = type
    defer { activationType = former }
    return try withoutRecording(body)
  }
}
