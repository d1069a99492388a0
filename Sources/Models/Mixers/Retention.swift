import Foundation
import NN
import Ops
import Tensors

/// Multi-scale retention (Sun et al., 2023): a fixed decay a head, 1 − 2^(−5 − h), and rotary positions on q and k. Names
/// and conventions after flash-linear-attention's layer.
struct Retention: TokenMixer {
  private let projections: PackedLinear
  private let (q, k, v, g): (Int, Int, Int, Int)
  private let o: Linear
  private let norm: RMSNorm
  private let shape: LinearConfiguration
  /// The decays of the heads, on each backend that the mixer ran on.
  private let decays = Tables()

  init(_ scope: ParameterScope, hidden: Int, _ shape: LinearConfiguration) {
    self.shape = shape
    let (keys, values) = (shape.heads * shape.keySize, shape.heads * shape.valueSize)
    projections = PackedLinear(inputs: hidden)
    q = projections.add(scope.scope("q_proj"), keys)
    k = projections.add(scope.scope("k_proj"), keys)
    v = projections.add(scope.scope("v_proj"), values)
    g = projections.add(scope.scope("g_proj"), values)
    norm = RMSNorm(scope.scope("g_norm_swish_gate"), shape.valueSize, epsilon: shape.epsilon)
    o = Linear(scope.scope("o_proj"), values, hidden)
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?, onto residual: Tensor?) -> Tensor {
    let n = x.rows
    let cache = cache as? RecurrentCache
    func rotated(_ x: Tensor) -> Tensor {
      rotaryEmbedding(
        x.reshaped([n, shape.heads, shape.keySize]), layout: batch.layout, angles: RotaryAngles(theta: 10_000))
    }
    let projected = projections(x)
    let gates = batch.layout.table(Gates(heads: shape.heads)) {
      let backend = x.backend
      // A tensor keeps its backend, so that nobody else will have this name.
      let logarithms = decays.table(ObjectIdentifier(backend)) {
        backend.tensor((0..<shape.heads).map { Float(log1p(-exp2(-5 - Double($0)))) }, [shape.heads])
      }
      let gates = backend.filled([n, shape.heads], with: 1)
      backend.scaleColumns(gates, by: logarithms, into: gates, adds: false)
      return gates
    }
    let mixed = decayedAttention(
      q: rotated(projected[q]), k: rotated(projected[k]),
      v: projected[v].reshaped([n, shape.heads, shape.valueSize]), g: gates,
      scale: 1 / Float(shape.keySize).squareRoot(), layout: batch.layout, initial: cache?.state, final: cache?.state
    )
    return o(
      gatedRMSNorm(mixed, gate: projected[g], weight: norm.weight.value, epsilon: norm.epsilon), onto: residual)
  }

  /// The gates of a batch, which all layers of as many heads share.
  private struct Gates: Hashable {
    let heads: Int
  }

  func makeCache(_ backend: any Backend, _ room: CacheRoom) -> any MixerCache {
    RecurrentCache(backend, room, state: [shape.heads, shape.keySize, shape.valueSize])
  }

  func cacheElements(context: Int) -> CacheElements { CacheElements(states: shape.stateElements) }
  var headShape: HeadShape? { shape.headShape }
}
