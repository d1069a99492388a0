import ArgumentParser
import CPUBackend
import Evaluation
import Files
import Foundation
import Models
import NN
import Reporting
import TokenStreams
import Tokenizers
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
      let result = try Evaluation(
        model: model, teacher: teacher, plan: heldOut.plan(), sequences: heldOut.sequences, backend: backend)
      var fields: [String: Any] = [
        "model": self.model, "loss": result.loss, "perplexity": exp(result.loss), "labels": result.labels,
      ]
      if let kl = result.kl { fields["kl"] = kl }
      FileHandle.standardOutput.write(try jsonLine(fields))
    }
  }
}

struct Generate: ParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Continue a text, with recurrent and key-value caches.")
  @Argument(help: "A model folder, run folder or checkpoint.") var model: String
  @Option(help: "The text to continue.") var prompt: String
  @Option(help: "Tokens to make.") var maxTokens = 128
  @Option(help: "0 takes the most likely token.") var temperature = 0.0
  @Option(help: "Choose among this many tokens; 0: all.") var topK = 0
  @Option(help: "Choose among the likeliest tokens of this mass.") var topP = 1.0
  @Option(help: "The same seed gives the same text.") var seed: UInt64 = 1
  @Option(help: "The tokenizer.") var tokenizer = "bytes"

  func run() {
    withoutWorld {
      guard maxTokens > 0, temperature >= 0, topP > 0, !prompt.isEmpty else {
        throw JobError(
          .usage, "--max-tokens and --top-p must be above zero, --temperature not below, --prompt not empty")
      }
      let backend = CPUBackend(threads: Machine.cores)
      let model = try loadModel(model, backend: backend)
      let tokenizer = try makeTokenizer(tokenizer)
      guard model.configuration.vocabularySize >= tokenizer.vocabularySize else {
        throw JobError(.data, "the model's vocabulary is smaller than that of tokenizer \(tokenizer.name)")
      }
      let generator = Generator(model, backend: backend)
      let sampling = Sampling(temperature: temperature, topK: topK, topP: topP)
      var random = RandomStream(seed: seed, name: "generate")
      var clock = PhaseClock()
      var logits = generator.read(tokenizer.encode(prompt.utf8))
      clock.mark("prefill")
      // A character may take several tokens; it is printed when it is whole.
      var pending = Data()
      var made = 0
      while made < maxTokens {
        let token = UInt32(sampling.choose(logits, random: &random))
        if token == tokenizer.endOfText { break }
        made += 1
        pending += tokenizer.decode([token])
        if let text = String(data: pending, encoding: .utf8) {
          FileHandle.standardOutput.write(Data(text.utf8))
          pending.removeAll()
        } else if pending.count > 4 {
          FileHandle.standardOutput.write(Data(String(decoding: pending, as: UTF8.self).utf8))
          pending.removeAll()
        }
        logits = generator.read([token])
      }
      clock.mark("decode")
      FileHandle.standardOutput.write(Data("\n".utf8))
      let speed = Double(made) / (clock.seconds["decode"] ?? 1)
      FileHandle.standardError.write(
        Data(
          "\(made) tokens, \(String(format: "%.1f", speed)) tokens/s, caches \(Format.bytes(Double(generator.cacheBytes)))\n"
            .utf8))
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
      let plan = try heldOut.plan()
      var teacher: HybridLM?
      var rows = [
        ["model", "loss", "KL", "perplexity"] + Self.contexts.map { "cache \($0 / 1024)K" }
          + ["decode tok/s", "at \(Self.contexts[0] / 1024)K"]
      ]
      for argument in models {
        let parts = argument.split(separator: "=", maxSplits: 1).map(String.init)
        guard parts.count == 2 else { throw JobError(.usage, "\(argument): expected NAME=MODEL") }
        let model = try loadModel(parts[1], backend: backend)
        let result = try Evaluation(
          model: model, teacher: teacher, plan: plan, sequences: heldOut.sequences, backend: backend)
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
    let generator = Generator(model, backend: backend)
    var logits = generator.read((0..<prompt).map { UInt32($0 * 7 % 97 + 32) })
    var random = RandomStream(seed: 0, name: "compare")
    var clock = PhaseClock()
    for _ in 0..<decode { logits = generator.read([UInt32(Sampling().choose(logits, random: &random))]) }
    clock.mark("decode")
    return Double(decode) / clock.total
  }
}
