import CUDA
import Foundation

/// The gated delta rule, forward and backward, at one size.
package struct GatedDeltaRuleCheck {
  package enum Gates: Sendable {
    /// As JetBlock begins: A from 0 to 16, dt from 0.001 to 0.1.
    case initial
    /// Decays that underflow within a few tokens, and betas next to 0 and 1.
    case strong
    /// None, beta 0.9: every key stays.
    case none
  }

  package var elements: GatedDeltaRule.Elements
  package var keySize: Int
  package var valueSize: Int
  package var heads = 2
  /// Lengths of the documents.
  package var documents: [Int]
  package var gates = Gates.initial
  /// Whether states are handed in and out.
  package var states = false
  /// Whether copies are those of cards before Hopper.
  package var plainCopies = false

  package init(elements: GatedDeltaRule.Elements, keySize: Int, valueSize: Int, documents: [Int]) {
    (self.elements, self.keySize, self.valueSize) = (elements, keySize, valueSize)
    self.documents = documents
  }

  /// Relative errors that are allowed: float32 as of the CPU's kernels, bfloat16 as of its operands' rounding.
  package var bounds: (output: Double, gradient: Double) { elements == .float32 ? (2e-5, 1e-4) : (1e-2, 2e-2) }

  static func cases(small: Bool) -> [GatedDeltaRuleCheck] {
    func both(_ one: GatedDeltaRuleCheck) -> [GatedDeltaRuleCheck] {
      var other = one
      other.elements = .float32
      return [one, other]
    }
    let make = { (keys: Int, values: Int, documents: [Int]) in
      GatedDeltaRuleCheck(elements: .bfloat16, keySize: keys, valueSize: values, documents: documents)
    }
    if small {
      var odd = make(24, 40, [1, 65])
      odd.states = true
      var even = make(32, 80, [1, 65, 3])
      even.states = true
      var plain = even
      plain.plainCopies = true
      return both(even) + [plain, odd]
    }
    var cases = [1, 63, 65, 1000].flatMap { both(make(96, 256, [$0])) }
    let many = [17, 64, 1, 128, 63, 65, 130, 2, 200]
    for (keys, values) in [(16, 16), (48, 144), (96, 256), (128, 256), (64, 80), (24, 40), (192, 96), (256, 256)] {
      var one = make(keys, values, many)
      one.states = true
      cases += both(one)
    }
    var plain = make(96, 256, many)
    (plain.states, plain.plainCopies) = (true, true)
    cases.append(plain)
    for gates in [Gates.strong, .none] {
      var one = make(96, 256, [300, 65])
      one.gates = gates
      cases += both(one)
    }
    var hundred = make(96, 256, (0..<100).map { 1 + $0 * 37 % 80 })
    hundred.heads = 1
    cases += both(hundred)
    var long = make(96, 256, [4096])
    long.heads = 4
    return cases + both(long)
  }

  /// The documents, one behind the other.
  package var segments: [Range<Int>] {
    documents.reduce(into: []) { all, length in
      let first = all.last?.upperBound ?? 0
      all.append(first..<first + length)
    }
  }

  package var scale: Float { 1 / Float(keySize).squareRoot() }

  /// What it should give, in double precision.
  package func reference(_ x: GatedDeltaRuleReference.Inputs) -> GatedDeltaRuleReference.Results {
    GatedDeltaRuleReference(
      heads: heads, keySize: keySize, valueSize: valueSize, segments: segments, scale: Double(scale)
    ).run(x)
  }

  /// Random inputs, rounded to the type of the elements.
  package func inputs() -> GatedDeltaRuleReference.Inputs {
    var random = Random(seed: UInt64(keySize * 1009 + valueSize))
    let rows = (segments.last?.upperBound ?? 0) * heads
    func rounded(_ x: [Float]) -> [Float] { elements == .bfloat16 ? widened(bfloat16(x)) : x }
    // Keys and queries as JetBlock has them: SiLU, then to length one.
    func directions() -> [Float] {
      var all: [Float] = []
      all.reserveCapacity(rows * keySize)
      for _ in 0..<rows {
        let x = (0..<keySize).map { _ in
          let y = random.normal()
          return y / (1 + exp(-y))
        }
        let length = x.reduce(1e-6) { $0 + $1 * $1 }.squareRoot()
        all += x.map { Float($0 / length) }
      }
      return rounded(all)
    }
    func normals(_ count: Int, _ scale: Double = 1) -> [Float] {
      (0..<count).map { _ in Float(random.normal() * scale) }
    }
    let rates = (0..<heads).map { _ in random.uniform() * 16 }
    let steps = (0..<heads).map { _ in exp(log(1e-3) + random.uniform() * log(100)) }
    let (q, k) = (directions(), directions())
    let v = rounded(normals(rows * valueSize))
    let dO = rounded(normals(rows * valueSize))
    let g = (0..<rows).map { i -> Float in
      switch gates {
      case .initial:
        // softplus(x + its inverse of dt)
        let step = steps[i % heads]
        return Float(-rates[i % heads] * log1p(exp(random.normal() * 0.5 + step + log(-expm1(-step)))))
      case .strong: return Float(-pow(random.uniform(), 6) * 400)
      case .none: return 0
      }
    }
    let beta = (0..<rows).map { _ -> Float in
      switch gates {
      case .initial: Float(1 / (1 + exp(-random.normal())))
      case .strong: Float(1 / (1 + exp(-random.normal() * 12)))
      case .none: 0.9
      }
    }
    let count = segments.count * heads * keySize * valueSize
    return .init(
      q: q, k: k, v: v, g: g, beta: beta, dO: dO, initial: states ? normals(count, 0.3) : nil,
      dFinal: states ? normals(count, 0.3) : nil)
  }

  func run(_ library: KernelLibrary) throws -> CheckResult {
    let device = library.device
    let x = inputs()
    let reference = reference(x)

    let rule = try GatedDeltaRule(
      library, heads: heads, keySize: keySize, valueSize: valueSize, elements: elements, plainCopies: plainCopies)
    let chunks = try ChunkTable(device, segments: segments)
    func upload(_ values: [Float]) throws -> DeviceBuffer {
      elements == .bfloat16 ? try DeviceBuffer(device, bfloat16(values)) : try DeviceBuffer(device, values)
    }
    let (q, k, v, dO) = (try upload(x.q), try upload(x.k), try upload(x.v), try upload(x.dO))
    let (g, beta) = (try DeviceBuffer(device, x.g), try DeviceBuffer(device, x.beta))
    let initial = try x.initial.map { try DeviceBuffer(device, $0) }
    let dFinal = try x.dFinal.map { try DeviceBuffer(device, $0) }

    func poisoned(_ byteCount: Int) throws -> DeviceBuffer {
      let buffer = try DeviceBuffer(device, byteCount: byteCount)
      try buffer.fill(byte: 0xff)
      return buffer
    }
    func once() throws -> (outputs: [[Double]], gradients: [[Double]]) {
      let saved = try rule.makeSaved(chunks)
      for memory in [saved.records, saved.starts, saved.corrected] {
        if let memory { try device.fill(memory.address, byte: 0xff, byteCount: memory.byteCount) }
      }
      let workspace = try poisoned(rule.workspaceByteCount(chunks))
      let size = elements.byteCount
      let (o, dV) = (try poisoned(x.v.count * size), try poisoned(x.v.count * size))
      let (dQ, dK) = (try poisoned(x.q.count * size), try poisoned(x.q.count * size))
      let (dG, dBeta) = (try poisoned(x.g.count * 4), try poisoned(x.g.count * 4))
      let final = states ? try poisoned(reference.final.count * 4) : nil
      let dInitial = states ? try poisoned(reference.final.count * 4) : nil
      try rule.forward(
        q: q, k: k, v: v, g: g, beta: beta, scale: scale, chunks: chunks, initial: initial, o: o, final: final,
        saved: saved, workspace: workspace)
      try workspace.fill(byte: 0xff)
      try rule.backward(
        dO: dO, dFinal: dFinal, q: q, k: k, v: v, g: g, beta: beta, scale: scale, chunks: chunks, saved: saved, dQ: dQ,
        dK: dK, dV: dV, dG: dG, dBeta: dBeta, dInitial: dInitial, workspace: workspace)
      func numbers(_ buffer: DeviceBuffer, _ count: Int) throws -> [Double] {
        elements == .bfloat16
          ? widened(try buffer.download(UInt16.self, count: count)).map(Double.init)
          : try buffer.download(Float.self, count: count).map(Double.init)
      }
      func floats(_ buffer: DeviceBuffer, _ count: Int) throws -> [Double] {
        try buffer.download(Float.self, count: count).map(Double.init)
      }
      var outputs = [try numbers(o, x.v.count)]
      var gradients = [
        try numbers(dQ, x.q.count), try numbers(dK, x.k.count), try numbers(dV, x.v.count),
        try floats(dG, x.g.count), try floats(dBeta, x.g.count),
      ]
      if let final, let dInitial {
        outputs.append(try floats(final, reference.final.count))
        gradients.append(try floats(dInitial, reference.final.count))
      }
      return (outputs, gradients)
    }
    let (first, second) = (try once(), try once())
    func worst(_ results: [[Double]], _ references: [[Double]]) -> Double {
      zip(results, references).map { relativeError($0, $1) }.reduce(0) { $1.isNaN || $1 > $0 ? $1 : $0 }
    }
    let lengths = documents.count == 1 ? "\(documents[0])" : "\(documents.reduce(0, +)) in \(documents.count)"
    let path =
      elements == .float32
      ? "float32" : !rule.usesTensorCores ? "bf16, plain" : plainCopies ? "bf16, copies of sm_80" : "bf16"
    return CheckResult(
      kernel: "gated delta rule, \(path)",
      shape: "\(keySize) x \(valueSize) x \(heads), \(lengths) tokens"
        + (gates == .initial ? "" : gates == .strong ? ", strong gates" : ", no gates") + (states ? ", states" : ""),
      outputError: worst(first.outputs, [reference.o, reference.final]),
      gradientError: worst(
        first.gradients,
        [reference.dQ, reference.dK, reference.dV, reference.dG, reference.dBeta, reference.dInitial]),
      outputBound: bounds.output, gradientBound: bounds.gradient,
      repeats: first.outputs == second.outputs && first.gradients == second.gradients)
  }
}
