import CUDA

/// The gated delta rule on a card (formulas in Kernels/GatedDeltaRule.cuh), for one size of heads.
///
/// N counts tokens, H heads, K and V key and value channels of a head. q, k `[N, H, K]`, v, o `[N, H, V]` and their
/// gradients are bfloat16 or float32 as `elements` says; g, beta `[N, H]`, states `[segments, H, K, V]` and their
/// gradients float32. Everything runs in stream order; the same inputs give the same bits.
package final class GatedDeltaRule: @unchecked Sendable {
  package enum Elements: Sendable {
    case bfloat16, float32

    package var byteCount: Int { self == .bfloat16 ? 2 : 4 }
  }

  /// What a backward pass needs of its forward pass.
  package struct Saved {
    let records: (any DeviceMemory)?
    let starts: any DeviceMemory
    let corrected: any DeviceMemory

    init(records: (any DeviceMemory)?, starts: any DeviceMemory, corrected: any DeviceMemory) {
      (self.records, self.starts, self.corrected) = (records, starts, corrected)
    }

    /// Bytes of device memory.
    package var byteCount: Int { (records?.byteCount ?? 0) + starts.byteCount + corrected.byteCount }
  }

  private enum Kernels {
    /// Chunks side by side on tensor cores. Elements of a record, a state and U of a chunk and head.
    case tensorCores(
      prepare: Kernel, forward: Kernel, states: Kernel, backward: Kernel, record: Int, state: Int, corrected: Int)
    /// Plain float32 arithmetic.
    case exact(forward: Kernel, backward: Kernel)
  }

  package let device: Device
  package let heads: Int
  package let keySize: Int
  package let valueSize: Int
  package let elements: Elements
  private let kernels: Kernels

  /// Whether tensor cores are used: bfloat16 with sizes that are multiples of 16, K at most 128.
  package var usesTensorCores: Bool { if case .tensorCores = kernels { true } else { false } }

  /// - Parameter plainCopies: whether copies are those of cards before Hopper, for checks.
  package init(
    _ library: KernelLibrary, heads: Int, keySize: Int, valueSize: Int, elements: Elements, plainCopies: Bool = false
  ) throws {
    (device, self.heads, self.keySize, self.valueSize) = (library.device, heads, keySize, valueSize)
    self.elements = elements
    let fits = keySize % 16 == 0 && keySize <= 128 && valueSize % 16 == 0
    let fast =
      elements == .bfloat16 && fits
      ? try Self.tensorCores(library, keySize: keySize, valueSize: valueSize, plainCopies: plainCopies) : nil
    kernels = try fast ?? Self.exact(library, elements)
  }

  /// Nil where the card has too little shared memory for these sizes.
  private static func tensorCores(
    _ library: KernelLibrary, keySize: Int, valueSize: Int, plainCopies: Bool
  ) throws -> Kernels? {
    for stages in [3, 2] {
      var defines = ["KEY_SIZE": "\(keySize)", "VALUE_SIZE": "\(valueSize)", "BACKWARD_STAGES": "\(stages)"]
      if plainCopies { defines["PLAIN_COPIES"] = "1" }
      let module = { (part: String) in try library.module("GatedDeltaRule\(part).cu", defines: defines) }
      let first = try module("Prepare")
      let sizes = try first.constants("gatedDeltaRuleSizes")
      guard sizes[3...].allSatisfy({ $0 <= library.device.sharedMemory }) else { continue }
      return .tensorCores(
        prepare: try first.kernel("gatedDeltaRulePrepare", sharedMemory: sizes[3]),
        forward: try module("Forward").kernel("gatedDeltaRuleForward", sharedMemory: sizes[4]),
        states: try module("BackwardStates").kernel("gatedDeltaRuleBackwardStates", sharedMemory: sizes[4]),
        backward: try module("Backward").kernel("gatedDeltaRuleBackward", sharedMemory: sizes[5]),
        record: sizes[0], state: sizes[1], corrected: sizes[2])
    }
    return nil
  }

  private static func exact(_ library: KernelLibrary, _ elements: Elements) throws -> Kernels {
    let module = try library.module(
      "GatedDeltaRuleExact.cu", defines: ["ELEMENT": elements == .bfloat16 ? "bf16" : "float"])
    return .exact(
      forward: try module.kernel("gatedDeltaRuleExactForward"),
      backward: try module.kernel("gatedDeltaRuleExactBackward"))
  }

  /// Memory for what `forward` saves of these chunks.
  package func makeSaved(_ chunks: ChunkTable) throws -> Saved {
    let sizes = savedByteCounts(chunks)
    return Saved(
      records: try sizes.records.map { try DeviceBuffer(device, byteCount: $0) },
      starts: try DeviceBuffer(device, byteCount: sizes.starts),
      corrected: try DeviceBuffer(device, byteCount: sizes.corrected))
  }

  /// Bytes of what `forward` saves of these chunks.
  func savedByteCounts(_ chunks: ChunkTable) -> (records: Int?, starts: Int, corrected: Int) {
    let perHead = chunks.chunkCount * heads
    switch kernels {
    case .tensorCores(_, _, _, _, let record, let state, let corrected):
      return (perHead * record * 2, perHead * state * 2, perHead * corrected * 2)
    case .exact:
      return (nil, perHead * keySize * valueSize * 4, chunks.tokens * heads * valueSize * 4)
    }
  }

  /// Bytes of scratch memory that `forward` and `backward` want: records where none are saved, gradients of states.
  package func workspaceByteCount(_ chunks: ChunkTable) -> Int {
    switch kernels {
    case .tensorCores(_, _, _, _, let record, let state, _): chunks.chunkCount * heads * max(record, state) * 2
    case .exact:
      // As `workspaceFloats` of GatedDeltaRuleExact.cu.
      chunks.segments.count * heads * 4
        * (keySize * valueSize + 4 * 64 * 64 + 2 * 64 * valueSize + 3 * 64 * keySize)
    }
  }

  private var slices: Int { (valueSize + 63) / 64 }
  private typealias A = KernelArgument

  /// o, and with `final` the states after the last tokens.
  ///
  /// - Parameters:
  ///   - initial: the states before the first tokens; zero when nil
  ///   - saved: receives what `backward` needs
  package func forward(
    q: any DeviceMemory, k: any DeviceMemory, v: any DeviceMemory, g: any DeviceMemory, beta: any DeviceMemory,
    scale: Float,
    chunks: ChunkTable, initial: (any DeviceMemory)?, o: any DeviceMemory, final: (any DeviceMemory)?, saved: Saved?,
    workspace: any DeviceMemory
  ) throws {
    check(chunks, q, k, v, g, beta, o, workspace)
    switch kernels {
    case .tensorCores(let prepare, let forward, _, _, _, _, _):
      let records = saved?.records ?? workspace
      try prepare.launch(
        grid: (heads, chunks.chunkCount, 1), threads: 128,
        [A(q), A(k), A(g), A(beta), A(chunks.chunks), A(heads), A(scale), A(records)])
      try forward.launch(
        grid: (slices, heads, chunks.segments.count), threads: 128,
        [
          A(v), A(records), A(chunks.chunks), A(chunks.firstChunks), A(heads), A(scale), A(initial), A(o), A(final),
          A(saved?.starts), A(saved?.corrected),
        ])
    case .exact(let forward, _):
      try forward.launch(
        grid: (heads, chunks.segments.count, 1), threads: 512,
        [
          A(q), A(k), A(v), A(g), A(beta), A(chunks.chunks), A(chunks.firstChunks), A(heads), A(keySize), A(valueSize),
          A(scale), A(initial), A(o), A(final), A(saved?.starts), A(saved?.corrected), A(workspace),
        ])
    }
  }

  /// The gradients of everything that `forward` took.
  ///
  /// - Parameters:
  ///   - dFinal: the gradient of the states after the last tokens; zero when nil
  ///   - saved: of the forward pass over the same inputs and chunks
  package func backward(
    dO: any DeviceMemory, dFinal: (any DeviceMemory)?, q: any DeviceMemory, k: any DeviceMemory, v: any DeviceMemory,
    g: any DeviceMemory,
    beta: any DeviceMemory, scale: Float, chunks: ChunkTable, saved: Saved, dQ: any DeviceMemory, dK: any DeviceMemory,
    dV: any DeviceMemory, dG: any DeviceMemory, dBeta: any DeviceMemory, dInitial: (any DeviceMemory)?,
    workspace: any DeviceMemory
  ) throws {
    check(chunks, q, k, v, g, beta, dO, workspace)
    check(chunks, dQ, dK, dV, dG, dBeta, dO, workspace)
    switch kernels {
    case .tensorCores(_, _, let states, let backward, _, _, _):
      try states.launch(
        grid: (slices, heads, chunks.segments.count), threads: 128,
        [
          A(dO), A(saved.records), A(chunks.chunks), A(chunks.firstChunks), A(heads), A(scale), A(dFinal), A(dV),
          A(dInitial), A(workspace),
        ])
      try backward.launch(
        grid: (min(device.multiprocessors, chunks.chunkCount * heads), 1, 1), threads: 256,
        [
          A(dO), A(dV), A(saved.records), A(saved.starts), A(saved.corrected), A(workspace), A(chunks.chunks),
          A(chunks.chunkCount), A(heads), A(scale), A(dQ), A(dK), A(dG), A(dBeta),
        ])
    case .exact(_, let backward):
      try backward.launch(
        grid: (heads, chunks.segments.count, 1), threads: 512,
        [
          A(q), A(k), A(v), A(g), A(beta), A(dO), A(dFinal), A(saved.starts), A(saved.corrected), A(chunks.chunks),
          A(chunks.firstChunks), A(heads), A(keySize), A(valueSize), A(scale), A(dQ), A(dK), A(dV), A(dG), A(dBeta),
          A(dInitial), A(workspace),
        ])
    }
  }

  /// A buffer that is too short would be written past its end.
  private func check(
    _ chunks: ChunkTable, _ q: any DeviceMemory, _ k: any DeviceMemory, _ v: any DeviceMemory, _ g: any DeviceMemory,
    _ beta: any DeviceMemory, _ o: any DeviceMemory, _ workspace: any DeviceMemory
  ) {
    let rows = chunks.tokens * heads
    let wanted = [
      (q, rows * keySize * elements.byteCount), (k, rows * keySize * elements.byteCount),
      (v, rows * valueSize * elements.byteCount), (o, rows * valueSize * elements.byteCount), (g, rows * 4),
      (beta, rows * 4), (workspace, workspaceByteCount(chunks)),
    ]
    for (buffer, bytes) in wanted {
      precondition(buffer.byteCount >= bytes, "gated delta rule: a buffer of \(buffer.byteCount) bytes, not \(bytes)")
    }
  }
}
