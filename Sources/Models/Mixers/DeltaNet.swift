import NN
import Ops
import Tensors

/// DeltaNet (Yang et al., 2024) and Gated DeltaNet (Yang, Kautz and Hatamizadeh, 2025): the delta rule over q, k and v that
/// pass short convolutions; the gated one lets the state decay and gates the output. Names and conventions after
/// flash-linear-attention's layers.
struct DeltaNet: TokenMixer {
  private let projections: PackedLinear
  private let (q, k, v, b): (Int, Int, Int, Int)
  private let o: Linear
  private let convolutions: [Parameter]
  private let norm: RMSNorm
  private let gating: Gating?
  private let shape: LinearConfiguration

  /// What Gated DeltaNet has beside DeltaNet.
  private struct Gating {
    let a: Int
    let g: Int
    let aLog: Parameter
    let dtBias: Parameter
  }

  init(_ scope: ParameterScope, hidden: Int, _ shape: LinearConfiguration, isGated: Bool) {
    self.shape = shape
    let (keys, values) = (shape.heads * shape.keySize, shape.heads * shape.valueSize)
    projections = PackedLinear(inputs: hidden)
    q = projections.add(scope.scope("q_proj"), keys)
    k = projections.add(scope.scope("k_proj"), keys)
    v = projections.add(scope.scope("v_proj"), values)
    b = projections.add(scope.scope("b_proj"), shape.heads)
    if isGated {
      gating = Gating(
        a: projections.add(scope.scope("a_proj"), shape.heads), g: projections.add(scope.scope("g_proj"), values),
        aLog: scope.parameter("A_log", [shape.heads], .logDecay),
        dtBias: scope.parameter("dt_bias", [shape.heads], .timeStepBias))
    } else {
      gating = nil
    }
    convolutions = [("q_conv1d", keys), ("k_conv1d", keys), ("v_conv1d", values)].map { name, channels in
      scope.scope(name).parameter("weight", [channels, 1, 4], .identityTap(taps: 4))
    }
    norm = RMSNorm(scope.scope("o_norm"), shape.valueSize, epsilon: shape.epsilon)
    o = Linear(scope.scope("o_proj"), values, hidden)
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?, onto residual: Tensor?) -> Tensor {
    let n = x.rows
    let cache = cache as? RecurrentCache
    func convolved(_ projected: Tensor, _ index: Int, _ size: Int) -> Tensor {
      let y = shortConvolution(
        projected, weight: convolutions[index].value, layout: batch.layout, history: cache?.histories[index])
      cache?.remember(projected, in: index, batch.layout)
      return y.reshaped([n, shape.heads, size])
    }
    let projected = projections(x)
    let queries = normalizeLength(convolved(projected[q], 0, shape.keySize))
    let keys = normalizeLength(convolved(projected[k], 1, shape.keySize))
    let values = convolved(projected[v], 2, shape.valueSize)
    func mixed(_ g: Tensor, _ beta: Tensor) -> Tensor {
      gatedDeltaRule(
        q: queries, k: keys, v: values, g: g, beta: beta, layout: batch.layout, initial: cache?.state,
        final: cache?.state)
    }
    guard let gating else {
      let gates = batch.layout.table(NoDecay(heads: shape.heads)) { x.backend.zeros([n, shape.heads]) }
      let y = mixed(gates, apply(.sigmoid, projected[b]))
      return o(
        rmsNorm(y, weight: norm.weight.value, epsilon: norm.epsilon).reshaped([n, values.columns]), onto: residual)
    }
    let gates = decayGate(a: projected[gating.a], b: projected[b], aLog: gating.aLog.value, dtBias: gating.dtBias.value)
    return o(
      gatedRMSNorm(
        mixed(gates.g, gates.beta), gate: projected[gating.g], weight: norm.weight.value, epsilon: norm.epsilon),
      onto: residual)
  }

  /// The gates of a state that does not decay, which all layers of as many heads share.
  private struct NoDecay: Hashable {
    let heads: Int
  }

  private var channels: [Int] {
    [shape.heads * shape.keySize, shape.heads * shape.keySize, shape.heads * shape.valueSize]
  }

  func makeCache(_ backend: any Backend, _ room: CacheRoom) -> any MixerCache {
    RecurrentCache(
      backend, room, state: [shape.heads, shape.keySize, shape.valueSize],
      histories: channels.map { (4, $0) })
  }

  func cacheElements(context: Int) -> CacheElements {
    CacheElements(activations: 4 * channels.reduce(0, +), states: shape.stateElements)
  }
  var headShape: HeadShape? { shape.headShape }
}
