import NN
import Ops
import Tensors

/// Jet-Nemotron's linear attention: a gated delta rule whose values pass a convolution with taps computed from
/// the input (arXiv 2508.15884, section 2.3; RECIPE section 3).
struct JetBlock: TokenMixer {
  private let q: Linear
  private let k: Linear
  private let v: Linear
  private let g: Linear
  private let a: Linear
  private let b: Linear
  private let o: Linear
  private let aLog: Parameter
  private let dtBias: Parameter
  private let norm: RMSNorm
  private let kernel1: Linear
  private let kernel2: Linear
  private let shape: JetConfiguration

  init(_ scope: ParameterScope, hidden: Int, _ shape: JetConfiguration) {
    self.shape = shape
    let (heads, values) = (shape.heads, shape.heads * shape.valueSize)
    q = Linear(scope.scope("q_proj"), hidden, heads * shape.keySize)
    k = Linear(scope.scope("k_proj"), hidden, heads * shape.keySize)
    v = Linear(scope.scope("v_proj"), hidden, values)
    g = Linear(scope.scope("g_proj"), hidden, values)
    a = Linear(scope.scope("a_proj"), hidden, heads)
    b = Linear(scope.scope("b_proj"), hidden, heads)
    o = Linear(scope.scope("o_proj"), values, hidden)
    aLog = scope.parameter("A_log", [heads], .logDecay)
    dtBias = scope.parameter("dt_bias", [heads], .timeStepBias)
    norm = RMSNorm(scope.scope("o_norm"), shape.valueSize, epsilon: shape.epsilon)
    let generator = scope.scope("dynamic_conv1d").scope("kernel_generator")
    kernel1 = Linear(generator.scope("w1"), hidden, values / shape.reduction)
    // w2 begins at zero and its bias passes the current token on (RECIPE section 5).
    let second = generator.scope("w2")
    kernel2 = Linear(
      weight: second.parameter("weight", [values * shape.convolutionSize, values / shape.reduction], .zeros),
      bias: second.parameter(
        "bias", [values * shape.convolutionSize], .identityTap(taps: shape.convolutionSize)))
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?) -> Tensor {
    let (n, heads, values) = (x.rows, shape.heads, shape.heads * shape.valueSize)
    let cache = cache as? RecurrentCache
    let queries = siluNormalize(q(x).reshaped([n, heads, shape.keySize]))
    let keys = siluNormalize(k(x).reshaped([n, heads, shape.keySize]))
    let projected = v(x)
    let kernels = kernel2(silu(kernel1(x))).reshaped([n, values, shape.convolutionSize])
    let convolved = dynamicConvolution(
      projected, kernels: kernels, layout: batch.layout, history: cache?.histories[0])
    let gates = decayGate(a: a(x), b: b(x), aLog: aLog.value, dtBias: dtBias.value)
    let mixed = gatedDeltaRule(
      q: queries, k: keys, v: convolved.reshaped([n, heads, shape.valueSize]), g: gates.g,
      beta: gates.beta, layout: batch.layout, initial: cache?.state, final: cache?.state)
    cache?.remember(projected, batch.layout.segments)
    return o(gatedRMSNorm(mixed, gate: g(x), weight: norm.weight.value, epsilon: norm.epsilon))
  }

  func makeCache(_ backend: any Backend, sequences: Int, capacity: Int) -> any MixerCache {
    RecurrentCache(
      backend, sequences: sequences, state: [shape.heads, shape.keySize, shape.valueSize],
      histories: [(shape.convolutionSize, shape.heads * shape.valueSize)])
  }

  func cacheElements(context: Int) -> Int {
    shape.heads * shape.valueSize * (shape.keySize + shape.convolutionSize)
  }

  var headShape: HeadShape? {
    HeadShape(heads: shape.heads, keySize: shape.keySize, valueSize: shape.valueSize)
  }
}
