import Tensors

/// What a recurrent mixer remembers of every sequence: the state of its heads, and the last inputs of its convolutions.
/// The same size at any context.
final class RecurrentCache: MixerCache {
  /// `[sequences, H, K, V]`
  private(set) var state: Tensor
  /// `[sequences, taps, C]` for each convolution or token shift, newest last.
  private(set) var histories: [Tensor]

  /// - Parameters:
  ///   - state: H, K, V
  ///   - histories: taps and channels of each
  init(_ backend: any Backend, sequences: Int, state: [Int], histories: [(taps: Int, channels: Int)] = []) {
    self.state = backend.zeros([sequences] + state)
    self.histories = histories.map { backend.zeros([sequences, $0.taps, $0.channels]) }
  }

  var byteCount: Int { (state.count + histories.reduce(0) { $0 + $1.count }) * 4 }

  func select(_ sequences: [Int]) {
    func selected(_ x: Tensor) -> Tensor {
      let out = x.backend.empty([sequences.count] + x.shape.dropFirst())
      x.backend.copyRows(
        x, into: out, sequences.enumerated().map { RowMove(from: $0.element, to: $0.offset, count: 1) })
      return out
    }
    (state, histories) = (selected(state), histories.map(selected))
  }

  func assume(_ length: Int) {}

  /// Shifts the newest rows of every segment of `inputs` `[N, C]` into its sequence's history.
  func remember(_ inputs: Tensor, in index: Int = 0, _ segments: Segments) {
    inputs.backend.remember(inputs, segments, in: histories[index])
  }
}
