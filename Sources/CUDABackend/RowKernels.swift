import CUDA

/// Kernels over rows and elements: norms, gates, the dynamic convolution, losses, AdamW (Kernels/Normalization.cu,
/// DynamicConvolution.cu, Losses.cu, Elementwise.cu).
///
/// Activations and their gradients are of the type that `elements` says; weights, their gradients and what is kept beside
/// activations are float32. Everything runs in stream order; the same inputs give the same bits.
package final class RowKernels: @unchecked Sendable {
  package typealias Elements = GatedDeltaRule.Elements

  /// How rows that are heads lie: so many in a token, tokens so many elements apart; nil where all lie end to end.
  package struct Heads: Sendable {
    let heads, stride: Int

    package init(_ heads: Int, stride: Int) { (self.heads, self.stride) = (heads, stride) }
  }

  private func argument(_ view: Heads?, columns: Int) -> KernelArgument {
    A(view?.heads ?? 1, view?.stride ?? columns)
  }

  package let device: Device
  package let elements: Elements
  private let kernels: [String: Kernel]
  private typealias A = KernelArgument

  package init(_ library: KernelLibrary, elements: Elements) throws {
    (device, self.elements) = (library.device, elements)
    let files = [
      "Normalization.cu": [
        "normalize", "normalizeBackward", "normalizeBackwardWithParts", "normalizeBackwardByColumns",
        "normalizeWeightParts", "addParts",
        "siluNormalize", "siluNormalizeBackward",
      ],
      "DynamicConvolution.cu": ["dynamicConvolution", "dynamicConvolutionBackward"],
      "Losses.cu": ["vocabularyLoss", "squaredError"],
      "Elementwise.cu": ["decayGate", "decayGateBackward", "swiGLU", "swiGLUBackward", "adamW", "sumsOfSquares"],
    ]
    var kernels: [String: Kernel] = [:]
    for (file, names) in files {
      let module = try library.module(file, defines: ["ELEMENT": elements == .bfloat16 ? "bf16" : "float"])
      for name in names { kernels[name] = try module.kernel(name) }
    }
    self.kernels = kernels
  }

  private func launch(
    _ name: String, grid: (Int, Int), threads: Int = 256, _ arguments: [KernelArgument]
  ) throws {
    try kernels[name]!.launch(grid: (grid.0, grid.1, 1), threads: threads, arguments)
  }

  /// Parts that sums over rows are cut into, by the number of rows alone.
  private static func parts(rows: Int) -> (count: Int, rows: Int) {
    // About as many as run at once on a large card.
    let rowsPerPart = max(16, (rows + 395) / 396)
    return ((rows + rowsPerPart - 1) / rowsPerPart, rowsPerPart)
  }

  /// y = x / rms(x) · weight over rows of `columns`, with `gate` times SiLU(gate); `inverse` [rows] keeps 1 / rms.
  package func normalize(
    _ x: any DeviceMemory, gate: (any DeviceMemory)? = nil, gateView: Heads? = nil, weight: any DeviceMemory, rows: Int,
    columns: Int, epsilon: Float, into y: any DeviceMemory, inverse: any DeviceMemory
  ) throws {
    try launch(
      "normalize", grid: (columns <= 256 ? (rows + 31) / 32 : (rows + 7) / 8, 1),
      [
        A(x), A(gate), argument(gateView, columns: columns), A(weight), A(rows), A(columns), A(epsilon), A(y),
        A(inverse),
      ])
  }

  /// Floats of scratch memory that the gradient of a norm's weight wants.
  package static func normalizeWorkspaceCount(rows: Int, columns: Int) -> Int { parts(rows: rows).count * columns }

  package func normalizeBackward(
    _ dy: any DeviceMemory, _ x: any DeviceMemory, gate: (any DeviceMemory)? = nil, gateView: Heads? = nil,
    weight: any DeviceMemory, inverse: any DeviceMemory, rows: Int, columns: Int, dx: any DeviceMemory,
    onto base: (any DeviceMemory)? = nil, dGate: (any DeviceMemory)? = nil, dGateView: Heads? = nil,
    dWeight: (any DeviceMemory)?,
    addsWeight: Bool,
    workspace: any DeviceMemory
  ) throws {
    let parts = Self.parts(rows: rows)
    precondition(
      dWeight == nil || workspace.byteCount >= 4 * parts.count * columns, "a workspace of \(workspace.byteCount) bytes")
    let isEven = [dy, x, gate, weight, dx, base, dGate].allSatisfy { $0.map { $0.address % 16 == 0 } ?? true }
    let strides = (gateView?.stride ?? 0) | (dGateView?.stride ?? 0)
    if let dWeight, columns % 8 == 0, (257...2048).contains(columns), isEven, gate == nil {
      try launch(
        "normalizeBackwardByColumns", grid: (parts.count, 1), threads: (columns / 8 + 31) / 32 * 32,
        [
          A(dy), A(x), A(weight), A(inverse), A(rows), A(columns), A(parts.rows), A(dx), A(base),
          A(workspace),
        ])
      return try addParts(workspace, parts: parts.count, columns: columns, adds: addsWeight, into: dWeight)
    }
    if let dWeight, columns % 8 == 0, columns <= 256, isEven, strides % 8 == 0 {
      try launch(
        "normalizeBackwardWithParts", grid: (parts.count, 1),
        [
          A(dy), A(x), A(gate), argument(gateView, columns: columns), A(weight), A(inverse), A(rows), A(columns),
          A(parts.rows), A(dx), A(base), A(dGate), argument(dGateView, columns: columns), A(workspace),
        ])
      return try addParts(workspace, parts: parts.count, columns: columns, adds: addsWeight, into: dWeight)
    }
    try launch(
      "normalizeBackward", grid: ((rows + 7) / 8, 1),
      [
        A(dy), A(x), A(gate), argument(gateView, columns: columns), A(weight), A(inverse), A(rows), A(columns), A(dx),
        A(base), A(dGate), argument(dGateView, columns: columns),
      ])
    guard let dWeight else { return }
    try launch(
      "normalizeWeightParts", grid: ((columns + 255) / 256, parts.count),
      [
        A(dy), A(x), A(gate), argument(gateView, columns: columns), A(inverse), A(rows), A(columns), A(parts.rows),
        A(workspace),
      ])
    try addParts(workspace, parts: parts.count, columns: columns, adds: addsWeight, into: dWeight)
  }

  private func addParts(
    _ partial: any DeviceMemory, parts: Int, columns: Int, adds: Bool, into sums: any DeviceMemory
  ) throws {
    try launch(
      "addParts", grid: ((columns + 31) / 32, 1), threads: 1024,
      [A(partial), A(parts), A(columns), A(adds ? 1 : 0), A(sums)])
  }

  /// y = SiLU(x) / √(Σ SiLU(x)² + epsilon) over rows of `columns`.
  package func siluNormalize(
    _ x: any DeviceMemory, view: Heads? = nil, rows: Int, columns: Int, epsilon: Float, into y: any DeviceMemory
  ) throws {
    try launch(
      "siluNormalize", grid: ((rows + 63) / 64, 1),
      [A(x), argument(view, columns: columns), A(rows), A(columns), A(epsilon), A(y)])
  }

  package func siluNormalizeBackward(
    _ dy: any DeviceMemory, _ x: any DeviceMemory, view: Heads? = nil, rows: Int, columns: Int, epsilon: Float,
    dx: any DeviceMemory, dView: Heads? = nil
  ) throws {
    try launch(
      "siluNormalizeBackward", grid: ((rows + 63) / 64, 1),
      [
        A(dy), A(x), argument(view, columns: columns), A(rows), A(columns), A(epsilon), A(dx),
        argument(dView, columns: columns),
      ])
  }

  /// Tokens that a thread of the convolution takes; as RUN of DynamicConvolution.cu.
  private static let run = 32

  /// y[t, c] = SiLU(Σ_w (taps[t, c, w] + bias[c, w]) · x[t − 3 + w, c]) within the document that begins at starts[t];
  /// x, y [N, C], taps [N, C, 4], bias [C, 4], starts [N] int32; tokens
  /// of x may be `stride` elements apart.
  package func dynamicConvolution(
    _ x: any DeviceMemory, stride: Int? = nil, taps: any DeviceMemory, bias: (any DeviceMemory)?,
    starts: any DeviceMemory,
    tokens: Int, channels: Int, into y: any DeviceMemory
  ) throws {
    try launch(
      "dynamicConvolution", grid: ((channels + 255) / 256, (tokens + Self.run - 1) / Self.run),
      [A(x), A(stride ?? channels), A(taps), A(bias), A(starts), A(tokens), A(channels), A(y)])
  }

  /// Floats of scratch memory that the gradient of the taps' bias wants.
  package static func convolutionWorkspaceCount(tokens: Int, channels: Int) -> Int {
    (tokens + run - 1) / run * channels * 4
  }

  /// - Parameter bias: with its gradient; both nil where there is none
  package func dynamicConvolutionBackward(
    _ dy: any DeviceMemory, _ x: any DeviceMemory, stride: Int? = nil, taps: any DeviceMemory,
    bias: (any DeviceMemory)?, starts: any DeviceMemory, tokens: Int, channels: Int, dx: any DeviceMemory,
    dStride: Int? = nil, dTaps: any DeviceMemory,
    dBias: (any DeviceMemory)?, addsBias: Bool, workspace: (any DeviceMemory)?
  ) throws {
    let runs = (tokens + Self.run - 1) / Self.run
    precondition(
      dBias == nil
        || workspace!.byteCount >= 4 * Self.convolutionWorkspaceCount(tokens: tokens, channels: channels),
      "no workspace for the gradient of the bias")
    try launch(
      "dynamicConvolutionBackward", grid: ((channels + 255) / 256, runs),
      [
        A(dy), A(x), A(stride ?? channels), A(taps), A(bias), A(starts), A(tokens), A(channels), A(dx),
        A(dStride ?? channels), A(dTaps), A(dBias == nil ? nil : workspace),
      ])
    if let dBias, let workspace {
      try addParts(workspace, parts: runs, columns: channels * 4, adds: addsBias, into: dBias)
    }
  }

  /// g = −e^aLog · softplus(a + dtBias), beta = sigmoid(b); a, b [N, H], g, beta [N, H] float32.
  /// Tokens of a and b may be `strides` elements apart.
  package func decayGate(
    a: any DeviceMemory, b: any DeviceMemory, strides: (a: Int, b: Int)? = nil, aLog: any DeviceMemory,
    dtBias: any DeviceMemory, tokens: Int, heads: Int, g: any DeviceMemory, beta: any DeviceMemory
  ) throws {
    try launch(
      "decayGate", grid: ((tokens * heads + 255) / 256, 1),
      [
        A(a), A(strides?.a ?? heads), A(b), A(strides?.b ?? heads), A(aLog), A(dtBias), A(tokens * heads), A(heads),
        A(g), A(beta),
      ])
  }

  package func decayGateBackward(
    dG: any DeviceMemory, dBeta: any DeviceMemory, a: any DeviceMemory, aStride: Int? = nil, beta: any DeviceMemory,
    aLog: any DeviceMemory, dtBias: any DeviceMemory, tokens: Int, heads: Int, dA: any DeviceMemory,
    dB: any DeviceMemory, strides: (dA: Int, dB: Int)? = nil, dALog: any DeviceMemory, dDtBias: any DeviceMemory
  ) throws {
    try launch(
      "decayGateBackward", grid: (heads, 1), threads: 1024,
      [
        A(dG), A(dBeta), A(a), A(aStride ?? heads), A(beta), A(aLog), A(dtBias), A(tokens), A(heads), A(dA),
        A(strides?.dA ?? heads), A(dB), A(strides?.dB ?? heads), A(dALog), A(dDtBias),
      ])
  }

  /// y = SiLU(gate) · up [rows, columns]; `packed` [rows, 2 columns] holds gate and up side by side.
  package func swiGLU(_ packed: any DeviceMemory, rows: Int, columns: Int, into y: any DeviceMemory) throws {
    let up = KernelArgument(packed, offset: columns * elements.byteCount)
    try launch("swiGLU", grid: (rows, 1), [A(packed), up, A(columns), A(2 * columns), A(y)])
  }

  /// The same of gate and up [rows, columns] that may lie apart; rows of both `stride` elements apart.
  package func swiGLU(
    gate: any DeviceMemory, up: any DeviceMemory, stride: Int, rows: Int, columns: Int, into y: any DeviceMemory
  ) throws {
    try launch("swiGLU", grid: (rows, 1), [A(gate), A(up), A(columns), A(stride), A(y)])
  }

  package func swiGLUBackward(
    _ dy: any DeviceMemory, gate: any DeviceMemory, up: any DeviceMemory, stride: Int, rows: Int, columns: Int,
    dGate: any DeviceMemory, dUp: any DeviceMemory, dStride: Int
  ) throws {
    try launch(
      "swiGLUBackward", grid: (rows, 1),
      [A(dy), A(gate), A(up), A(columns), A(stride), A(dGate), A(dUp), A(dStride)])
  }

  /// The gradient of a norm's weight alone.
  package func normalizeWeightBackward(
    _ dy: any DeviceMemory, _ x: any DeviceMemory, inverse: any DeviceMemory, rows: Int, columns: Int,
    dWeight: any DeviceMemory, addsWeight: Bool, workspace: any DeviceMemory
  ) throws {
    let parts = Self.parts(rows: rows)
    try launch(
      "normalizeWeightParts", grid: ((columns + 255) / 256, parts.count),
      [
        A(dy), A(x), A(nil), argument(nil, columns: columns), A(inverse), A(rows), A(columns), A(parts.rows),
        A(workspace),
      ])
    try addParts(workspace, parts: parts.count, columns: columns, adds: addsWeight, into: dWeight)
  }

  package func swiGLUBackward(
    _ dy: any DeviceMemory, _ packed: any DeviceMemory, rows: Int, columns: Int, into dPacked: any DeviceMemory
  ) throws {
    let offset = columns * elements.byteCount
    try launch(
      "swiGLUBackward", grid: (rows, 1),
      [
        A(dy), A(packed), A(packed, offset: offset), A(columns), A(2 * columns), A(dPacked), A(dPacked, offset: offset),
        A(2 * columns),
      ])
  }

  /// Turns logits [rows, columns] into their gradient (as `Backend.vocabularyLoss`): of cross-entropy with `labels`, and
  /// of KL(teacher ‖ student) where there are the teacher's logits. Rows whose label is negative count for nothing.
  package func vocabularyLoss(
    logits: any DeviceMemory, teacherLogits: (any DeviceMemory)?, labels: any DeviceMemory, rows: Int, columns: Int,
    crossEntropyScale: Float, klScale: Float, crossEntropy: any DeviceMemory, kl: any DeviceMemory
  ) throws {
    try launch(
      "vocabularyLoss", grid: (rows, 1), threads: 512,
      [
        A(logits), A(teacherLogits), A(labels), A(columns), A(crossEntropyScale), A(klScale), A(crossEntropy), A(kl),
      ])
  }

  /// losses[n] = mean of (x − target)² over row n; dx, where given, becomes `seed` times its gradient, or has it added.
  package func squaredError(
    _ x: any DeviceMemory, target: any DeviceMemory, rows: Int, columns: Int, seed: Float, losses: any DeviceMemory,
    into dx: (any DeviceMemory)?, adds: Bool
  ) throws {
    try launch(
      "squaredError", grid: ((rows + 7) / 8, 1),
      [A(x), A(target), A(rows), A(columns), A(seed), A(losses), A(dx), A(adds ? 1 : 0)])
  }

  /// What a step of AdamW is made with: corrections are 1 − betaᵗ.
  package struct AdamWStep: Sendable {
    package var gradientScale, beta1, beta2, correction1, correction2, epsilon, learningRate, weightDecay: Float

    package init(
      gradientScale: Float, beta1: Float, beta2: Float, correction1: Float, correction2: Float, epsilon: Float,
      learningRate: Float, weightDecay: Float
    ) {
      (self.gradientScale, self.beta1, self.beta2) = (gradientScale, beta1, beta2)
      (self.correction1, self.correction2, self.epsilon) = (correction1, correction2, epsilon)
      (self.learningRate, self.weightDecay) = (learningRate, weightDecay)
    }
  }

  /// Updates masters and moments, float32; `copy` receives the masters in bfloat16.
  package func adamW(
    parameters: any DeviceMemory, gradients: any DeviceMemory, moment1: any DeviceMemory, moment2: any DeviceMemory,
    copy: (any DeviceMemory)?, count: Int, step s: AdamWStep
  ) throws {
    try launch(
      "adamW", grid: ((count + 2047) / 2048, 1),
      [
        A(parameters), A(gradients), A(moment1), A(moment2), A(copy), A(wide: count), A(s.gradientScale), A(s.beta1),
        A(s.beta2), A(s.correction1), A(s.correction2), A(s.epsilon), A(s.learningRate), A(s.weightDecay),
      ])
  }

  /// sums[b] = Σ x² over the b-th run of `blockSize`, float64.
  package func sumsOfSquares(_ x: any DeviceMemory, count: Int, blockSize: Int, into sums: any DeviceMemory) throws {
    try launch(
      "sumsOfSquares", grid: ((count + blockSize - 1) / blockSize, 1), [A(x), A(wide: count), A(blockSize), A(sums)])
  }
}
