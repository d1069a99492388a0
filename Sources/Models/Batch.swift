import Ops
import Tensors

/// The tokens of one forward pass, with what the layers need to know about their documents.
package struct Batch {
  /// `[N]` int32
  package let tokens: Tensor
  package let segments: Segments
  /// Position of every token in its document.
  package let positions: [Int32]

  /// - Parameter starts: Positions of the first token of every segment, for a pass that continues caches.
  package init(tokens: Tensor, segments: Segments, starts: [Int]? = nil) {
    precondition(tokens.count == segments.tokenCount, "\(tokens.shape) tokens for segments \(segments)")
    self.tokens = tokens
    self.segments = segments
    positions = segments.ranges.enumerated().flatMap { index, range in
      (0..<range.count).map { Int32((starts?[index] ?? 0) + $0) }
    }
  }

  /// Every document attends to itself; with a window W query i sees keys i − W < j ≤ i.
  package func spans(window: Int?) -> [AttentionSpan] {
    segments.ranges.map { AttentionSpan(queries: $0, keys: $0, window: window) }
  }
}
