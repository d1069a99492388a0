import NN
import Ops
import Tensors

/// What a layer remembers of the tokens before, for each of a number of sequences that are generated side by side.
/// A pass that continues them has a segment for each, in their order, which may be empty.
package protocol MixerCache: AnyObject {
  /// Bytes it holds.
  var byteCount: Int { get }

  /// Keeps only these sequences, in this order.
  func select(_ sequences: [Int])

  /// Makes room for sequences of so many tokens. Only this and ``select(_:)`` move what is remembered to other memory.
  func reserve(_ length: Int)

  /// Fills the cache at random, as if every sequence had as many tokens as there is room for: for measuring speed.
  func fillAtRandom()
}

/// What caches are made for.
package struct CacheRoom: Sendable {
  package let sequences: Int
  /// Tokens that each sequence will have, where the mixer's cache grows; it can grow past that.
  package let capacity: Int
  /// Of the states of recurrences.
  package let stateType: DType

  package init(sequences: Int, capacity: Int = 0, stateType: DType = .float32) {
    (self.sequences, self.capacity, self.stateType) = (sequences, capacity, stateType)
  }
}

/// Numbers that the cache of one sequence holds: of the type of activations, and of states.
package struct CacheElements: Sendable, Equatable {
  package var activations = 0
  package var states = 0

  package func bytes(activations type: DType, states stateType: DType) -> Int {
    activations * type.size + states * stateType.size
  }
}

/// The part of a layer that moves information between tokens.
///
/// A new one is a file here, and a line in ``makeMixer(_:_:_:)``.
package protocol TokenMixer {
  /// - Parameters:
  ///   - x: `[N, hidden]`, the layer's normalised input
  ///   - cache: of this mixer, when the segments of `batch` continue sequences
  ///   - residual: `[N, hidden]`, what the output is added to
  /// - Returns: `[N, hidden]`
  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?, onto residual: Tensor?) -> Tensor

  /// Empty caches.
  func makeCache(_ backend: any Backend, _ room: CacheRoom) -> any MixerCache

  /// What the cache of one sequence must hold at this context.
  func cacheElements(context: Int) -> CacheElements

  /// How `q_proj`, `k_proj`, `v_proj` and `o_proj` are laid out, for mixers that have them head by head and may begin
  /// from a teacher's attention.
  var headShape: HeadShape? { get }
}

extension TokenMixer {
  package var headShape: HeadShape? { nil }

  /// What the mixer makes of x, by itself.
  package func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?) -> Tensor {
    self(x, batch, cache: cache, onto: nil)
  }
}

/// The mixer of a layer of this type, its parameters created under `scope`.
func makeMixer(
  _ type: LayerType, _ configuration: Architecture, _ scope: ParameterScope
) -> any TokenMixer {
  let hidden = configuration.hiddenSize
  return switch type {
  case .attention: Attention(scope, configuration, angles: configuration.rope, window: nil)
  case .slidingWindow:
    Attention(
      scope, configuration, angles: configuration.slidingRope ?? configuration.rope, window: configuration.slidingWindow
    )
  case .jet: JetBlock(scope, hidden: hidden, configuration.jet!)
  case .gatedLinearAttention: GatedLinearAttention(scope, hidden: hidden, configuration.linear[type]!)
  case .retention: Retention(scope, hidden: hidden, configuration.linear[type]!)
  case .mamba2: Mamba2(scope, hidden: hidden, configuration.linear[type]!)
  case .deltaNet: DeltaNet(scope, hidden: hidden, configuration.linear[type]!, isGated: false)
  case .gatedDeltaNet: DeltaNet(scope, hidden: hidden, configuration.linear[type]!, isGated: true)
  case .rwkv7: RWKV7(scope, hidden: hidden, configuration.linear[type]!)
  }
}
