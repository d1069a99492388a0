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
      for (place, sequence) in sequences.enumerated() {
        x.backend.copy(x.rows(sequence..<sequence + 1), into: out.rows(place..<place + 1))
      }
      return out
    }
    (state, histories) = (selected(state), histories.map(selected))
  }

  func assume(_ length: Int) {}

  /// Shifts the newest rows of every segment of `inputs` `[N, C]` into its sequence's history.
  func remember(_ inputs: Tensor, in index: Int = 0, _ segments: Segments) {
    let history = histories[index]
    let backend = history.backend
    let taps = history.shape[1]
    let rows = history.reshaped([history.rows * taps, history.shape[2]])
    for (sequence, range) in segments.ranges.enumerated() where !range.isEmpty {
      let first = sequence * taps
      let fresh = min(range.count, taps)
      for row in first..<first + taps - fresh {
        backend.copy(rows.rows(row + fresh..<row + fresh + 1), into: rows.rows(row..<row + 1))
      }
      backend.copy(
        inputs.rows(range.upperBound - fresh..<range.upperBound),
        into: rows.rows(first + taps - fresh..<first + taps))
    }
  }
}
