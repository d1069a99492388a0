import NN
import Ops
import Tensors

/// Jet-Nemotron's linear attention: a gated delta rule whose values pass a convolution with taps computed from
/// the input (arXiv 2508.15884, section 2.3; RECIPE section 3).
struct JetBlock: TokenMixer {
  /// Of q, k, v, the output's gate g, the state's gates a and b, and the first layer of the kernel generator.
  private let projections: PackedLinear
  private let (q, k, v, g, a, b, kernel1): (Int, Int, Int, Int, Int, Int, Int)
  private let o: Linear
  private let aLog: Parameter
  private let dtBias: Parameter
  private let norm: RMSNorm
  /// Of the second, which has four outputs a value channel.
  private let kernelWeight: Parameter
  private let kernelBias: Parameter
  private let shape: JetConfiguration
  /// Beside the squares that queries and keys are divided by the root of.
  private static let lengthEpsilon: Float = 1e-6

  init(_ scope: ParameterScope, hidden: Int, _ shape: JetConfiguration) {
    self.shape = shape
    let (heads, values) = (shape.heads, shape.heads * shape.valueSize)
    projections = PackedLinear(inputs: hidden)
    q = projections.add(scope.scope("q_proj"), heads * shape.keySize)
    k = projections.add(scope.scope("k_proj"), heads * shape.keySize)
    v = projections.add(scope.scope("v_proj"), values)
    g = projections.add(scope.scope("g_proj"), values)
    a = projections.add(scope.scope("a_proj"), heads)
    b = projections.add(scope.scope("b_proj"), heads)
    o = Linear(scope.scope("o_proj"), values, hidden)
    aLog = scope.parameter("A_log", [heads], .logDecay)
    dtBias = scope.parameter("dt_bias", [heads], .timeStepBias)
    norm = RMSNorm(scope.scope("o_norm"), shape.valueSize, epsilon: shape.epsilon)
    let generator = scope.scope("dynamic_conv1d").scope("kernel_generator")
    kernel1 = projections.add(generator.scope("w1"), values / shape.reduction)
    // w2 begins at zero and its bias passes the current token on (RECIPE section 5).
    let second = generator.scope("w2")
    let taps = values * shape.convolutionSize
    kernelWeight = second.parameter("weight", [taps, values / shape.reduction], .zeros, kind: .matrix)
    kernelBias = second.parameter("bias", [taps], .identityTap(taps: shape.convolutionSize))
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?, onto residual: Tensor?) -> Tensor {
    let (n, heads) = (x.rows, shape.heads)
    let cache = cache as? RecurrentCache
    let projected = projections(x)
    func output(_ mixed: Tensor) -> Tensor {
      o(gatedRMSNorm(mixed, gate: projected[g], weight: norm.weight.value, epsilon: norm.epsilon), onto: residual)
    }
    if let cache, batch.layout.isDecoding {
      let mixed = x.backend.empty([n, heads, shape.valueSize], x.dtype)
      x.backend.jetStep(
        JetStep(
          q: projected[q], k: projected[k], v: projected[v], a: projected[a], b: projected[b],
          taps: linear(silu(projected[kernel1]), kernelWeight.value), tapBias: kernelBias.value, aLog: aLog.value,
          dtBias: dtBias.value, history: cache.histories[0], state: cache.state, epsilon: Self.lengthEpsilon),
        layout: batch.layout, into: mixed)
      return output(mixed)
    }
    let queries = siluNormalize(projected[q].reshaped([n, heads, shape.keySize]), epsilon: Self.lengthEpsilon)
    let keys = siluNormalize(projected[k].reshaped([n, heads, shape.keySize]), epsilon: Self.lengthEpsilon)
    let convolved = dynamicConvolution(
      projected[v], inner: silu(projected[kernel1]), weight: kernelWeight.value, bias: kernelBias.value,
      layout: batch.layout, history: cache?.histories[0])
    let gates = decayGate(a: projected[a], b: projected[b], aLog: aLog.value, dtBias: dtBias.value)
    let mixed = gatedDeltaRule(
      q: queries, k: keys, v: convolved.reshaped([n, heads, shape.valueSize]), g: gates.g,
      beta: gates.beta, layout: batch.layout, initial: cache?.state, final: cache?.state)
    cache?.remember(projected[v], batch.layout)
    return output(mixed)
  }

  func makeCache(_ backend: any Backend, _ room: CacheRoom) -> any MixerCache {
    RecurrentCache(
      backend, room, state: [shape.heads, shape.keySize, shape.valueSize],
      histories: [(shape.convolutionSize, shape.heads * shape.valueSize)])
  }

  func cacheElements(context: Int) -> CacheElements {
    CacheElements(
      activations: shape.heads * shape.valueSize * shape.convolutionSize,
      states: shape.heads * shape.keySize * shape.valueSize)
  }

  var headShape: HeadShape? {
    HeadShape(heads: shape.heads, keySize: shape.keySize, valueSize: shape.valueSize)
  }
}
