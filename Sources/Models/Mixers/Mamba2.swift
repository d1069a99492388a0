import NN
import Ops
import Tensors

/// Mamba2 (Dao and Gu, 2024) in its attention form: the state of a head decays by e^(−A Δt), B writes what C reads. Names
/// and conventions after transformers' `Mamba2Mixer`: one input projection for gate, x, B, C and Δt, a convolution over x, B
/// and C, a norm behind the gate.
struct Mamba2: TokenMixer {
  private let input: Linear
  private let output: Linear
  private let convolution: Parameter
  private let convolutionBias: Parameter
  private let aLog: Parameter
  private let dtBias: Parameter
  private let skip: Parameter
  private let norm: RMSNorm
  private let shape: LinearConfiguration

  /// Channels of x, and of B or C: `valueSize` is the head dimension, `keySize` the state size.
  private var inner: Int { shape.heads * shape.valueSize }
  private var stateChannels: Int { shape.groups * shape.keySize }

  init(_ scope: ParameterScope, hidden: Int, _ shape: LinearConfiguration) {
    self.shape = shape
    let inner = shape.heads * shape.valueSize
    let channels = inner + 2 * shape.groups * shape.keySize
    input = Linear(scope.scope("in_proj"), hidden, inner + channels + shape.heads)
    convolution = scope.scope("conv1d").parameter("weight", [channels, 1, 4], .identityTap(taps: 4))
    convolutionBias = scope.scope("conv1d").parameter("bias", [channels], .zeros)
    dtBias = scope.parameter("dt_bias", [shape.heads], .timeStepBias)
    aLog = scope.parameter("A_log", [shape.heads], .logDecay)
    skip = scope.parameter("D", [shape.heads], .ones)
    norm = RMSNorm(scope.scope("norm"), inner, epsilon: shape.epsilon)
    output = Linear(scope.scope("out_proj"), inner, hidden)
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?, onto residual: Tensor?) -> Tensor {
    let n = x.rows
    let cache = cache as? RecurrentCache
    let (states, heads) = (stateChannels, shape.heads)
    let projected = split(input(x), [inner, inner + 2 * states, heads])
    let (gate, mixedInput) = (projected[0], projected[1])
    let step = apply(.softplus, addBias(projected[2], dtBias.value))
    let convolved = shortConvolution(
      mixedInput, weight: convolution.value, bias: convolutionBias.value, layout: batch.layout,
      history: cache?.histories[0])
    cache?.remember(mixedInput, batch.layout)
    let values = columns(convolved, 0..<inner)
    func group(_ first: Int) -> Tensor {
      let part = columns(convolved, first..<first + states).reshaped([n, shape.groups, shape.keySize])
      return shape.groups == heads ? part : repeatHeads(part, heads)
    }
    let stepped = scaleRows(values.reshaped([n, heads, shape.valueSize]), by: step)
    let decay = scaleColumns(step, by: apply(.negativeExponential, aLog.value))
    let mixed = decayedAttention(
      q: group(inner + states), k: group(inner), v: stepped, g: decay, scale: 1, layout: batch.layout,
      initial: cache?.state, final: cache?.state)
    let y = add(mixed.reshaped([n, inner]), scaleColumns(values, by: skip.value))
    return output(normalized(swiGLU(gate: gate, up: y)), onto: residual)
  }

  /// Root-mean-square norm of every group of heads by itself.
  private func normalized(_ x: Tensor) -> Tensor {
    guard shape.groups > 1 else { return rmsNorm(x, weight: norm.weight.value, epsilon: norm.epsilon) }
    let size = inner / shape.groups
    let ones = x.backend.filled([size], with: 1)
    let rows = rmsNorm(x.reshaped([x.rows * shape.groups, size]), weight: ones, epsilon: norm.epsilon)
    return scaleColumns(rows.reshaped(x.shape), by: norm.weight.value)
  }

  func makeCache(_ backend: any Backend, _ room: CacheRoom) -> any MixerCache {
    RecurrentCache(
      backend, room, state: [shape.heads, shape.keySize, shape.valueSize],
      histories: [(4, inner + 2 * stateChannels)])
  }

  func cacheElements(context: Int) -> CacheElements {
    CacheElements(activations: 4 * (inner + 2 * stateChannels), states: shape.stateElements)
  }
}
