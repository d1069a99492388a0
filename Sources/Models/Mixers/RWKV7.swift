import Foundation
import NN
import Ops
import Tensors

/// RWKV7's time mixing (Peng et al., 2025): inputs mixed with the token before, decay and learning rate from low-rank
/// projections, a state that changes by a diagonal and a rank of one. Names after flash-linear-attention's layer; its
/// residual to the first layer's values is left out, for that layer need not be of this kind.
struct RWKV7: TokenMixer {
  private let r: Linear
  private let k: Linear
  private let v: Linear
  private let o: Linear
  private let decay: LowRankProjection
  private let rate: LowRankProjection
  private let gate: LowRankProjection
  /// How much of the token before goes into r, w, k, v, a and g.
  private let mixes: [Parameter]
  private let removalScale: Parameter
  private let rateScale: Parameter
  private let bonus: Parameter
  private let normWeight: Parameter
  private let normBias: Parameter
  private let shape: LinearConfiguration

  /// e^(−1/2): decays lie between e^−that and 1.
  private static let slowest = Float(-exp(-0.5))

  /// Two projections with few channels between them.
  private struct LowRankProjection {
    let down: Linear
    let up: Linear

    init(_ scope: ParameterScope, _ inputs: Int, _ rank: Int, _ outputs: Int, bias: Bool) {
      down = Linear(scope.scope("lora").scope("0"), inputs, rank)
      up = Linear(scope.scope("lora").scope("2"), rank, outputs, bias: bias)
    }

    func callAsFunction(_ x: Tensor, _ function: ElementFunction?) -> Tensor {
      let inner = down(x)
      return up(function.map { apply($0, inner) } ?? inner)
    }
  }

  init(_ scope: ParameterScope, hidden: Int, _ shape: LinearConfiguration) {
    self.shape = shape
    let width = shape.heads * shape.keySize
    mixes = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"].map { scope.parameter($0, [1, 1, hidden], .zeros) }
    removalScale = scope.parameter("k_k", [width], .ones)
    rateScale = scope.parameter("k_a", [width], .ones)
    bonus = scope.parameter("r_k", [shape.heads, shape.keySize], .zeros)
    r = Linear(scope.scope("r_proj"), hidden, width)
    k = Linear(scope.scope("k_proj"), hidden, width)
    v = Linear(scope.scope("v_proj"), hidden, width)
    decay = LowRankProjection(scope.scope("w_lora"), hidden, shape.decayRank, width, bias: true)
    rate = LowRankProjection(scope.scope("a_lora"), hidden, shape.rateRank, width, bias: true)
    gate = LowRankProjection(scope.scope("g_lora"), hidden, shape.gateRank, width, bias: false)
    normWeight = scope.scope("g_norm").parameter("weight", [width], .ones)
    normBias = scope.scope("g_norm").parameter("bias", [width], .zeros)
    o = Linear(scope.scope("o_proj"), width, hidden)
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?, onto residual: Tensor?) -> Tensor {
    let n = x.rows
    let cache = cache as? RecurrentCache
    let change = tokenShift(x, layout: batch.layout, history: cache?.histories[0])
    cache?.remember(x, batch.layout)
    func mixed(_ index: Int) -> Tensor { add(x, scaleColumns(change, by: mixes[index].value)) }
    func heads(_ x: Tensor) -> Tensor { x.reshaped([n, shape.heads, shape.keySize]) }
    let (receptance, values) = (r(mixed(0)), v(mixed(3)))
    let gates = apply(.scaledSigmoid(scale: Self.slowest), decay(mixed(1), .tanh))
    let keys = k(mixed(2))
    let rates = rate(mixed(4), nil)
    let removed = normalizeLength(heads(scaleColumns(keys, by: removalScale.value)))
    // k · (1 + (a − 1) · k_a), a = sigmoid(rates)
    let written = add(keys, scaleColumns(multiplyElements(keys, apply(.sigmoidMinusOne, rates)), by: rateScale.value))
    let y = diagonalPlusLowRank(
      q: heads(receptance), k: heads(written), v: heads(values), alpha: removed,
      beta: multiplyElements(removed, heads(apply(.scaledSigmoid(scale: -1), rates))), g: heads(gates), scale: 1,
      layout: batch.layout, initial: cache?.state, final: cache?.state)
    let normed = standardize(y, epsilon: Float(shape.keySize) * shape.epsilon).reshaped([n, values.columns])
    let affine = addBias(scaleColumns(normed, by: normWeight.value), normBias.value)
    let agreement = rowProducts(heads(scaleColumns(receptance, by: bonus.value)), heads(written))
    let extra = scaleRows(heads(values), by: agreement).reshaped([n, values.columns])
    return o(multiplyElements(add(affine, extra), gate(mixed(5), .sigmoid)), onto: residual)
  }

  func makeCache(_ backend: any Backend, _ room: CacheRoom) -> any MixerCache {
    RecurrentCache(
      backend, room, state: [shape.heads, shape.keySize, shape.keySize],
      histories: [(1, mixes[0].count)])
  }

  func cacheElements(context: Int) -> CacheElements {
    CacheElements(activations: mixes[0].count, states: shape.heads * shape.keySize * shape.keySize)
  }
}
