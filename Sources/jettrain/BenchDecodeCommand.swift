import ArgumentParser
import CPUBackend
import CUDABackend
import Evaluation
import Foundation
import Models
import Reporting
import Tensors
import Training

extension Bench {
  struct Decode: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Reading and writing speed and cache size of a hybrid and its teachers, by context.",
      discussion:
        "JSON lines go to standard output, tables with the ratios to standard error. A config.json in place of a "
        + "model stands for random weights. Caches are filled at random instead of reading the text in front.")
    @Option(help: "The hybrid: a model folder, run folder, checkpoint or config.json.") var model: String
    @Option(help: "Its teacher, the same; several times for several.") var teacher: [String] = []
    @Option(
      help: ArgumentHelp("Tokens in front, separated by commas.", valueName: "n,n,…"),
      transform: Whole.list(from: 1, to: Most.context))
    var contexts = [1024, 4096, 16_384, 65_536]
    @Option(help: "Sequences side by side.", transform: Whole.from(1, to: 65_536)) var batch = 1
    @Option(help: "In place of --batch: the most that fit into this much memory with the weights, such as 8G or 72GiB.")
    var maxMemory: String?
    @Option(
      help: "With --max-memory: never more than this; default: 256, on a card 65536.",
      transform: Whole.from(1, to: 65_536)) var maxBatch: Int?
    @Option(help: "Decoding steps to time; the median counts.", transform: Whole.from(1, to: Most.timedRuns))
    var steps = 16
    @Option(
      help: "Longest sequence to read as a whole; longer ones by chunks at evenly spaced places.",
      transform: Whole.from(1, to: Most.context))
    var wholePrefill = 16_384
    @Option(
      help: ArgumentHelp(
        "Type of the states of recurrences; bfloat16, on a card, also measures the error that it costs.",
        valueName: "float32|bfloat16"))
    var stateType = StateType.float32
    @Flag(help: "Also print the time of a decoding step by op, of the hybrid behind the last context.") var profile =
      false
    @OptionGroup var device: DeviceOption

    enum StateType: String, ExpressibleByArgument { case float32, bfloat16 }

    /// The 2B over Qwen3-1.7B on one H100 (arXiv 2508.15884, RECIPE section 7).
    private static let paper: [Int: (prefill: Double, decode: Double)] = [
      4096: (1.14, 15.6), 8192: (1.15, 23.3), 16_384: (1.37, 39.6), 32_768: (1.74, 44.1), 65_536: (2.54, 47.5),
      131_072: (4.03, 51.6), 262_144: (6.14, 53.6),
    ]

    func run() {
      withoutWorld {
        let limit = try maxMemory.map(Self.bytes)
        let backend = try device.backend()
        let card = backend as? CUDABackend
        guard stateType == .float32 || card != nil else {
          throw JobError(
            .usage, "--state-type bfloat16: states of generation on the CPU are float32; add --device cuda")
        }
        var plan = Throughput.Plan()
        plan.steps = steps
        plan.wholePrefill = wholePrefill
        plan.stateType = stateType == .bfloat16 ? .bfloat16 : .float32
        // The best seen so far: a neighbour on the host can halve a single measurement.
        var bandwidth = 0.0
        func measure(_ path: String, _ role: String) throws -> [Throughput] {
          let model = try load(path, backend)
          if plan.stateType == .bfloat16, model.cacheElements(context: 1).states > 0 {
            let (prompt, written) = (1024, 256)
            try Bench.emit([
              "bench": "state-type", "model": path, "prompt": prompt, "steps": written,
              "logits_error": try model.errorOfNarrowStates(prompt: prompt, steps: written, backend: backend),
            ])
          }
          return try contexts.map { context in
            backend.trim()
            bandwidth = max(
              bandwidth, try card.map { try DeviceRates.copyBandwidth($0.device) } ?? Self.readRate(backend))
            let room = Room(
              model, context: context, stateType: plan.stateType, onCard: card != nil, threads: device.cores.count())
            let size = try limit.map { try room.largestBatch(within: $0, at: path, most: maxBatch) } ?? batch
            try refuse(
              "\(path), --batch \(size) at \(context) tokens", of: Double(room.bytes(batch: size)),
              in: card.map { Double($0.device.memory) } ?? Double(ProcessInfo.processInfo.physicalMemory))
            let result = Throughput(
              model, context: context, batch: size, plan: plan, bandwidth: bandwidth, backend: backend)
            var fields: [String: Any] = [
              "bench": "decode", "role": role, "model": path, "parameters": model.store.count, "context": context,
              "batch": result.batch, "prefill_tokens_per_s": result.prefill,
              "prefill_is_sampled": result.prefillIsSampled, "decode_tokens_per_s": result.decode,
              "cache_bytes_per_sequence": result.cacheBytes,
              "cache_bytes_as_bfloat16": result.cache.bytes(activations: .bfloat16, states: .bfloat16),
              "memory_bandwidth_bytes_per_s": bandwidth, "bandwidth_share": result.bandwidthShare,
              "peak_memory": Machine.peakMemory, "device": backend.deviceDescription, "state_type": stateType.rawValue,
            ]
            fields["peak_device_memory"] = card?.heldBytes
            try Bench.emit(fields)
            return result
          }
        }
        let references = try teacher.map { ($0, try measure($0, "teacher")) }
        let hybrid = try measure(model, "hybrid")
        if profile { try printProfile(hybrid[hybrid.count - 1], plan, backend) }
        let tables =
          references.isEmpty
          ? [Self.table(hybrid, nil)] : references.map { "\($0.0)\n" + Self.table(hybrid, $0.1) }
        FileHandle.standardError.write(Foundation.Data((tables.joined(separator: "\n") + "\n").utf8))
      }
    }

    /// Times by op of a step like those of `measured`, as the ops are asked for one by one.
    private func printProfile(_ measured: Throughput, _ plan: Throughput.Plan, _ backend: any Backend) throws {
      backend.trim()
      let model = try load(model, backend)
      let generator = Generator(
        model, sequences: measured.batch, capacity: measured.context + 8, stateType: plan.stateType, backend: backend)
      generator.assume(measured.context)
      let (tokens, uniforms) = (
        [UInt32](repeating: 1, count: measured.batch), [Float](repeating: 0, count: measured.batch)
      )
      _ = try generator.step(tokens, Sampling(), uniforms: uniforms)
      try startProfile(of: backend)
      _ = try generator.step(tokens, Sampling(), uniforms: uniforms)
      let times = opTimes(try takeProfile(of: backend))
      let total = times.reduce(0) { $0 + $1.seconds }
      let rows = times.map { name, seconds, launches in
        [
          name, String(format: "%.3f ms", seconds * 1e3), String(format: "%.1f %%", seconds / total * 100),
          "\(launches)",
        ]
      }
      print(Format.table([["op", "a step", "share", "launches"]] + rows))
    }

    private static func readRate(_ backend: any Backend) -> Double { (backend as? CPUBackend)?.readRate() ?? 1 }

    private func load(_ path: String, _ backend: any Backend) throws -> HybridLM {
      guard path.hasSuffix(".json") else { return try loadModel(path, backend: backend) }
      let model = HybridLM(try ModelConfiguration(path: path))
      Bench.fill(model, seed: 1, on: backend)
      return model
    }

    /// 512M, 8G, 72GiB, or plain bytes; powers of 1024.
    private static func bytes(_ text: String) throws -> Int {
      let units = ["K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40]
      let short = text.uppercased().hasSuffix("IB") ? String(text.dropLast(2)) : text
      let unit = units[short.suffix(1).uppercased()]
      guard let number = Double(unit == nil ? short : String(short.dropLast())), number > 0, number < 1e15 else {
        throw JobError(.usage, "--max-memory \(text): expected a size such as 8G")
      }
      return Int(number * Double(unit ?? 1))
    }

    /// Memory that decoding takes.
    private struct Room {
      let held: Int
      let perSequence: Int
      let mostByDefault: Int

      init(_ model: HybridLM, context: Int, stateType: DType, onCard: Bool, threads: Int) {
        let c = model.configuration
        let isNarrow = onCard && model.head.dtype == .bfloat16
        let weights = model.store.parameters.reduce(0) { $0 + $1.count * $1.value.dtype.size }
        let caches = model.cacheElements(context: context).bytes(
          activations: isNarrow ? .bfloat16 : .float32, states: stateType)
        // Beside its caches a sequence needs its logits, and its rows of every layer's intermediate results.
        let rows = (isNarrow ? 2 : 8) * c.vocabularySize + 64 * (c.hiddenSize + c.intermediateSize)
        // What attention on a card joins of a long cache, and its context, libraries and workspace.
        let parts =
          onCard
          ? CUDABackend.cachePartBytes(
            heads: c.architecture.attentionHeads, size: c.architecture.headSize, room: context) : 0
        held = weights + (onCard ? 1 << 30 : Machine.baseMemory(threads: threads))
        perSequence = caches + rows + parts
        mostByDefault = onCard ? 65_535 : 256
      }

      func bytes(batch: Int) -> Int { held + batch * perSequence }

      func largestBatch(within limit: Int, at path: String, most: Int?) throws -> Int {
        let fits = (limit - held) / perSequence
        guard fits >= 1 else {
          throw JobError(
            .usage, "--max-memory: \(path) with one sequence takes \(Format.bytes(Double(bytes(batch: 1))))")
        }
        let size = min(fits, most ?? mostByDefault)
        // Rows of products by eights.
        return size > 64 ? size / 8 * 8 : size
      }
    }

    private static func table(_ hybrid: [Throughput], _ teacher: [Throughput]?) -> String {
      func rate(_ value: Double) -> String { Format.count(value) }
      func ratio(_ value: Double) -> String { String(format: "%.2fx", value) }
      var rows = [
        ["context", "batch", "prefill tok/s", "decode tok/s", "bandwidth", "cache"]
          + (teacher == nil
            ? [] : ["teacher: batch", "prefill", "decode", "cache", "prefill", "paper", "decode", "paper", "cache"])
      ]
      for (index, h) in hybrid.enumerated() {
        var row = [
          "\(h.context)", "\(h.batch)", (h.prefillIsSampled ? "~" : "") + rate(h.prefill), rate(h.decode),
          String(format: "%.0f %%", h.bandwidthShare * 100), Format.bytes(Double(h.cacheBytes)),
        ]
        if let t = teacher?[index] {
          let paper = paper[h.context]
          row += [
            "\(t.batch)", (t.prefillIsSampled ? "~" : "") + rate(t.prefill), rate(t.decode),
            Format.bytes(Double(t.cacheBytes)), ratio(h.prefill / t.prefill), paper.map { ratio($0.prefill) } ?? "–",
            ratio(h.decode / t.decode), paper.map { ratio($0.decode) } ?? "–",
            ratio(Double(t.cacheBytes) / Double(h.cacheBytes)),
          ]
        }
        rows.append(row)
      }
      return Format.table(rows)
    }
  }
}
