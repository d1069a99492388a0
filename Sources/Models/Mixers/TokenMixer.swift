import NN
import Ops
import Tensors

/// What a layer remembers of the tokens before, while it generates.
package protocol MixerCache: AnyObject {
  /// Bytes it holds.
  var byteCount: Int { get }
}

/// The part of a layer that moves information between tokens.
///
/// A new one is a file here, and a line in ``makeMixer(_:_:_:)``.
package protocol TokenMixer {
  /// - Parameters:
  ///   - x: `[N, hidden]`, the layer's normalised input
  ///   - cache: of this mixer, when `batch` is one sequence that continues
  /// - Returns: `[N, hidden]`
  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?) -> Tensor

  /// An empty cache for one sequence.
  func makeCache(_ backend: any Backend) -> any MixerCache
}

/// The mixer of a layer of this type, its parameters created under `scope`.
func makeMixer(
  _ type: LayerType, _ configuration: ModelConfiguration, _ scope: ParameterScope
) -> any TokenMixer {
  switch type {
  case .attention: Attention(scope, configuration, window: nil)
  case .slidingWindow: Attention(scope, configuration, window: configuration.slidingWindow)
  case .jet: JetBlock(scope, hidden: configuration.hiddenSize, configuration.jet!)
  }
}
