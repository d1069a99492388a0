import Tensors

/// What a recurrent mixer remembers of every sequence: the state of its heads, and the last inputs of its convolutions.
/// The same size at any context.
final class RecurrentCache: MixerCache {
  /// `[sequences, H, K, V]`
  private(set) var state: Tensor
  /// `[sequences, taps, C]` for each convolution or token shift, newest last; inputs are activations, and of their type.
  private(set) var histories: [Tensor]

  /// - Parameters:
  ///   - state: H, K, V
  ///   - histories: taps and channels of each
  init(_ backend: any Backend, _ room: CacheRoom, state: [Int], histories: [(taps: Int, channels: Int)] = []) {
    self.state = backend.zeros([room.sequences] + state, room.stateType)
    self.histories = histories.map { backend.zeros([room.sequences, $0.taps, $0.channels], backend.activationType) }
  }

  private var all: [Tensor] { [state] + histories }

  var byteCount: Int { all.reduce(0) { $0 + $1.count * $1.dtype.size } }

  func select(_ sequences: [Int]) {
    func selected(_ x: Tensor) -> Tensor {
      let out = x.backend.empty([sequences.count] + x.shape.dropFirst(), x.dtype)
      x.backend.copyRows(
        x, into: out, sequences.enumerated().map { RowMove(from: $0.element, to: $0.offset, count: 1) })
      return out
    }
    (state, histories) = (selected(state), histories.map(selected))
  }

  func reserve(_ length: Int) {}

  func fillAtRandom() {
    for tensor in all { tensor.fillAtRandom() }
  }

  /// Shifts the newest rows of every segment of `inputs` `[N, C]` into its sequence's history.
  func remember(_ inputs: Tensor, in index: Int = 0, _ layout: Layout) {
    inputs.backend.remember(inputs, layout: layout, in: histories[index])
  }
}
