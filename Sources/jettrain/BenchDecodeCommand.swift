import ArgumentParser
import CPUBackend
import Evaluation
import Foundation
import Models
import Reporting
import Tensors
import Training

extension Bench {
  struct Decode: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Reading and writing speed and cache size of a hybrid and its teacher, by context.",
      discussion:
        "JSON lines go to standard output, the table with the ratios to standard error. A config.json in place of a "
        + "model stands for random weights. Caches are filled without reading the text in front.")
    @Option(help: "The hybrid: a model folder, run folder, checkpoint or config.json.") var model: String
    @Option(help: "Its teacher, the same.") var teacher: String?
    @Option(
      help: ArgumentHelp("Tokens in front, separated by commas.", valueName: "n,n,…"),
      transform: Whole.list(from: 1, to: Most.context))
    var contexts = [1024, 4096, 16_384, 65_536]
    @Option(help: "Sequences side by side.", transform: Whole.from(1, to: 65_536)) var batch = 1
    @Option(help: "In place of --batch: the most that fit into this much memory with the weights, such as 8G.")
    var maxMemory: String?
    @Option(help: "With --max-memory: never more than this.", transform: Whole.from(1, to: 65_536)) var maxBatch = 256
    @Option(help: "Decoding steps to time; the median counts.", transform: Whole.from(1, to: Most.timedRuns))
    var steps = 16
    @Option(
      help: "Longest sequence to read as a whole; longer ones by chunks at evenly spaced places.",
      transform: Whole.from(1, to: Most.context))
    var wholePrefill = 16_384

    /// The 2B over Qwen3-1.7B on one H100 (arXiv 2508.15884, RECIPE section 7).
    private static let paper: [Int: (prefill: Double, decode: Double)] = [
      4096: (1.14, 15.6), 8192: (1.15, 23.3), 16_384: (1.37, 39.6), 32_768: (1.74, 44.1), 65_536: (2.54, 47.5),
      131_072: (4.03, 51.6), 262_144: (6.14, 53.6),
    ]

    func run() {
      withoutWorld {
        let limit = try maxMemory.map(Self.bytes)
        var plan = Throughput.Plan()
        plan.steps = steps
        plan.wholePrefill = wholePrefill
        let backend = CPUBackend(threads: Machine.cores)
        // The best seen so far: a neighbour on the host can halve a single measurement.
        var bandwidth = backend.readRate()
        func measure(_ path: String, _ role: String) throws -> [Throughput] {
          let model = try load(path, backend)
          return try contexts.map { context in
            bandwidth = max(bandwidth, backend.readRate())
            let size = try limit.map { try Self.largestBatch(model, context, within: $0, at: path, most: maxBatch) }
            let sequence = Double(model.cacheBytes(context: context) + 8 * model.configuration.vocabularySize)
            try refuse("\(path), --batch \(size ?? batch) at \(context) tokens", of: Double(size ?? batch) * sequence)
            let result = Throughput(
              model, context: context, batch: size ?? batch, plan: plan, bandwidth: bandwidth, backend: backend)
            FileHandle.standardOutput.write(
              try jsonLine([
                "bench": "decode", "role": role, "model": path, "parameters": model.store.count, "context": context,
                "batch": result.batch, "prefill_tokens_per_s": result.prefill,
                "prefill_is_sampled": result.prefillIsSampled, "decode_tokens_per_s": result.decode,
                "cache_bytes_per_sequence": result.cacheBytes, "cache_bytes_as_bfloat16": result.cacheBytes / 2,
                "memory_bandwidth_bytes_per_s": bandwidth, "bandwidth_share": result.bandwidthShare,
                "peak_memory": Machine.peakMemory,
              ]))
            return result
          }
        }
        let reference = try teacher.map { try measure($0, "teacher") }
        let hybrid = try measure(model, "hybrid")
        FileHandle.standardError.write(Foundation.Data((Self.table(hybrid, reference) + "\n").utf8))
      }
    }

    private func load(_ path: String, _ backend: any Backend) throws -> HybridLM {
      guard path.hasSuffix(".json") else { return try loadModel(path, backend: backend) }
      let model = HybridLM(try ModelConfiguration(path: path))
      model.initialize(seed: 1, backend: backend)
      return model
    }

    /// 512M, 8G, or plain bytes.
    private static func bytes(_ text: String) throws -> Int {
      let units = ["K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40]
      let unit = units[text.suffix(1).uppercased()]
      guard let number = Double(unit == nil ? text : String(text.dropLast())), number > 0, number < 1e15 else {
        throw JobError(.usage, "--max-memory \(text): expected a size such as 8G")
      }
      return Int(number * Double(unit ?? 1))
    }

    private static func largestBatch(
      _ model: HybridLM, _ context: Int, within limit: Int, at path: String, most: Int
    ) throws -> Int {
      let c = model.configuration
      let weights = model.store.parameters.reduce(0) { $0 + $1.count * $1.value.dtype.size }
      // Beside its caches a sequence needs its logits, and its rows of every layer's intermediate results.
      let perSequence =
        model.cacheBytes(context: context) + 8 * c.vocabularySize + 64 * (c.hiddenSize + c.intermediateSize)
      let fits = (limit - weights - Machine.baseMemory(threads: Machine.cores)) / perSequence
      guard fits >= 1 else {
        throw JobError(
          .usage,
          "--max-memory: \(path) with one sequence of \(context) tokens takes \(Format.bytes(Double(weights + perSequence)))"
        )
      }
      return min(fits, most)
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
