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
