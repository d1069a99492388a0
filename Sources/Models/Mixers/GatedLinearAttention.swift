import NN
import Ops
import Tensors

/// Gated linear attention (Yang et al., 2024): a decay for every key channel, from a low-rank projection. Names and
/// conventions after flash-linear-attention's layer: no activation on q and k, a gate behind a norm a head.
struct GatedLinearAttention: TokenMixer {
  private let projections: PackedLinear
  private let (q, k, v, g, gate1): (Int, Int, Int, Int, Int)
  private let o: Linear
  private let gate2: Linear
  private let norm: RMSNorm
  private let shape: LinearConfiguration

  /// Tokens that the log of a gate is spread over.
  private static let gateNormalizer: Float = 16

  init(_ scope: ParameterScope, hidden: Int, _ shape: LinearConfiguration) {
    self.shape = shape
    let (keys, values) = (shape.heads * shape.keySize, shape.heads * shape.valueSize)
    projections = PackedLinear(inputs: hidden)
    q = projections.add(scope.scope("q_proj"), keys)
    k = projections.add(scope.scope("k_proj"), keys)
    v = projections.add(scope.scope("v_proj"), values)
    g = projections.add(scope.scope("g_proj"), values)
    gate1 = projections.add(scope.scope("gk_proj").scope("0"), shape.gateRank)
    gate2 = Linear(scope.scope("gk_proj").scope("1"), shape.gateRank, keys, bias: true)
    norm = RMSNorm(scope.scope("g_norm_swish_gate"), shape.valueSize, epsilon: shape.epsilon)
    o = Linear(scope.scope("o_proj"), values, hidden)
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?, onto residual: Tensor?) -> Tensor {
    let n = x.rows
    let cache = cache as? RecurrentCache
    func heads(_ x: Tensor, _ size: Int) -> Tensor { x.reshaped([n, shape.heads, size]) }
    let projected = projections(x)
    let gates = apply(.logSigmoid(scale: 1 / Self.gateNormalizer), gate2(projected[gate1]))
    let mixed = decayedAttention(
      q: heads(projected[q], shape.keySize), k: heads(projected[k], shape.keySize),
      v: heads(projected[v], shape.valueSize),
      g: heads(gates, shape.keySize), scale: 1 / Float(shape.keySize).squareRoot(), layout: batch.layout,
      initial: cache?.state, final: cache?.state)
    return o(
      gatedRMSNorm(mixed, gate: projected[g], weight: norm.weight.value, epsilon: norm.epsilon), onto: residual)
  }

  func makeCache(_ backend: any Backend, _ room: CacheRoom) -> any MixerCache {
    RecurrentCache(backend, room, state: [shape.heads, shape.keySize, shape.valueSize])
  }

  func cacheElements(context: Int) -> CacheElements { CacheElements(states: shape.stateElements) }
  var headShape: HeadShape? { shape.headShape }
}
