import Ops
import Tensors

/// The tokens of one forward pass, with what the layers need to know about their documents.
package struct Batch {
  /// `[N]` int32
  package let tokens: Tensor
  package let segments: Segments
  /// Position of every token in its document.
  package let positions: [Int32]

  /// - Parameter start: Position of the first token, for a pass that continues a cache.
  package init(tokens: Tensor, segments: Segments, start: Int = 0) {
    precondition(tokens.count == segments.tokenCount, "\(tokens.shape) tokens for segments \(segments)")
    self.tokens = tokens
    self.segments = segments
    positions = segments.ranges.flatMap { range in (0..<range.count).map { Int32(start + $0) } }
  }

  /// Every document attends to itself.
  package var spans: [AttentionSpan] {
    segments.ranges.map { AttentionSpan(queries: $0, keys: $0) }
  }
}
