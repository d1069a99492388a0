import CPUBackend
import CUDA
import CUDABackend
import Foundation
import KernelEmulator
import Tensors
import TestSupport
import Testing

/// The kernels where no card is: their logic on the emulator, which serves one test at a time, and that they are the ones
/// built in.
@Suite(.serialized) struct KernelTests {
  private static let folder =
    URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent().path + "/Sources/CUDABackend/Kernels"

  @Test func embeddedKernelsAreTheFiles() throws {
    let files = try FileManager.default.contentsOfDirectory(atPath: Self.folder)
      .filter { $0.hasSuffix(".cu") || $0.hasSuffix(".cuh") }
    #expect(Set(files) == Set(KernelSources.embedded.keys))
    for file in files {
      let text = try String(contentsOfFile: Self.folder + "/" + file, encoding: .utf8)
      #expect(KernelSources.embedded[file]?.text == text, "\(file) is not what the program was built with")
    }
  }

  // MARK: The reference that kernels are compared with

  @Test func referenceMatchesTheCPU() throws {
    var check = GatedDeltaRuleCheck(elements: .float32, keySize: 24, valueSize: 40, documents: [1, 65, 130])
    check.states = true
    let (x, y) = (check.inputs(), check.reference(check.inputs()))
    let backend = CPUBackend(threads: 2)
    let (n, h, k, v) = (196, 2, 24, 40)
    let tensor = backend.tensor as ([Float], [Int]) -> Tensor
    func values(_ t: Tensor) -> [Double] { t.toArray().map(Double.init) }
    let layout = Layout(Segments(check.segments), on: backend)
    let (q, key, value) = (tensor(x.q, [n, h, k]), tensor(x.k, [n, h, k]), tensor(x.v, [n, h, v]))
    let (g, beta, dO) = (tensor(x.g, [n, h]), tensor(x.beta, [n, h]), tensor(x.dO, [n, h, v]))
    let states = [3, h, k, v]
    let (initial, dFinal) = (tensor(x.initial!, states), tensor(x.dFinal!, states))
    let (o, final) = (backend.empty([n, h, v]), backend.empty(states))
    let saved = try #require(
      backend.gatedDeltaRule(
        q: q, k: key, v: value, g: g, beta: beta, scale: check.scale, layout: layout, initial: initial, o: o,
        final: final, saves: true))
    let (dQ, dK, dV) = (backend.empty([n, h, k]), backend.empty([n, h, k]), backend.empty([n, h, v]))
    let (dG, dBeta, dInitial) = (backend.empty([n, h]), backend.empty([n, h]), backend.empty(states))
    backend.gatedDeltaRuleBackward(
      dO: dO, dFinal: dFinal, q: q, k: key, v: value, g: g, beta: beta, scale: check.scale, layout: layout,
      saved: saved, dQ: dQ, dK: dK, dV: dV, dG: dG, dBeta: dBeta, dInitial: dInitial)
    for (name, a, b) in [
      ("o", o, y.o), ("final", final, y.final), ("dQ", dQ, y.dQ), ("dK", dK, y.dK), ("dV", dV, y.dV), ("dG", dG, y.dG),
      ("dBeta", dBeta, y.dBeta), ("dInitial", dInitial, y.dInitial),
    ] {
      let error = relativeError(values(a), b)
      #expect(error < 2e-6, "\(name): \(error)")
    }
  }

  /// What `devices check` compares is right itself: the CPU's kernels and the oracle of all backends agree on every case.
  @Test func backendCasesHoldOnTheCPU() {
    let backend = CPUBackend(threads: 2)
    backend.poisonsNewTensors = true
    var count = 0
    BackendCheck(backend, against: ReferenceBackend(), types: [.float32]).run(small: true) { result in
      count += 1
      #expect(result.passes, "\(result)")
    }
    #expect(count > 20)
  }

  // MARK: The kernels on the emulator

  private func emulate<Element>(
    _ check: GatedDeltaRuleCheck, as type: Element.Type, from: ([Float]) -> [Element], to: ([Element]) -> [Float],
    nan: Element, with run: (emulated_inputs, emulated_outputs) -> Void
  ) throws {
    let x = check.inputs()
    let reference = check.reference(x)
    let (chunks, firstChunks) = ChunkTable.tables(check.segments)
    func memory<T>(_ values: [T]) -> UnsafeMutablePointer<T> {
      let p = UnsafeMutableRawPointer.allocate(byteCount: max(64, values.count * MemoryLayout<T>.stride), alignment: 64)
      let typed = p.bindMemory(to: T.self, capacity: values.count)
      typed.initialize(from: values, count: values.count)
      return typed
    }
    func blank(_ count: Int) -> UnsafeMutablePointer<Element> { memory([Element](repeating: nan, count: count)) }
    func blankFloats(_ count: Int) -> UnsafeMutablePointer<Float> { memory([Float](repeating: .nan, count: count)) }
    let (q, k, v, dO) = (memory(from(x.q)), memory(from(x.k)), memory(from(x.v)), memory(from(x.dO)))
    let (g, beta, initial, dFinal) = (memory(x.g), memory(x.beta), memory(x.initial!), memory(x.dFinal!))
    let (table, first) = (memory(chunks), memory(firstChunks))
    let (o, dQ, dK, dV) = (blank(x.v.count), blank(x.q.count), blank(x.k.count), blank(x.v.count))
    let states = reference.final.count
    let (final, dG) = (blankFloats(states), blankFloats(x.g.count))
    let (dBeta, dInitial) = (blankFloats(x.g.count), blankFloats(states))
    let all: [UnsafeMutableRawPointer] = [
      .init(q), .init(k), .init(v), .init(dO), .init(g), .init(beta), .init(initial), .init(dFinal), .init(table),
      .init(first), .init(o), .init(dQ), .init(dK), .init(dV), .init(final), .init(dG), .init(dBeta), .init(dInitial),
    ]
    defer { for memory in all { memory.deallocate() } }
    run(
      emulated_inputs(
        q: q, k: k, v: v, dO: dO, g: g, beta: beta, initial: initial, dFinal: dFinal, chunks: table, segments: first,
        tokens: Int32(check.documents.reduce(0, +)), chunkCount: Int32(chunks.count / 2),
        segmentCount: Int32(check.documents.count), heads: Int32(check.heads), scale: check.scale),
      emulated_outputs(o: o, dQ: dQ, dK: dK, dV: dV, final: final, dG: dG, dBeta: dBeta, dInitial: dInitial))
    func error(_ p: UnsafeMutablePointer<Element>, _ y: [Double]) -> Double {
      relativeError(to(Array(UnsafeBufferPointer(start: p, count: y.count))).map(Double.init), y)
    }
    func error(_ p: UnsafeMutablePointer<Float>, floats y: [Double]) -> Double {
      relativeError((0..<y.count).map { Double(p[$0]) }, y)
    }
    let errors = [
      ("o", error(o, reference.o), check.bounds.output),
      ("final", error(final, floats: reference.final), check.bounds.output),
      ("dQ", error(dQ, reference.dQ), check.bounds.gradient), ("dK", error(dK, reference.dK), check.bounds.gradient),
      ("dV", error(dV, reference.dV), check.bounds.gradient),
      ("dG", error(dG, floats: reference.dG), check.bounds.gradient),
      ("dBeta", error(dBeta, floats: reference.dBeta), check.bounds.gradient),
      ("dInitial", error(dInitial, floats: reference.dInitial), check.bounds.gradient),
    ]
    print("emulated: " + errors.map { "\($0.0) \(String(format: "%.1e", $0.1))" }.joined(separator: ", "))
    for (name, error, bound) in errors { #expect(error <= bound, "\(name): \(error)") }
  }

  @Test(arguments: [false, true]) func gatedDeltaRuleIsRightOnTheEmulator(bulk: Bool) throws {
    for gates in [GatedDeltaRuleCheck.Gates.initial, .strong] {
      var check = GatedDeltaRuleCheck(
        elements: .bfloat16, keySize: EMULATED_KEY_SIZE, valueSize: EMULATED_VALUE_SIZE,
        documents: [1, 63, 65, 130])
      check.states = true
      check.gates = gates
      check.heads = gates == .initial ? 2 : 1
      try emulate(
        check, as: UInt16.self, from: bfloat16, to: widened, nan: 0xffff,
        with: bulk ? emulate_gated_delta_rule_bulk : emulate_gated_delta_rule)
    }
  }

  @Test(arguments: [(24, 40), (40, 24)]) func exactGatedDeltaRuleIsRightOnTheEmulator(keys: Int, values: Int) throws {
    var check = GatedDeltaRuleCheck(elements: .float32, keySize: keys, valueSize: values, documents: [1, 63, 65, 130])
    check.states = true
    try emulate(
      check, as: Float.self, from: { $0 }, to: { $0 }, nan: .nan,
      with: { emulate_gated_delta_rule_exact($0, $1, Int32(keys), Int32(values)) })
  }

  // MARK: Decoding

  /// Attention over caches: one row and full blocks, rings that went round, more heads than one block takes; rows that are not
  /// there are NaN.
  @Test(arguments: [
    (heads: 12, groups: 2, room: 100, rows: 32, positions: [0, 105, 53]),
    (heads: 4, groups: 4, room: 70, rows: 512, positions: [69, 16]),
    (heads: 20, groups: 2, room: 200, rows: 48, positions: [150]),
  ])
  func emulatedCacheAttentionMatches(heads: Int, groups: Int, room: Int, rows: Int, positions: [Int]) {
    let (size, count) = (Int(EMULATED_HEAD_SIZE), positions.count)
    let q = bfloat16(randomFloats(count * heads * size, seed: 1))
    var keys = bfloat16(randomFloats(count * room * groups * size, seed: 2))
    var values = bfloat16(randomFloats(count * room * groups * size, seed: 3))
    for (s, position) in positions.enumerated() where position + 1 < room {
      for i in (s * room + position + 1) * groups * size..<(s + 1) * room * groups * size {
        (keys[i], values[i]) = (0x7fff, 0x7fff)
      }
    }
    let parts = (room + rows - 1) / rows
    var outputs = [Float](repeating: .nan, count: count * heads * parts * size)
    var sums = [Float](repeating: .nan, count: count * heads * parts * 2)
    let scale = 1 / Float(size).squareRoot()
    aligned(q) { q in
      aligned(keys) { keys in
        aligned(values) { values in
          emulate_cache_attention(
            q, keys, values, positions.map { Int32($0) }, Int32(count), Int32(heads), Int32(groups), Int32(room),
            Int32(rows), scale, &outputs, &sums)
        }
      }
    }
    let (wideQ, wideK, wideV) = (widened(q), widened(keys), widened(values))
    var (found, expected): ([Double], [Double]) = ([], [])
    for item in 0..<count * heads {
      let (s, h) = (item / heads, item % heads)
      let filled = min(positions[s] + 1, room)
      func first(_ row: Int) -> Int { ((s * room + row) * groups + h * groups / heads) * size }
      var weights = [Double](repeating: 0, count: filled)
      for row in 0..<filled {
        for c in 0..<size { weights[row] += Double(wideQ[item * size + c]) * Double(wideK[first(row) + c]) }
        weights[row] = exp(weights[row] * Double(scale))
      }
      let total = weights.reduce(0, +)
      // The parts of blocks, joined as joinCacheParts does.
      let used = (filled + rows - 1) / rows
      let own = (0..<used).map { item * parts + $0 }
      let top = own.map { sums[2 * $0] }.max() ?? 0
      let shares = own.map { exp(Double(sums[2 * $0] - top)) }
      let all = zip(own, shares).reduce(0.0) { $0 + $1.1 * Double(sums[2 * $1.0 + 1]) }
      for c in 0..<size {
        var (value, joined) = (0.0, 0.0)
        for row in 0..<filled { value += weights[row] * Double(wideV[first(row) + c]) }
        for (part, share) in zip(own, shares) { joined += share * Double(outputs[part * size + c]) }
        expected.append(value / total)
        found.append(joined / all)
      }
    }
    let error = relativeError(found, expected)
    print("emulated: attention of caches \(heads)/\(groups): \(error)")
    #expect(error < 3e-3)
  }

  @Test func emulatedDeltaRuleStepMatches() {
    let (count, heads, keys, values) = (2, 3, Int(EMULATED_STEP_KEY_SIZE), Int(EMULATED_STEP_VALUE_SIZE))
    let items = count * heads
    let q = bfloat16(randomFloats(items * keys, seed: 1))
    let k = bfloat16(randomFloats(items * keys, seed: 2).map { $0 / Float(keys).squareRoot() })
    let v = bfloat16(randomFloats(items * values, seed: 3))
    let g = randomFloats(items, seed: 4).map { -abs($0) }
    let beta = randomFloats(items, seed: 5).map { 1 / (1 + exp(-$0)) }
    let before = randomFloats(items * keys * values, seed: 6)
    let scale = 1 / Float(keys).squareRoot()
    var o = [UInt16](repeating: 0x7fff, count: items * values)
    var state = before
    aligned(before) { bytes in
      emulate_delta_rule_step(
        q, k, v, g, beta, scale, Int32(count), Int32(heads),
        bytes.assumingMemoryBound(to: Float.self), &o)
      state = Array(UnsafeBufferPointer(start: bytes.assumingMemoryBound(to: Float.self), count: state.count))
    }
    let (wideQ, wideK, wideV) = (widened(q), widened(k), widened(v))
    var (states, outputs): ([Double], [Double]) = ([Double](repeating: 0, count: state.count), [])
    for i in 0..<items {
      let decay = exp(Double(g[i]))
      for c in 0..<values {
        var (known, output) = (0.0, 0.0)
        for r in 0..<keys { known += decay * Double(wideK[i * keys + r]) * Double(before[(i * keys + r) * values + c]) }
        let update = Double(beta[i]) * (Double(wideV[i * values + c]) - known)
        for r in 0..<keys {
          let place = (i * keys + r) * values + c
          states[place] = decay * Double(before[place]) + Double(wideK[i * keys + r]) * update
          output += states[place] * Double(wideQ[i * keys + r])
        }
        outputs.append(output * Double(scale))
      }
    }
    let errors = (
      relativeError(state.map(Double.init), states), relativeError(widened(o).map(Double.init), outputs)
    )
    print("emulated: step of the delta rule: state \(errors.0), output \(errors.1)")
    #expect(errors.0 < 1e-6 && errors.1 < 5e-3)
  }

  /// The kernel that makes a JetBlock's step of its projections, beside the composition of the CPU's.
  @Test func emulatedJetStepMatches() {
    let (count, heads, keys, values) = (2, 3, Int(EMULATED_STEP_KEY_SIZE), Int(EMULATED_STEP_VALUE_SIZE))
    let (channels, backend) = (heads * values, CPUBackend(threads: 2))
    let widths = [heads * keys, heads * keys, channels, heads, heads]
    let projected = bfloat16(randomFloats(count * widths.reduce(0, +), seed: 1).map { $0 * 2 })
    let taps = bfloat16(randomFloats(count * channels * 4, seed: 2))
    var history = bfloat16(randomFloats(count * channels * 4, seed: 3))
    let (bias, aLog) = (randomFloats(channels * 4, seed: 4), randomFloats(heads, seed: 5))
    let (dtBias, before) = (randomFloats(heads, seed: 6), randomFloats(count * heads * keys * values, seed: 7))
    let wide = backend.tensor(widened(projected), [count, widths.reduce(0, +)])
    var first = 0
    let parts = widths.map { width in
      defer { first += width }
      return wide.columns(first..<first + width)
    }
    let step = JetStep(
      q: parts[0], k: parts[1], v: parts[2], a: parts[3], b: parts[4],
      taps: backend.tensor(widened(taps), [count, channels * 4]), tapBias: backend.tensor(bias, [channels * 4]),
      aLog: backend.tensor(aLog, [heads]), dtBias: backend.tensor(dtBias, [heads]),
      history: backend.tensor(widened(history), [count, 4, channels]),
      state: backend.tensor(before, [count, heads, keys, values]), epsilon: 1e-6)
    let expected = backend.empty([count, heads, values])
    backend.jetStep(step, layout: Layout(decodingAfter: [4, 9], limit: 12, on: backend), into: expected)
    var o = [UInt16](repeating: 0x7fff, count: count * channels)
    var state = before
    aligned(before) { bytes in
      aligned(taps) { taps in
        aligned(history) { past in
          emulate_jet_step(
            projected, taps, bias, aLog, dtBias, 1e-6, step.scale, Int32(count), Int32(heads), past,
            bytes.assumingMemoryBound(to: Float.self), &o)
          history = Array(UnsafeBufferPointer(start: past.assumingMemoryBound(to: UInt16.self), count: history.count))
        }
      }
      state = Array(UnsafeBufferPointer(start: bytes.assumingMemoryBound(to: Float.self), count: state.count))
    }
    let errors = [
      relativeError(widened(o), expected.toArray()), relativeError(state, step.state.toArray()),
      relativeError(widened(history), step.history.toArray()),
    ]
    print("emulated: step of a JetBlock: output, state, history \(errors)")
    #expect(errors[0] < 5e-3 && errors[1] < 1e-5 && errors[2] == 0)
  }

  /// Calls `body` with a copy at a multiple of 64 bytes.
  private func aligned<Element>(_ x: [Element], _ body: (UnsafeMutableRawPointer) -> Void) {
    let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: x.count * MemoryLayout<Element>.stride, alignment: 64)
    defer { copy.deallocate() }
    x.withUnsafeBytes { copy.copyMemory(from: $0) }
    body(copy.baseAddress!)
  }
}
