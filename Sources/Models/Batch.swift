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
  /// Where they stand: made here, once for all layers.
  package let layout: Layout

  /// - Parameter starts: Positions of the first token of every segment, for a pass that continues caches.
  package init(
    tokens: Tensor, segments: Segments, starts: [Int]? = nil, slidingMask: SlidingMask = .released
  ) {
    precondition(tokens.count == segments.tokenCount, "\(tokens.shape) tokens for segments \(segments)")
    self.tokens = tokens
    self.slidingMask = slidingMask
    layout = Layout(segments, starts: starts, on: tokens.backend)
  }

  /// Which keys a sliding-window layer's queries see.
  package let slidingMask: SlidingMask

  /// Every document attends to itself, over the last `window` tokens where one is given.
  package func spans(window: Int?) -> AttentionSpans {
    guard let window, slidingMask == .referenceEager else { return layout.spans(window: window) }
    return layout.spans(EagerWindow(window: window)) {
      layout.segments.ranges.flatMap { range in
        [
          AttentionSpan(queries: range.prefix(1), keys: range),
          AttentionSpan(queries: range.dropFirst(), keys: range.dropLast(), window: window - 1),
        ].filter { !$0.queries.isEmpty && !$0.keys.isEmpty }
      }
    }
  }

  private struct EagerWindow: Hashable {
    let window: Int
  }
}
