import Ops
import Tensors

/// The tokens of one forward pass, with what the layers need to know about their documents.
package struct Batch {
  /// `[N]` int32
  package let tokens: Tensor
  /// Where they stand: made here, once for all layers.
  package let layout: Layout

  /// - Parameter starts: Positions of the first token of every segment, for a pass that continues caches.
  package init(tokens: Tensor, segments: Segments, starts: [Int]? = nil) {
    precondition(tokens.count == segments.tokenCount, "\(tokens.shape) tokens for segments \(segments)")
    self.tokens = tokens
    layout = Layout(segments, starts: starts, on: tokens.backend)
  }

  /// Tokens that change while their layout stays: one of every sequence that is decoded.
  package init(tokens: Tensor, layout: Layout) { (self.tokens, self.layout) = (tokens, layout) }
}
