import CUDA
import Tensors

/// Norms, gates, losses and the optimizer by the kernels over rows, which take activations of one type and weights in
/// float32.
extension CUDABackend {
  /// How the heads of x lie, of `columns` channels each, where it is columns of wider rows.
  private func heads(_ x: Tensor, _ columns: Int) -> RowKernels.Heads? {
    x.isDense ? nil : RowKernels.Heads(x.columns / columns, stride: x.rowStride)
  }

  private func type(_ x: Tensor) -> RowKernels.Elements { x.dtype == .bfloat16 ? .bfloat16 : .float32 }

  package func normalize(_ x: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor) {
    writing(y, as: x.dtype) { y in
      run("normalize") {
        try rows(type(x)).normalize(
          x.deviceView, weight: weight.deviceView, rows: x.count / weight.count, columns: weight.count,
          epsilon: epsilon,
          into: y.deviceView, inverse: inverse.deviceView)
      }
    }
  }

  package func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, into dx: Tensor?, adds: Bool, dWeight: Tensor?,
    addsWeight: Bool
  ) {
    normalizeBackward(
      dy, x, weight: weight, inverse: inverse, base: adds ? dx : nil, into: dx, dWeight: dWeight, addsWeight: addsWeight
    )
  }

  package func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, onto base: Tensor, into dx: Tensor,
    dWeight: Tensor?, addsWeight: Bool
  ) {
    normalizeBackward(
      dy, x, weight: weight, inverse: inverse, base: base, into: dx, dWeight: dWeight, addsWeight: addsWeight)
  }

  private func normalizeBackward(
    _ dy: Tensor, _ x: Tensor, weight: Tensor, inverse: Tensor, base: Tensor?, into dx: Tensor?, dWeight: Tensor?,
    addsWeight: Bool
  ) {
    let (count, columns) = (x.count / weight.count, weight.count)
    let dy = converted(dy, to: x.dtype)
    let kernels = rows(type(x))
    let workspace = empty([max(1, RowKernels.normalizeWorkspaceCount(rows: count, columns: columns))])
    guard let dx else {
      guard let dWeight else { return }
      return run("normalizeBackward") {
        try kernels.normalizeWeightBackward(
          dy.deviceView, x.deviceView, inverse: inverse.deviceView, rows: count, columns: columns,
          dWeight: dWeight.deviceView, addsWeight: addsWeight, workspace: workspace.deviceView)
      }
    }
    let base = base.map { converted($0, to: x.dtype) }
    writing(dx, as: x.dtype) { dx in
      run("normalizeBackward") {
        try kernels.normalizeBackward(
          dy.deviceView, x.deviceView, weight: weight.deviceView, inverse: inverse.deviceView, rows: count,
          columns: columns, dx: dx.deviceView, onto: base.map(\.deviceView), dWeight: dWeight?.deviceView,
          addsWeight: addsWeight,
          workspace: workspace.deviceView)
      }
    }
  }

  package func gatedNormalize(
    _ x: Tensor, gate: Tensor, weight: Tensor, epsilon: Float, into y: Tensor, inverse: Tensor
  ) {
    let gate = converted(gate, to: x.dtype)
    writing(y, as: x.dtype) { y in
      run("gatedNormalize") {
        try rows(type(x)).normalize(
          x.deviceView, gate: gate.deviceView, gateView: heads(gate, weight.count), weight: weight.deviceView,
          rows: x.count / weight.count, columns: weight.count, epsilon: epsilon, into: y.deviceView,
          inverse: inverse.deviceView)
      }
    }
  }

  package func gatedNormalizeBackward(
    _ dy: Tensor, _ x: Tensor, gate: Tensor, weight: Tensor, inverse: Tensor, dx: Tensor, dGate: Tensor,
    dWeight: Tensor?, addsWeight: Bool
  ) {
    let (count, columns) = (x.count / weight.count, weight.count)
    let (dy, gate) = (converted(dy, to: x.dtype), converted(gate, to: x.dtype))
    let workspace = empty([max(1, RowKernels.normalizeWorkspaceCount(rows: count, columns: columns))])
    writing(dx, as: x.dtype) { dx in
      writing(dGate, as: x.dtype) { dGate in
        run("gatedNormalizeBackward") {
          try rows(type(x)).normalizeBackward(
            dy.deviceView, x.deviceView, gate: gate.deviceView, gateView: heads(gate, columns),
            weight: weight.deviceView,
            inverse: inverse.deviceView, rows: count, columns: columns, dx: dx.deviceView, dGate: dGate.deviceView,
            dGateView: heads(dGate, columns), dWeight: dWeight?.deviceView,
            addsWeight: addsWeight, workspace: workspace.deviceView)
        }
      }
    }
  }

  package func siluNormalize(_ x: Tensor, epsilon: Float, into y: Tensor) {
    let columns = x.shape[x.shape.count - 1]
    writing(y, as: x.dtype) { y in
      run("siluNormalize") {
        try rows(type(x)).siluNormalize(
          x.deviceView, view: heads(x, columns), rows: x.count / columns, columns: columns, epsilon: epsilon,
          into: y.deviceView)
      }
    }
  }

  package func siluNormalizeBackward(_ dy: Tensor, _ x: Tensor, epsilon: Float, into dx: Tensor) {
    let columns = x.shape[x.shape.count - 1]
    let dy = converted(dy, to: x.dtype)
    writing(dx, as: x.dtype) { dx in
      run("siluNormalizeBackward") {
        try rows(type(x)).siluNormalizeBackward(
          dy.deviceView, x.deviceView, view: heads(x, columns), rows: x.count / columns, columns: columns,
          epsilon: epsilon, dx: dx.deviceView, dView: heads(dx, columns))
      }
    }
  }

  /// Both, with their rows the same distance apart, which the kernels want.
  private func alike(_ x: Tensor, _ y: Tensor) -> (Tensor, Tensor) {
    x.rowStride == y.rowStride ? (x, y) : (dense(x), dense(y))
  }

  package func swiGLU(gate: Tensor, up: Tensor, into y: Tensor) {
    let (gate, up) = alike(gate, converted(up, to: gate.dtype))
    writing(y, as: gate.dtype, isDense: true) { y in
      run("swiGLU") {
        try rows(type(gate)).swiGLU(
          gate: gate.deviceView, up: up.deviceView, stride: gate.rowStride, rows: gate.rows, columns: gate.columns,
          into: y.deviceView)
      }
    }
  }

  package func swiGLUBackward(_ dy: Tensor, gate: Tensor, up: Tensor, dGate: Tensor, dUp: Tensor) {
    let dy = dense(converted(dy, to: gate.dtype))
    let (gate, up) = alike(gate, converted(up, to: gate.dtype))
    let isAlike = dGate.rowStride == dUp.rowStride
    writing(dGate, as: gate.dtype, isDense: !isAlike) { dGate in
      writing(dUp, as: gate.dtype, isDense: !isAlike) { dUp in
        run("swiGLUBackward") {
          try rows(type(gate)).swiGLUBackward(
            dy.deviceView, gate: gate.deviceView, up: up.deviceView, stride: gate.rowStride, rows: gate.rows,
            columns: gate.columns, dGate: dGate.deviceView, dUp: dUp.deviceView, dStride: dGate.rowStride)
        }
      }
    }
  }

  package func decayGate(a: Tensor, b: Tensor, aLog: Tensor, dtBias: Tensor, g: Tensor, beta: Tensor) {
    let b = converted(b, to: a.dtype)
    run("decayGate") {
      try rows(type(a)).decayGate(
        a: a.deviceView, b: b.deviceView, strides: (a.rowStride, b.rowStride), aLog: aLog.deviceView,
        dtBias: dtBias.deviceView, tokens: a.rows, heads: a.columns, g: g.deviceView, beta: beta.deviceView)
    }
  }

  package func decayGateBackward(
    dG: Tensor, dBeta: Tensor, a: Tensor, beta: Tensor, aLog: Tensor, dtBias: Tensor, dA: Tensor, dB: Tensor,
    dALog: Tensor, dDtBias: Tensor
  ) {
    let (dG, dBeta) = (converted(dG, to: .float32), converted(dBeta, to: .float32))
    writing(dA, as: a.dtype) { dA in
      writing(dB, as: a.dtype) { dB in
        run("decayGateBackward") {
          try rows(type(a)).decayGateBackward(
            dG: dG.deviceView, dBeta: dBeta.deviceView, a: a.deviceView, aStride: a.rowStride, beta: beta.deviceView,
            aLog: aLog.deviceView, dtBias: dtBias.deviceView, tokens: a.rows, heads: a.columns, dA: dA.deviceView,
            dB: dB.deviceView, strides: (dA.rowStride, dB.rowStride), dALog: dALog.deviceView,
            dDtBias: dDtBias.deviceView)
        }
      }
    }
  }

  // MARK: - Losses and the optimizer

  package func vocabularyLoss(
    logits: Tensor, teacherLogits: Tensor?, labels: Tensor, crossEntropyScale: Float, klScale: Float,
    crossEntropy: Tensor, kl: Tensor
  ) {
    let teacher = teacherLogits.map { converted($0, to: logits.dtype) }
    _ = labels.integers
    run("vocabularyLoss") {
      try rows(type(logits)).vocabularyLoss(
        logits: logits.deviceView, teacherLogits: teacher?.deviceView, labels: labels.deviceView, rows: logits.rows,
        columns: logits.columns, crossEntropyScale: crossEntropyScale, klScale: klScale,
        crossEntropy: crossEntropy.deviceView, kl: kl.deviceView)
    }
  }

  package func squaredError(
    _ x: Tensor, target: Tensor, seed: Float, losses: Tensor, into dx: Tensor?, adds: Bool
  ) {
    let target = converted(target, to: x.dtype)
    func compute(_ dx: Tensor?) {
      run("squaredError") {
        try rows(type(x)).squaredError(
          x.deviceView, target: target.deviceView, rows: x.rows, columns: x.columns, seed: seed,
          losses: losses.deviceView, into: dx?.deviceView, adds: adds)
      }
    }
    if let dx { writing(dx, as: x.dtype, adds: adds, compute) } else { compute(nil) }
  }

  package func adamW(
    parameters: Tensor, gradients: Tensor, moment1: Tensor, moment2: Tensor, step: Tensors.AdamWStep
  ) {
    update(parameters, gradients, moment1, moment2, step, copy: nil)
  }

  package func adamW(
    parameters: Tensor, gradients: Tensor, moment1: Tensor, moment2: Tensor, step: Tensors.AdamWStep, copy: Tensor
  ) {
    update(parameters, gradients, moment1, moment2, step, copy: copy)
  }

  private func update(
    _ parameters: Tensor, _ gradients: Tensor, _ moment1: Tensor, _ moment2: Tensor, _ step: Tensors.AdamWStep,
    copy: Tensor?
  ) {
    _ = copy?.address(of: .bfloat16)
    for tensor in [parameters, gradients, moment1, moment2] { _ = tensor.floats }
    run("adamW") {
      try rows(.float32).adamW(
        parameters: parameters.deviceView, gradients: gradients.deviceView, moment1: moment1.deviceView,
        moment2: moment2.deviceView, copy: copy?.deviceView, count: parameters.count,
        step: RowKernels.AdamWStep(
          gradientScale: step.gradientScale, beta1: step.beta1, beta2: step.beta2, correction1: step.correction1,
          correction2: step.correction2, epsilon: step.epsilon, learningRate: step.learningRate,
          weightDecay: step.weightDecay))
    }
  }
}
