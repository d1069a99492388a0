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

  /// Pretends that every sequence had `length` tokens, of undefined values: for measuring speed.
  func assume(_ length: Int)
}

/// The part of a layer that moves information between tokens.
///
/// A new one is a file here, and a line in ``makeMixer(_:_:_:)``.
package protocol TokenMixer {
  /// - Parameters:
  ///   - x: `[N, hidden]`, the layer's normalised input
  ///   - cache: of this mixer, when the segments of `batch` continue sequences
  /// - Returns: `[N, hidden]`
  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?) -> Tensor

  /// Empty caches for `sequences` sequences, with room for `capacity` tokens each where the mixer's cache grows.
  func makeCache(_ backend: any Backend, sequences: Int, capacity: Int) -> any MixerCache

  /// Elements that the cache of one sequence must hold at this context.
  func cacheElements(context: Int) -> Int

  /// How `q_proj`, `k_proj`, `v_proj` and `o_proj` are laid out, for mixers that have them head by head and may begin
  /// from a teacher's attention.
  var headShape: HeadShape? { get }
}

extension TokenMixer {
  package var headShape: HeadShape? { nil }
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
