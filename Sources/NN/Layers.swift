import Ops
import Tensors

/// y = x Wᵀ (+ b), W `[out, in]`.
package struct Linear {
  package let weight: Parameter
  package let bias: Parameter?

  /// Creates `weight` and, if asked, `bias` under `scope`.
  package init(_ scope: ParameterScope, _ inputs: Int, _ outputs: Int, bias: Bool = false) {
    weight = scope.parameter("weight", [outputs, inputs], .normal(scope.deviation))
    self.bias = bias ? scope.parameter("bias", [outputs], .zeros) : nil
  }

  /// A layer of parameters that were created elsewhere, with an initialisation of their own.
  package init(weight: Parameter, bias: Parameter?) {
    self.weight = weight
    self.bias = bias
  }

  /// `[N, in]` to `[N, out]`.
  package func callAsFunction(_ x: Tensor) -> Tensor {
    linear(x, weight.value, bias: bias?.value)
  }
}

/// Root-mean-square normalisation with a weight `[size]`.
package struct RMSNorm {
  package let weight: Parameter
  package let epsilon: Float

  /// Creates `weight` under `scope`.
  package init(_ scope: ParameterScope, _ size: Int, epsilon: Float) {
    weight = scope.parameter("weight", [size], .ones)
    self.epsilon = epsilon
  }

  /// `[N, size]` to the same shape.
  package func callAsFunction(_ x: Tensor) -> Tensor {
    rmsNorm(x, weight: weight.value, epsilon: epsilon)
  }
}

/// The gated feed-forward block: down(SiLU(gate x) · up x).
package struct SwiGLU {
  private let gate: Linear
  private let up: Linear
  private let down: Linear

  /// Creates `gate_proj`, `up_proj` and `down_proj` under `scope`.
  package init(_ scope: ParameterScope, hidden: Int, intermediate: Int) {
    gate = Linear(scope.scope("gate_proj"), hidden, intermediate)
    up = Linear(scope.scope("up_proj"), hidden, intermediate)
    down = Linear(scope.scope("down_proj"), intermediate, hidden)
  }

  /// `[N, hidden]` to the same shape.
  package func callAsFunction(_ x: Tensor) -> Tensor {
    down(swiGLU(gate: gate(x), up: up(x)))
  }
}
