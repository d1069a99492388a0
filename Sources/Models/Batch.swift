import Ops
import Tensors

/// The masks that the reference program has for sliding windows.
package enum SlidingMask: Sendable {
  /// Query i sees keys i − W < j ≤ i: what its flash-attention path computes and the models were trained with.
  case released
  /// What its eager path computes, which golden tensors made on a CPU show: the mask is one column off, so that a
  /// query sees i − W < j < i without itself, and the first of a document, which would see nothing, sees all.
  case referenceEager
}

/// The tokens of one forward pass, with what the layers need to know about their documents.
package struct Batch {
  /// `[N]` int32
  package let tokens: Tensor
  package let segments: Segments
  /// Position of every token in its document.
  package let positions: [Int32]

  /// - Parameter starts: Positions of the first token of every segment, for a pass that continues caches.
  package init(
    tokens: Tensor, segments: Segments, starts: [Int]? = nil, slidingMask: SlidingMask = .released
  ) {
    precondition(tokens.count == segments.tokenCount, "\(tokens.shape) tokens for segments \(segments)")
    self.tokens = tokens
    self.segments = segments
    self.slidingMask = slidingMask
    positions = segments.ranges.enumerated().flatMap { index, range in
      (0..<range.count).map { Int32((starts?[index] ?? 0) + $0) }
    }
  }

  /// Which keys a sliding-window layer's queries see.
  package let slidingMask: SlidingMask

  /// Every document attends to itself, over the last `window` tokens where one is given.
  package func spans(window: Int?) -> [AttentionSpan] {
    segments.ranges.flatMap { range in
      guard let window, slidingMask == .referenceEager else {
        return [AttentionSpan(queries: range, keys: range, window: window)]
      }
      return [
        AttentionSpan(queries: range.prefix(1), keys: range),
        AttentionSpan(queries: range.dropFirst(), keys: range.dropLast(), window: window - 1),
      ].filter { !$0.queries.isEmpty && !$0.keys.isEmpty }
    }
  }
}
