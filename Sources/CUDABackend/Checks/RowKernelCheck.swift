import CUDA
import Foundation

/// The kernels over rows and elements, each against its definition in double precision.
struct RowKernelCheck {
  let kernels: RowKernels
  private let device: Device
  private var elements: RowKernels.Elements { kernels.elements }

  init(_ library: KernelLibrary, elements: RowKernels.Elements) throws {
    kernels = try RowKernels(library, elements: elements)
    device = library.device
  }

  /// What a kernel gives and should give.
  private struct Result {
    let buffer: DeviceBuffer
    let isFloat: Bool
    let reference: [Double]
    let isGradient: Bool
  }

  private func rounded(_ x: [Float]) -> [Float] { elements == .bfloat16 ? widened(bfloat16(x)) : x }
  private func upload(_ x: [Float]) throws -> DeviceBuffer {
    elements == .bfloat16 ? try DeviceBuffer(device, bfloat16(x)) : try DeviceBuffer(device, x)
  }
  private func poisoned(_ bytes: Int) throws -> DeviceBuffer {
    let buffer = try DeviceBuffer(device, byteCount: bytes)
    try buffer.fill(byte: 0xff)
    return buffer
  }
  private func output(_ reference: [Double], gradient: Bool = false) throws -> Result {
    Result(
      buffer: try poisoned(reference.count * elements.byteCount), isFloat: false, reference: reference,
      isGradient: gradient)
  }
  private func floats(_ reference: [Double], gradient: Bool = false) throws -> Result {
    Result(buffer: try poisoned(reference.count * 4), isFloat: true, reference: reference, isGradient: gradient)
  }

  private func values(_ result: Result) throws -> [Double] {
    let count = result.reference.count
    return elements == .bfloat16 && !result.isFloat
      ? widened(try result.buffer.download(UInt16.self, count: count)).map(Double.init)
      : try result.buffer.download(Float.self, count: count).map(Double.init)
  }

  /// Runs `body` twice, on results that are poisoned before each.
  private func compare(
    _ kernel: String, _ shape: String, _ results: [Result], _ body: () throws -> Void
  ) throws -> CheckResult {
    let runs = try (0..<2).map { _ in
      for result in results { try result.buffer.fill(byte: 0xff) }
      try body()
      return try results.map(values)
    }
    func worst(_ gradients: Bool) -> Double? {
      let errors = zip(runs[0], results).filter { $0.1.isGradient == gradients }.map {
        relativeError($0.0, $0.1.reference)
      }
      return errors.isEmpty ? nil : errors.reduce(0) { $1.isNaN || $1 > $0 ? $1 : $0 }
    }
    let exact = elements == .float32
    return CheckResult(
      kernel: "\(kernel), \(exact ? "float32" : "bf16")", shape: shape, outputError: worst(false) ?? 0,
      gradientError: worst(true), outputBound: exact ? 2e-5 : 1e-2, gradientBound: exact ? 1e-4 : 2e-2,
      repeats: runs[0] == runs[1])
  }

  func run(small: Bool, report: (CheckResult) -> Void) throws {
    for (rows, columns) in small ? [(3, 40)] : [(1, 256), (63, 96), (65, 1536), (1000, 256), (1000, 50), (33, 2056)] {
      for gated in [false, true] { report(try norm(rows, columns, gated: gated)) }
      report(try siluNorm(rows, columns))
      report(try swiGLU(rows, columns))
    }
    for (documents, channels) in small
      ? [([1, 5, 33], 40)] : [([1], 96), ([63], 300), ([65], 96), ([1000], 512), ([1, 2, 3, 64, 31, 33, 1, 200], 300)]
    {
      report(try convolution(documents, channels))
    }
    for (tokens, heads) in small ? [(65, 2)] : [(1, 12), (1000, 12), (65, 5)] { report(try gates(tokens, heads)) }
    for (rows, columns) in small ? [(3, 65)] : [(1, 1000), (65, 1001), (63, 4096)] {
      for distills in [false, true] { report(try vocabulary(rows, columns, distills: distills)) }
      report(try squaredError(rows, columns))
    }
    if elements == .float32 { for count in small ? [1000] : [1, 50_001] { report(try optimizer(count)) } }
  }

  private func sigmoid(_ x: Double) -> Double { 1 / (1 + exp(-x)) }
  private func silu(_ x: Double) -> Double { x * sigmoid(x) }
  private func slope(_ x: Double) -> Double { sigmoid(x) * (1 + x * (1 - sigmoid(x))) }

  private func norm(_ rows: Int, _ columns: Int, gated: Bool) throws -> CheckResult {
    var random = Random(seed: UInt64(rows + columns))
    let count = rows * columns
    let x = rounded((0..<count).map { _ in Float(random.normal() * 3) })
    let z = rounded((0..<count).map { _ in Float(random.normal()) })
    let dy = rounded((0..<count).map { _ in Float(random.normal()) })
    let w = (0..<columns).map { _ in Float(1 + 0.3 * random.normal()) }
    let before = (0..<columns).map { _ in Float(random.normal()) }
    let epsilon = 1e-5
    var (y, dx, dz) = ([Double](), [Double](), [Double]())
    var (dw, inverses) = (before.map(Double.init), [Double]())
    for r in 0..<rows {
      let range = r * columns..<(r + 1) * columns
      let inverse =
        1 / (range.reduce(0.0) { $0 + Double(x[$1]) * Double(x[$1]) } / Double(columns) + epsilon).squareRoot()
      inverses.append(inverse)
      func open(_ i: Int) -> Double { gated ? silu(Double(z[i])) : 1 }
      func along(_ i: Int) -> Double { Double(dy[i]) * Double(w[i - range.lowerBound]) * open(i) }
      let mean = range.reduce(0.0) { $0 + along($1) * Double(x[$1]) * inverse } / Double(columns)
      for i in range {
        let unit = Double(x[i]) * inverse
        y.append(unit * Double(w[i - range.lowerBound]) * open(i))
        dx.append(inverse * (along(i) - unit * mean))
        dz.append(Double(dy[i]) * Double(w[i - range.lowerBound]) * unit * slope(Double(z[i])))
        dw[i - range.lowerBound] += Double(dy[i]) * open(i) * unit
      }
    }
    let (bx, bdy, bz) = (try upload(x), try upload(dy), gated ? try upload(z) : nil)
    let weight = try DeviceBuffer(device, w)
    let results = [
      try output(y), try floats(inverses), try output(dx, gradient: true), try floats(dw, gradient: true),
    ]
    let gateResult = gated ? try output(dz, gradient: true) : nil
    let workspace = try poisoned(4 * RowKernels.normalizeWorkspaceCount(rows: rows, columns: columns))
    return try compare(
      gated ? "gated norm" : "norm", "\(rows) x \(columns)", results + (gateResult.map { [$0] } ?? [])
    ) {
      try results[3].buffer.upload(before)
      try kernels.normalize(
        bx, gate: bz, weight: weight, rows: rows, columns: columns, epsilon: Float(epsilon), into: results[0].buffer,
        inverse: results[1].buffer)
      try kernels.normalizeBackward(
        bdy, bx, gate: bz, weight: weight, inverse: results[1].buffer, rows: rows, columns: columns,
        dx: results[2].buffer, dGate: gateResult?.buffer, dWeight: results[3].buffer, addsWeight: true,
        workspace: workspace)
    }
  }

  private func siluNorm(_ rows: Int, _ columns: Int) throws -> CheckResult {
    var random = Random(seed: UInt64(rows * 3 + columns))
    let x = rounded((0..<rows * columns).map { _ in Float(random.normal()) })
    let dy = rounded((0..<rows * columns).map { _ in Float(random.normal()) })
    let epsilon = 1e-6
    var (y, dx) = ([Double](), [Double]())
    for r in 0..<rows {
      let range = r * columns..<(r + 1) * columns
      let scale = 1 / (range.reduce(0.0) { $0 + silu(Double(x[$1])) * silu(Double(x[$1])) } + epsilon).squareRoot()
      let along = range.reduce(0.0) { $0 + silu(Double(x[$1])) * scale * Double(dy[$1]) }
      for i in range {
        let unit = silu(Double(x[i])) * scale
        y.append(unit)
        dx.append(scale * (Double(dy[i]) - unit * along) * slope(Double(x[i])))
      }
    }
    let (bx, bdy) = (try upload(x), try upload(dy))
    let results = [try output(y), try output(dx, gradient: true)]
    return try compare("SiLU norm", "\(rows) x \(columns)", results) {
      try kernels.siluNormalize(bx, rows: rows, columns: columns, epsilon: Float(epsilon), into: results[0].buffer)
      try kernels.siluNormalizeBackward(
        bdy, bx, rows: rows, columns: columns, epsilon: Float(epsilon), dx: results[1].buffer)
    }
  }

  private func swiGLU(_ rows: Int, _ columns: Int) throws -> CheckResult {
    var random = Random(seed: UInt64(rows * 5 + columns))
    let x = rounded((0..<rows * columns * 2).map { _ in Float(random.normal() * 2) })
    let dy = rounded((0..<rows * columns).map { _ in Float(random.normal()) })
    var (y, dx) = ([Double](repeating: 0, count: dy.count), [Double](repeating: 0, count: x.count))
    for i in dy.indices {
      let gate = i / columns * 2 * columns + i % columns
      let (a, b, d) = (Double(x[gate]), Double(x[gate + columns]), Double(dy[i]))
      y[i] = silu(a) * b
      dx[gate] = d * b * slope(a)
      dx[gate + columns] = d * silu(a)
    }
    let (bx, bdy) = (try upload(x), try upload(dy))
    let results = [try output(y), try output(dx, gradient: true)]
    return try compare("SwiGLU", "\(rows) x \(columns)", results) {
      try kernels.swiGLU(bx, rows: rows, columns: columns, into: results[0].buffer)
      try kernels.swiGLUBackward(bdy, bx, rows: rows, columns: columns, into: results[1].buffer)
    }
  }

  private func convolution(_ documents: [Int], _ channels: Int) throws -> CheckResult {
    let tokens = documents.reduce(0, +)
    var random = Random(seed: UInt64(tokens * 7 + channels))
    var starts: [Int32] = []
    for length in documents { starts += Array(repeating: Int32(starts.count), count: length) }
    let x = rounded((0..<tokens * channels).map { _ in Float(random.normal()) })
    let dy = rounded((0..<tokens * channels).map { _ in Float(random.normal()) })
    let taps = rounded((0..<tokens * channels * 4).map { _ in Float(random.normal() * 0.5) })
    let bias = (0..<channels * 4).map { $0 % 4 == 3 ? Float(1) : Float(random.normal() * 0.2) }
    let before = (0..<channels * 4).map { _ in Float(random.normal()) }
    var (y, dx) = ([Double](repeating: 0, count: x.count), [Double](repeating: 0, count: x.count))
    var (dTaps, dBias) = ([Double](repeating: 0, count: taps.count), before.map(Double.init))
    for t in 0..<tokens {
      for c in 0..<channels {
        let i = t * channels + c
        let seen = (0..<4).filter { t - 3 + $0 >= Int(starts[t]) }
        func tap(_ w: Int) -> Double { Double(taps[i * 4 + w]) + Double(bias[c * 4 + w]) }
        func input(_ w: Int) -> Int { (t - 3 + w) * channels + c }
        let u = seen.reduce(0.0) { $0 + tap($1) * Double(x[input($1)]) }
        y[i] = silu(u)
        let du = Double(dy[i]) * slope(u)
        for w in seen {
          dx[input(w)] += du * tap(w)
          dTaps[i * 4 + w] = du * Double(x[input(w)])
          dBias[c * 4 + w] += dTaps[i * 4 + w]
        }
      }
    }
    let (bx, bdy, btaps) = (try upload(x), try upload(dy), try upload(taps))
    let (bbias, bstarts) = (try DeviceBuffer(device, bias), try DeviceBuffer(device, starts))
    let workspace = try poisoned(4 * RowKernels.convolutionWorkspaceCount(tokens: tokens, channels: channels))
    let results = [
      try output(y), try output(dx, gradient: true), try output(dTaps, gradient: true),
      try floats(dBias, gradient: true),
    ]
    let lengths = documents.count == 1 ? "\(tokens) tokens" : "\(tokens) tokens in \(documents.count)"
    return try compare("dynamic convolution", "\(channels) channels, \(lengths)", results) {
      try results[3].buffer.upload(before)
      try kernels.dynamicConvolution(
        bx, taps: btaps, bias: bbias, starts: bstarts, tokens: tokens, channels: channels, into: results[0].buffer)
      try kernels.dynamicConvolutionBackward(
        bdy, bx, taps: btaps, bias: bbias, starts: bstarts, tokens: tokens, channels: channels, dx: results[1].buffer,
        dTaps: results[2].buffer, dBias: results[3].buffer, addsBias: true, workspace: workspace)
    }
  }

  private func gates(_ tokens: Int, _ heads: Int) throws -> CheckResult {
    var random = Random(seed: UInt64(tokens * 11 + heads))
    let count = tokens * heads
    let a = rounded((0..<count).map { _ in Float(random.normal() * 4) })
    let b = rounded((0..<count).map { _ in Float(random.normal() * 4) })
    let (dG, dBeta) = (
      (0..<count).map { _ in Float(random.normal()) }, (0..<count).map { _ in Float(random.normal()) }
    )
    let aLog = (0..<heads).map { _ in Float(log(random.uniform() * 16 + 1e-3)) }
    let dtBias = (0..<heads).map { _ in Float(random.normal() - 4) }
    var (g, beta, dA, dB) = ([Double](), [Double](), [Double](), [Double]())
    var (dALog, dDtBias) = ([Double](repeating: 0, count: heads), [Double](repeating: 0, count: heads))
    for i in 0..<count {
      let h = i % heads
      let z = Double(a[i]) + Double(dtBias[h])
      let rate = -exp(Double(aLog[h]))
      g.append(rate * log1p(exp(z)))
      beta.append(sigmoid(Double(b[i])))
      dA.append(Double(dG[i]) * rate * sigmoid(z))
      dB.append(Double(dBeta[i]) * beta[i] * (1 - beta[i]))
      dALog[h] += Double(dG[i]) * g[i]
      dDtBias[h] += dA[i]
    }
    let (ba, bb) = (try upload(a), try upload(b))
    let (bdG, bdBeta) = (try DeviceBuffer(device, dG), try DeviceBuffer(device, dBeta))
    let (bLog, bBias) = (try DeviceBuffer(device, aLog), try DeviceBuffer(device, dtBias))
    let results = [
      try floats(g), try floats(beta), try output(dA, gradient: true), try output(dB, gradient: true),
      try floats(dALog, gradient: true), try floats(dDtBias, gradient: true),
    ]
    return try compare("gates", "\(tokens) x \(heads)", results) {
      try kernels.decayGate(
        a: ba, b: bb, aLog: bLog, dtBias: bBias, tokens: tokens, heads: heads, g: results[0].buffer,
        beta: results[1].buffer)
      try kernels.decayGateBackward(
        dG: bdG, dBeta: bdBeta, a: ba, beta: results[1].buffer, aLog: bLog, dtBias: bBias, tokens: tokens, heads: heads,
        dA: results[2].buffer, dB: results[3].buffer, dALog: results[4].buffer, dDtBias: results[5].buffer)
    }
  }

  private func vocabulary(_ rows: Int, _ columns: Int, distills: Bool) throws -> CheckResult {
    var random = Random(seed: UInt64(rows * 13 + columns))
    let logits = rounded((0..<rows * columns).map { _ in Float(random.normal() * 4) })
    let teacher = rounded((0..<rows * columns).map { _ in Float(random.normal() * 4) })
    let labels = (0..<rows).map { $0 % 5 == 3 ? Int32(-1) : Int32(random.next() % UInt64(columns)) }
    let (ceScale, klScale) = (0.7, distills ? 1.3 : 0)
    var (losses, divergences, gradient) = ([Double](), [Double](), [Double]())
    for row in 0..<rows {
      let z = logits[row * columns..<(row + 1) * columns].map(Double.init)
      let t = teacher[row * columns..<(row + 1) * columns].map(Double.init)
      guard labels[row] >= 0 else {
        losses.append(0)
        divergences.append(0)
        gradient += [Double](repeating: 0, count: columns)
        continue
      }
      func logSum(_ x: [Double]) -> Double {
        let most = x.max()!
        return most + log(x.reduce(0) { $0 + exp($1 - most) })
      }
      let (zSum, tSum) = (logSum(z), logSum(t))
      losses.append(zSum - z[Int(labels[row])])
      divergences.append(
        distills ? zip(z, t).reduce(0) { $0 + exp($1.1 - tSum) * ($1.1 - tSum - $1.0 + zSum) } : 0)
      for c in 0..<columns {
        let p = exp(z[c] - zSum)
        let q = distills ? exp(t[c] - tSum) : 0
        gradient.append(ceScale * (p - (c == Int(labels[row]) ? 1 : 0)) + klScale * (p - q))
      }
    }
    let (bLogits, bTeacher) = (try upload(logits), distills ? try upload(teacher) : nil)
    let bLabels = try DeviceBuffer(device, labels)
    let results = [try output(gradient, gradient: true), try floats(losses), try floats(divergences)]
    return try compare(
      distills ? "cross-entropy and KL" : "cross-entropy", "\(rows) x \(columns)", results
    ) {
      try results[0].buffer.copy(from: bLogits)
      try kernels.vocabularyLoss(
        logits: results[0].buffer, teacherLogits: bTeacher, labels: bLabels, rows: rows, columns: columns,
        crossEntropyScale: Float(ceScale), klScale: Float(klScale), crossEntropy: results[1].buffer,
        kl: results[2].buffer)
    }
  }

  private func squaredError(_ rows: Int, _ columns: Int) throws -> CheckResult {
    var random = Random(seed: UInt64(rows * 17 + columns))
    func draw() -> [Float] { rounded((0..<rows * columns).map { _ in Float(random.normal()) }) }
    let (x, target, before) = (draw(), draw(), draw())
    let seed = 100.0
    var (losses, dx) = ([Double](repeating: 0, count: rows), [Double]())
    for i in x.indices {
      let difference = Double(x[i]) - Double(target[i])
      losses[i / columns] += difference * difference / Double(columns)
      dx.append(Double(before[i]) + seed * 2 / Double(columns) * difference)
    }
    let (bx, bTarget, bBefore) = (try upload(x), try upload(target), try upload(before))
    let results = [try floats(losses), try output(dx, gradient: true)]
    return try compare("squared error", "\(rows) x \(columns)", results) {
      try results[1].buffer.copy(from: bBefore)
      try kernels.squaredError(
        bx, target: bTarget, rows: rows, columns: columns, seed: Float(seed), losses: results[0].buffer,
        into: results[1].buffer, adds: true)
    }
  }

  private func optimizer(_ count: Int) throws -> CheckResult {
    var random = Random(seed: UInt64(count))
    func draw(_ scale: Double) -> [Float] { (0..<count).map { _ in Float(random.normal() * scale) } }
    let (w, g, m) = (draw(0.02), draw(1), draw(0.1))
    let v = draw(0.1).map { $0 * $0 }
    let step = RowKernels.AdamWStep(
      gradientScale: 0.3, beta1: 0.9, beta2: 0.95, correction1: 0.271, correction2: 0.142_625, epsilon: 1e-8,
      learningRate: 1e-2, weightDecay: 0.1)
    var (weights, first, second, rounds) = ([Double](), [Double](), [Double](), [Double]())
    for i in 0..<count {
      let gradient = Double(g[i]) * Double(step.gradientScale)
      first.append(Double(m[i]) * Double(step.beta1) + gradient * (1 - Double(step.beta1)))
      second.append(Double(v[i]) * Double(step.beta2) + gradient * gradient * (1 - Double(step.beta2)))
      let update =
        first[i] / Double(step.correction1)
        / ((second[i] / Double(step.correction2)).squareRoot() + Double(step.epsilon))
      let old = Double(w[i])
      weights.append(
        old - old * Double(step.learningRate) * Double(step.weightDecay) - update * Double(step.learningRate))
      rounds.append(Double(g[i]) * Double(g[i]))
    }
    let blockSize = 16_384
    let sums = stride(from: 0, to: count, by: blockSize).map { rounds[$0..<min(count, $0 + blockSize)].reduce(0, +) }
    let gradients = try DeviceBuffer(device, g)
    let squares = try poisoned(sums.count * 8)
    let copy = try poisoned(count * 2)
    let results = [try floats(weights), try floats(first), try floats(second)]
    var result = try compare("AdamW, sums of squares", "\(count)", results) {
      try results[0].buffer.upload(w)
      try results[1].buffer.upload(m)
      try results[2].buffer.upload(v)
      try kernels.sumsOfSquares(gradients, count: count, blockSize: blockSize, into: squares)
      try kernels.adamW(
        parameters: results[0].buffer, gradients: gradients, moment1: results[1].buffer, moment2: results[2].buffer,
        copy: copy, count: count, step: step)
    }
    let squareError = relativeError(try squares.download(Double.self, count: sums.count), sums)
    let masters = try results[0].buffer.download(Float.self, count: count)
    // The copy is the masters rounded, to the bit.
    let copied = try copy.download(UInt16.self, count: count) == bfloat16(masters)
    result = CheckResult(
      kernel: result.kernel, shape: result.shape, outputError: max(result.outputError, squareError),
      gradientError: nil, outputBound: result.outputBound, gradientBound: 0, repeats: result.repeats && copied)
    return result
  }
}
