import Ops
import Tensors

/// y = x Wᵀ (+ b), W `[out, in]`.
package struct Linear {
  package let weight: Parameter
  package let bias: Parameter?

  /// Creates `weight` and, if asked, `bias` under `scope`.
  package init(_ scope: ParameterScope, _ inputs: Int, _ outputs: Int, bias: Bool = false) {
    weight = scope.parameter("weight", [outputs, inputs], .normal(scope.deviation), kind: .matrix)
    self.bias = bias ? scope.parameter("bias", [outputs], .zeros) : nil
  }

  /// `[N, in]` to `[N, out]`, added to `residual` of that shape.
  package func callAsFunction(_ x: Tensor, onto residual: Tensor? = nil) -> Tensor {
    linear(x, weight.value, bias: bias?.value, onto: residual)
  }
}

/// Several linear layers of one input, computed as one: their matrices are rows of one matrix, their outputs columns of one
/// array. Files have them one by one.
package final class PackedLinear {
  private let inputs: Int
  private let weights = ParameterPack()
  private let biases = ParameterPack()
  private var widths: [Int] = []

  /// No layers yet, of an input `[N, inputs]`.
  package init(inputs: Int) { self.inputs = inputs }

  /// Adds a layer whose `weight` and, if asked, `bias` are created under `scope`; all have a bias or none.
  ///
  /// - Returns: the place of its output among those of all layers
  package func add(_ scope: ParameterScope, _ outputs: Int, bias: Bool = false) -> Int {
    precondition(widths.isEmpty || bias == !biases.parameters.isEmpty, "layers with and without bias in one matrix")
    _ = scope.parameter("weight", [outputs, inputs], .normal(scope.deviation), kind: .matrix, in: weights)
    if bias { _ = scope.parameter("bias", [outputs], .zeros, in: biases) }
    widths.append(outputs)
    return widths.count - 1
  }

  /// `[N, in]` to the outputs `[N, out]` of all layers: columns of one array, where the backend reads such.
  package func callAsFunction(_ x: Tensor) -> [Tensor] {
    split(linear(x, weights.blocks, biases: biases.blocks), widths)
  }
}

/// Root-mean-square normalisation with a weight `[size]`, or one more than it (Gemma).
package struct RMSNorm {
  package let weight: Parameter
  package let epsilon: Float
  private let addsOne: Bool

  /// Creates `weight` under `scope`.
  package init(_ scope: ParameterScope, _ size: Int, epsilon: Float, addsOne: Bool = false) {
    weight = scope.parameter("weight", [size], addsOne ? .zeros : .ones)
    self.epsilon = epsilon
    self.addsOne = addsOne
  }

  /// `[N, size]` to the same shape.
  package func callAsFunction(_ x: Tensor) -> Tensor {
    rmsNorm(x, weight: addsOne ? plusOne(weight.value) : weight.value, epsilon: epsilon)
  }
}

/// The gated feed-forward block: down(f(gate x) · up x), f being SiLU or GELU.
package struct GatedFeedForward {
  private let activation: ElementFunction
  private let projections: PackedLinear
  private let gate: Int
  private let up: Int
  private let down: Linear

  /// Creates `gate_proj`, `up_proj` and `down_proj` under `scope`.
  package init(_ scope: ParameterScope, hidden: Int, intermediate: Int, activation: ElementFunction = .silu) {
    self.activation = activation
    projections = PackedLinear(inputs: hidden)
    gate = projections.add(scope.scope("gate_proj"), intermediate)
    up = projections.add(scope.scope("up_proj"), intermediate)
    down = Linear(scope.scope("down_proj"), intermediate, hidden)
  }

  /// `[N, hidden]` to the same shape, added to `residual`.
  package func callAsFunction(_ x: Tensor, onto residual: Tensor? = nil) -> Tensor {
    let projected = projections(x)
    let (gate, up) = (projected[gate], projected[up])
    return down(
      activation == .silu ? swiGLU(gate: gate, up: up) : multiplyElements(apply(activation, gate), up), onto: residual)
  }
}
