import CUDA
import Foundation

/// Times of kernels by themselves, at the sizes of a layer.
package struct KernelBenchmark {
  private let device: Device
  private let library: KernelLibrary

  package init(_ device: Device) throws {
    (self.device, library) = (device, try KernelLibrary(device))
  }

  /// Nanoseconds a token of the gated delta rule: forward alone, forward that saves for backward, backward, and the two
  /// that a training step does.
  ///
  /// - Returns: name and time of each, and the bytes that are saved between forward and backward.
  package func gatedDeltaRule(
    heads: Int, keySize: Int, valueSize: Int, sequences: Int, length: Int, elements: GatedDeltaRule.Elements, runs: Int
  ) throws -> (times: [(pass: String, nanoseconds: Double)], savedBytes: Int) {
    let segments = (0..<sequences).map { $0 * length..<($0 + 1) * length }
    let tokens = sequences * length
    let rule = try GatedDeltaRule(library, heads: heads, keySize: keySize, valueSize: valueSize, elements: elements)
    let chunks = try ChunkTable(device, segments: segments)
    let scale = 1 / Float(keySize).squareRoot()
    // Two sets of inputs by turns, so that none is timed out of the cache.
    let inputs = try (0..<2).map { try Inputs(device, rule, tokens: tokens, seed: UInt64($0)) }
    let size = elements.byteCount
    func buffer(_ bytes: Int) throws -> DeviceBuffer { try DeviceBuffer(device, byteCount: bytes) }
    let (o, dV) = (try buffer(tokens * heads * valueSize * size), try buffer(tokens * heads * valueSize * size))
    let (dQ, dK) = (try buffer(tokens * heads * keySize * size), try buffer(tokens * heads * keySize * size))
    let (dG, dBeta) = (try buffer(tokens * heads * 4), try buffer(tokens * heads * 4))
    let workspace = try buffer(rule.workspaceByteCount(chunks))
    let saved = try rule.makeSaved(chunks)

    func forward(_ x: Inputs, _ saved: GatedDeltaRule.Saved?) throws {
      try rule.forward(
        q: x.q, k: x.k, v: x.v, g: x.g, beta: x.beta, scale: scale, chunks: chunks, initial: nil, o: o, final: nil,
        saved: saved, workspace: workspace)
    }
    func backward(_ x: Inputs) throws {
      try rule.backward(
        dO: x.dO, dFinal: nil, q: x.q, k: x.k, v: x.v, g: x.g, beta: x.beta, scale: scale, chunks: chunks, saved: saved,
        dQ: dQ, dK: dK, dV: dV, dG: dG, dBeta: dBeta, dInitial: nil, workspace: workspace)
    }
    let passes: [(String, (Inputs) throws -> Void)] = [
      ("forward", { try forward($0, nil) }), ("forward, saving", { try forward($0, saved) }),
      ("backward", { try backward($0) }),
      (
        "forward and backward",
        {
          try forward($0, saved)
          try backward($0)
        }
      ),
    ]
    let times = try passes.map { pass, body in
      let seconds = try DeviceRates.medianSeconds(device, runs: runs) { try body(inputs[$0 % 2]) }
      return (pass: pass, nanoseconds: seconds * 1e9 / Double(tokens))
    }
    return (times, saved.byteCount)
  }

  /// Nanoseconds a token of kernels over rows at the sizes of a layer, forward and backward, with the bytes that they
  /// must move.
  package func rows(
    tokens: Int, hidden: Int, intermediate: Int, heads: Int, keySize: Int, valueSize: Int, vocabulary: Int, runs: Int
  ) throws -> [(kernel: String, nanoseconds: Double, bytes: Double)] {
    let kernels = try RowKernels(library, elements: .bfloat16)
    func buffer(_ bytes: Int) throws -> DeviceBuffer {
      let buffer = try DeviceBuffer(device, byteCount: bytes)
      // 0x3c3c is a small bfloat16.
      try buffer.fill(byte: 0x3c)
      return buffer
    }
    let channels = heads * valueSize
    let lossRows = min(tokens, 2048)
    let wide = tokens * max(2 * intermediate, 4 * channels, hidden) * 2
    let (a, b, c, d) = (try buffer(wide), try buffer(wide), try buffer(wide), try buffer(wide))
    let weights = try buffer(max(hidden, channels, 4 * channels) * 4)
    let sums = try buffer(max(hidden, 4 * channels) * 4)
    let inverse = try buffer(tokens * heads * 4)
    let starts = try DeviceBuffer(device, [Int32](repeating: 0, count: tokens))
    let workspace = try buffer(
      4
        * max(
          RowKernels.convolutionWorkspaceCount(tokens: tokens, channels: channels),
          RowKernels.normalizeWorkspaceCount(rows: tokens, columns: hidden),
          RowKernels.normalizeWorkspaceCount(rows: tokens * heads, columns: valueSize)))
    let (n, h, v, k) = (Double(tokens), Double(2 * hidden), Double(2 * channels), Double(2 * heads * keySize))
    let i = Double(2 * intermediate)
    let cases: [(String, Double, () throws -> Void)] = [
      (
        "norm", n * 2 * h,
        {
          try kernels.normalize(
            a, weight: weights, rows: tokens, columns: hidden, epsilon: 1e-6, into: b, inverse: inverse)
        }
      ),
      (
        "norm, backward", n * 3 * h,
        {
          try kernels.normalizeBackward(
            b, a, weight: weights, inverse: inverse, rows: tokens, columns: hidden, dx: c, dWeight: sums,
            addsWeight: false, workspace: workspace)
        }
      ),
      (
        "gated norm", n * 3 * v,
        {
          try kernels.normalize(
            a, gate: b, weight: weights, rows: tokens * heads, columns: valueSize, epsilon: 1e-5, into: c,
            inverse: inverse)
        }
      ),
      (
        "gated norm, backward", n * 5 * v,
        {
          try kernels.normalizeBackward(
            c, a, gate: b, weight: weights, inverse: inverse, rows: tokens * heads, columns: valueSize, dx: d, dGate: c,
            dWeight: sums, addsWeight: false, workspace: workspace)
        }
      ),
      (
        "SiLU norm", n * 2 * k,
        { try kernels.siluNormalize(a, rows: tokens * heads, columns: keySize, epsilon: 1e-6, into: b) }
      ),
      (
        "SiLU norm, backward", n * 3 * k,
        {
          try kernels.siluNormalizeBackward(b, a, rows: tokens * heads, columns: keySize, epsilon: 1e-6, dx: c)
        }
      ),
      (
        "dynamic convolution", n * 6 * v,
        {
          try kernels.dynamicConvolution(
            a, taps: b, bias: weights, starts: starts, tokens: tokens, channels: channels, into: c)
        }
      ),
      (
        "dynamic convolution, backward", n * 11 * v,
        {
          try kernels.dynamicConvolutionBackward(
            c, a, taps: b, bias: weights, starts: starts, tokens: tokens, channels: channels, dx: c, dTaps: d,
            dBias: sums, addsBias: false, workspace: workspace)
        }
      ),
      ("SwiGLU", n * 3 * i, { try kernels.swiGLU(a, rows: tokens, columns: intermediate, into: b) }),
      (
        "SwiGLU, backward", n * 5 * i,
        { try kernels.swiGLUBackward(b, a, rows: tokens, columns: intermediate, into: c) }
      ),
    ]
    var results = try cases.map { name, bytes, body in
      let seconds = try DeviceRates.medianSeconds(device, runs: runs) { _ in try body() }
      return (kernel: name, nanoseconds: seconds * 1e9 / n, bytes: bytes / n)
    }
    let (logits, teacher) = (try buffer(lossRows * vocabulary * 2), try buffer(lossRows * vocabulary * 2))
    let labels = try DeviceBuffer(device, [Int32](repeating: 1, count: lossRows))
    let seconds = try DeviceRates.medianSeconds(device, runs: runs) { _ in
      try kernels.vocabularyLoss(
        logits: logits, teacherLogits: teacher, labels: labels, rows: lossRows, columns: vocabulary,
        crossEntropyScale: 0, klScale: 1, crossEntropy: inverse, kl: sums)
    }
    results.append(
      (kernel: "KL", nanoseconds: seconds * 1e9 / Double(lossRows), bytes: Double(vocabulary) * 2 * 5))
    return results
  }

  /// Random inputs as JetBlock begins with them.
  private struct Inputs {
    let q, k, v, g, beta, dO: DeviceBuffer

    init(_ device: Device, _ rule: GatedDeltaRule, tokens: Int, seed: UInt64) throws {
      var random = Random(seed: seed)
      let rows = tokens * rule.heads
      // A stretch of random numbers again and again, shifted at every row: drawing them all takes longer than the test.
      let pool = (0..<65_537).map { _ in Float(random.normal()) }
      func upload(_ count: Int, length: Int? = nil) throws -> DeviceBuffer {
        var values = [Float](unsafeUninitializedCapacity: count) { buffer, filled in
          for i in 0..<count { buffer[i] = pool[Int((UInt64(i) &* 40_503 &+ seed) % 65_537)] }
          filled = count
        }
        if let length {
          for row in 0..<count / length {
            let range = row * length..<(row + 1) * length
            let norm = range.reduce(Float(1e-6)) { $0 + values[$1] * values[$1] }.squareRoot()
            for i in range { values[i] /= norm }
          }
        }
        return rule.elements == .bfloat16
          ? try DeviceBuffer(device, bfloat16(values)) : try DeviceBuffer(device, values)
      }
      q = try upload(rows * rule.keySize, length: rule.keySize)
      k = try upload(rows * rule.keySize, length: rule.keySize)
      v = try upload(rows * rule.valueSize)
      dO = try upload(rows * rule.valueSize)
      let rates = (0..<rule.heads).map { _ in random.uniform() * 16 }
      g = try DeviceBuffer(
        device, (0..<rows).map { Float(-rates[$0 % rule.heads] * 0.03) * abs(1 + 0.3 * pool[$0 % 65_537]) })
      beta = try DeviceBuffer(device, (0..<rows).map { 1 / (1 + Foundation.exp(-pool[($0 &* 7) % 65_537])) })
    }
  }
}
