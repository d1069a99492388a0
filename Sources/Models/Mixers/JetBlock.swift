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
    let cache = cache as? JetCache
    let queries = siluNormalize(q(x).reshaped([n, heads, shape.keySize]))
    let keys = siluNormalize(k(x).reshaped([n, heads, shape.keySize]))
    let projected = v(x)
    let kernels = kernel2(silu(kernel1(x))).reshaped([n, values, shape.convolutionSize])
    let convolved = dynamicConvolution(
      projected, kernels: kernels, segments: batch.segments, history: cache?.history)
    let gates = decayGate(a: a(x), b: b(x), aLog: aLog.value, dtBias: dtBias.value)
    let mixed = gatedDeltaRule(
      q: queries, k: keys, v: convolved.reshaped([n, heads, shape.valueSize]), g: gates.g,
      beta: gates.beta, segments: batch.segments, initial: cache?.state, final: cache?.state)
    cache?.remember(projected, batch.segments)
    return o(gatedRMSNorm(mixed, gate: g(x), weight: norm.weight.value, epsilon: norm.epsilon))
  }

  func makeCache(_ backend: any Backend, sequences: Int, capacity: Int) -> any MixerCache {
    JetCache(backend, shape, sequences: sequences)
  }
}

/// The state of every head and the last inputs of the convolution: the same size at any context.
final class JetCache: MixerCache {
  /// `[sequences, H, K, V]`
  private(set) var state: Tensor
  /// `[sequences, 4, H·V]`, newest last
  private(set) var history: Tensor

  init(_ backend: any Backend, _ shape: JetConfiguration, sequences: Int) {
    state = backend.zeros([sequences, shape.heads, shape.keySize, shape.valueSize])
    history = backend.zeros([sequences, shape.convolutionSize, shape.heads * shape.valueSize])
  }

  var byteCount: Int { (state.count + history.count) * 4 }

  func select(_ sequences: [Int]) {
    func selected(_ x: Tensor) -> Tensor {
      let out = x.backend.empty([sequences.count] + x.shape.dropFirst())
      for (place, sequence) in sequences.enumerated() {
        x.backend.copy(x.rows(sequence..<sequence + 1), into: out.rows(place..<place + 1))
      }
      return out
    }
    (state, history) = (selected(state), selected(history))
  }

  func assume(_ length: Int) {}

  /// Shifts the newest rows of every segment of `inputs` `[N, H·V]` into its sequence's history.
  func remember(_ inputs: Tensor, _ segments: Segments) {
    let backend = history.backend
    let taps = history.shape[1]
    let rows = history.reshaped([history.rows * taps, history.shape[2]])
    for (sequence, range) in segments.ranges.enumerated() where !range.isEmpty {
      let first = sequence * taps
      let fresh = min(range.count, taps)
      for row in first..<first + taps - fresh {
        backend.copy(rows.rows(row + fresh..<row + fresh + 1), into: rows.rows(row..<row + 1))
      }
      backend.copy(
        inputs.rows(range.upperBound - fresh..<range.upperBound),
        into: rows.rows(first + taps - fresh..<first + taps))
    }
  }
}
