import ArgumentParser
import CPUBackend
import Evaluation
import Foundation
import Models
import NN
import Reporting
import TokenStreams
import Training

/// Held-out text to measure on: a mix, or one dataset.
struct HeldOut: ParsableArguments {
  @Option(help: "Folder of a dataset, or with --mix the folder that holds the mix's datasets.") var data: String
  @Option(help: "A mix: a name from Jobs/mixes, or a path.") var mix: String?
  @Option(help: "Tokens of a sequence.") var context = 256
  @Option(help: "Held-out sequences to read.") var sequences = 64

  func plan() throws -> DataPlan {
    if let mix {
      return try DataPlan(
        mix: Mix(mix, folder: "Jobs/mixes"), root: data, context: context, seed: 0, label: "evaluation",
        trains: false)
    }
    let url = URL(fileURLWithPath: data)
    return try DataPlan(
      mix: Mix(of: url.lastPathComponent), root: url.deletingLastPathComponent().path, context: context, seed: 0,
      label: "evaluation", trains: false)
  }
}

struct Eval: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Loss, perplexity and KL to a teacher on the held-out shards of a dataset or mix.")
  @Argument(help: "A model folder, run folder or checkpoint.") var model: String
  @Option(help: "A model to compare the distribution with.") var teacher: String?
  @OptionGroup var heldOut: HeldOut

  func run() {
    withoutWorld {
      let backend = CPUBackend(threads: Machine.cores)
      let model = try loadModel(model, backend: backend)
      let teacher = try teacher.map { try loadModel($0, backend: backend) }
      let result = Evaluation(
        model: model, teacher: teacher,
        batches: try Evaluation.heldOut(heldOut.plan(), sequences: heldOut.sequences), backend: backend)
      var fields: [String: Any] = [
        "model": self.model, "loss": result.loss, "perplexity": exp(result.loss), "labels": result.labels,
      ]
      if let kl = result.kl { fields["kl"] = kl }
      FileHandle.standardOutput.write(try jsonLine(fields))
    }
  }
}

struct Compare: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "A table of models: validation loss, KL to the first, cache sizes, decoding speed.")
  @Argument(help: "NAME=MODEL; the first is the teacher.") var models: [String]
  @OptionGroup var heldOut: HeldOut
  @Option(help: "Tokens to time decoding with.") var decode = 64

  private static let contexts = [1024, 16_384, 65_536]

  func run() {
    withoutWorld {
      let backend = CPUBackend(threads: Machine.cores)
      let batches = try Evaluation.heldOut(heldOut.plan(), sequences: heldOut.sequences)
      var teacher: HybridLM?
      var rows = [
        ["model", "loss", "KL", "perplexity"] + Self.contexts.map { "cache \($0 / 1024)K" }
          + ["decode tok/s", "at \(Self.contexts[0] / 1024)K"]
      ]
      for argument in models {
        let parts = argument.split(separator: "=", maxSplits: 1).map(String.init)
        guard parts.count == 2 else { throw JobError(.usage, "\(argument): expected NAME=MODEL") }
        let model = try loadModel(parts[1], backend: backend)
        let result = Evaluation(model: model, teacher: teacher, batches: batches, backend: backend)
        let short = speed(model, backend, after: 16)
        let long = speed(model, backend, after: Self.contexts[0])
        rows.append(
          [
            parts[0], String(format: "%.4f", result.loss), result.kl.map { String(format: "%.4f", $0) } ?? "–",
            String(format: "%.3f", exp(result.loss)),
          ]
            + Self.contexts.map { Format.bytes(Double(model.cacheBytes(context: $0))) }
            + [String(format: "%.0f", short), String(format: "%.0f", long)])
        if teacher == nil { teacher = model }
      }
      print(Format.table(rows))
    }
  }

  /// Tokens a second of greedy decoding behind a prompt of `prompt` tokens.
  private func speed(_ model: HybridLM, _ backend: CPUBackend, after prompt: Int) -> Double {
    let generator = Generator(model, capacity: prompt + decode, backend: backend)
    var logits = generator.read([(0..<prompt).map { UInt32($0 * 7 % 97 + 32) }])
    var random = RandomStream(seed: 0, name: "compare")
    var clock = PhaseClock()
    for _ in 0..<decode { logits = generator.read([[Sampling().choose(logits.toArray(), random: &random)]]) }
    clock.mark("decode")
    return Double(decode) / clock.total
  }
}
