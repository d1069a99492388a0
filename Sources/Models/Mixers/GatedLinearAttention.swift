import NN
import Ops
import Tensors

/// Gated linear attention (Yang et al., 2024): a decay for every key channel, from a low-rank projection. Names and
/// conventions after flash-linear-attention's layer: no activation on q and k, a gate behind a norm a head.
struct GatedLinearAttention: TokenMixer {
  private let q: Linear
  private let k: Linear
  private let v: Linear
  private let g: Linear
  private let o: Linear
  private let gate1: Linear
  private let gate2: Linear
  private let norm: RMSNorm
  private let shape: LinearConfiguration

  /// Tokens that the log of a gate is spread over.
  private static let gateNormalizer: Float = 16

  init(_ scope: ParameterScope, hidden: Int, _ shape: LinearConfiguration) {
    self.shape = shape
    let (keys, values) = (shape.heads * shape.keySize, shape.heads * shape.valueSize)
    q = Linear(scope.scope("q_proj"), hidden, keys)
    k = Linear(scope.scope("k_proj"), hidden, keys)
    v = Linear(scope.scope("v_proj"), hidden, values)
    g = Linear(scope.scope("g_proj"), hidden, values)
    gate1 = Linear(scope.scope("gk_proj").scope("0"), hidden, shape.gateRank)
    gate2 = Linear(scope.scope("gk_proj").scope("1"), shape.gateRank, keys, bias: true)
    norm = RMSNorm(scope.scope("g_norm_swish_gate"), shape.valueSize, epsilon: shape.epsilon)
    o = Linear(scope.scope("o_proj"), values, hidden)
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?) -> Tensor {
    let n = x.rows
    let cache = cache as? RecurrentCache
    func heads(_ x: Tensor, _ size: Int) -> Tensor { x.reshaped([n, shape.heads, size]) }
    let gates = apply(.logSigmoid(scale: 1 / Self.gateNormalizer), gate2(gate1(x)))
    let mixed = decayedAttention(
      q: heads(q(x), shape.keySize), k: heads(k(x), shape.keySize), v: heads(v(x), shape.valueSize),
      g: heads(gates, shape.keySize), scale: 1 / Float(shape.keySize).squareRoot(), layout: batch.layout,
      initial: cache?.state, final: cache?.state)
    return o(gatedRMSNorm(mixed, gate: g(x), weight: norm.weight.value, epsilon: norm.epsilon))
  }

  func makeCache(_ backend: any Backend, sequences: Int, capacity: Int) -> any MixerCache {
    RecurrentCache(backend, sequences: sequences, state: [shape.heads, shape.keySize, shape.valueSize])
  }

  func cacheElements(context: Int) -> Int { shape.stateElements }
  var headShape: HeadShape? { shape.headShape }
}
