import NN
import Ops
import Tensors

/// Grouped-query softmax attention with rotary positions, full or over a sliding window (RECIPE section 4), as the families
/// have it: with biases, norms over the channels of queries and keys, a scale of its own.
struct Attention: TokenMixer {
  private let projections: PackedLinear
  private let (q, k, v): (Int, Int, Int)
  private let o: Linear
  private let heads: Int
  private let groups: Int
  private let size: Int
  private let queryNorm: RMSNorm?
  private let keyNorm: RMSNorm?
  private let angles: RotaryAngles
  /// What queries are multiplied by, beside the D^−½ of attention itself.
  private let queryFactor: Float
  private var window: Int?

  init(_ scope: ParameterScope, _ configuration: Architecture, angles: RotaryAngles, window: Int?) {
    heads = configuration.attentionHeads
    groups = configuration.keyValueHeads
    size = configuration.headSize
    self.angles = angles
    self.window = window
    let hidden = configuration.hiddenSize
    projections = PackedLinear(inputs: hidden)
    let hasBias = configuration.hasQueryKeyValueBias
    q = projections.add(scope.scope("q_proj"), heads * size, bias: hasBias)
    k = projections.add(scope.scope("k_proj"), groups * size, bias: hasBias)
    v = projections.add(scope.scope("v_proj"), groups * size, bias: hasBias)
    o = Linear(scope.scope("o_proj"), heads * size, hidden, bias: configuration.hasOutputBias)
    func headNorm(_ name: String) -> RMSNorm? {
      guard configuration.hasQueryKeyNorms else { return nil }
      return RMSNorm(
        scope.scope(name), configuration.headSize, epsilon: configuration.normEpsilon,
        addsOne: configuration.normsAddOne)
    }
    (queryNorm, keyNorm) = (headNorm("q_norm"), headNorm("k_norm"))
    // Stretched angles may lengthen queries and keys: scores by the square.
    let scale = configuration.queryScale * Float(size).squareRoot()
    queryFactor = (abs(scale - 1) < 1e-6 ? 1 : scale) * Float(angles.magnitude * angles.magnitude)
  }

  /// The same parameters over a sliding window.
  func sliding(over window: Int) -> Attention {
    var copy = self
    copy.window = window
    return copy
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?, onto residual: Tensor?) -> Tensor {
    let n = x.rows
    func rotated(_ x: Tensor, _ heads: Int, _ norm: RMSNorm?) -> Tensor {
      let x = x.reshaped([n, heads, size])
      return rotaryEmbedding(norm?(x) ?? x, layout: batch.layout, angles: angles)
    }
    let projected = projections(x)
    let queries = scaled(rotated(projected[q], heads, queryNorm), by: queryFactor)
    let keys = rotated(projected[k], groups, keyNorm)
    let values = projected[v].reshaped([n, groups, size])
    let mixed =
      (cache as? KeyValueCache)?.attend(queries, keys, values, batch.layout)
      ?? attention(queries, keys, values, spans: batch.layout.spans(window: window))
    return o(mixed.reshaped([n, heads * size]), onto: residual)
  }

  func makeCache(_ backend: any Backend, _ room: CacheRoom) -> any MixerCache {
    KeyValueCache(backend, room, groups: groups, size: size, window: window)
  }

  func cacheElements(context: Int) -> CacheElements {
    CacheElements(activations: 2 * groups * size * min(context, window ?? context))
  }
}
