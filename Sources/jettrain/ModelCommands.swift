import ArgumentParser
import Evaluation
import Foundation
import Models
import NN
import Reporting
import Search
import Tensors
import TokenStreams
import Training

struct Eval: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Loss, perplexity and KL to a teacher on held-out text, and any objective of a search.",
    discussion: "Prints one line of JSON. Scores are better when smaller: accuracy=… is the share of wrong answers.")
  @Argument(help: "A model folder, run folder or checkpoint.") var model: String
  @OptionGroup var objectives: ObjectiveOptions
  @Option(help: "The same seed gives the same questions.") var seed: UInt64 = 1

  func run() {
    withoutWorld {
      let backend = makeBackend()
      let settings = objectives.settings(seed: seed, fallback: [])
      guard settings.heldOut != nil || !settings.names.isEmpty else {
        throw JobError(.usage, "eval needs held-out text (--data), an --objective, or both")
      }
      let model = try loadModel(model, backend: backend)
      let teacher = try objectives.teacher.map { try loadModel($0, backend: backend) }
      var fields: [String: Any] = ["model": self.model]
      if let heldOut = settings.heldOut {
        let result = Evaluation(
          model: model, teacher: teacher,
          batches: try Evaluation.heldOut(heldOut.plan(), sequences: settings.sequences), backend: backend)
        fields.merge(["loss": result.loss, "perplexity": exp(result.loss), "labels": result.labels]) { $1 }
        if let kl = result.kl { fields["kl"] = kl }
      }
      if !settings.names.isEmpty {
        for objective in try settings.make(tokenizerOf: self.model, hasTeacher: teacher != nil).0 {
          fields[objective.name] = objective.score(model, teacher: teacher, backend: backend)
        }
      }
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
      let backend = makeBackend()
      guard let text = heldOut.folder else { throw JobError(.usage, "compare needs held-out text (--data)") }
      let batches = try Evaluation.heldOut(text.plan(), sequences: heldOut.sequences)
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
        var row: [String] = [
          parts[0], String(format: "%.4f", result.loss), result.kl.map { String(format: "%.4f", $0) } ?? "–",
          String(format: "%.3f", exp(result.loss)),
        ]
        row += Self.contexts.map { Format.bytes(Double(model.cacheBytes(context: $0))) }
        row += [String(format: "%.0f", short), String(format: "%.0f", long)]
        rows.append(row)
        if teacher == nil { teacher = model }
      }
      print(Format.table(rows))
    }
  }

  /// Tokens a second of greedy decoding behind a prompt of `prompt` tokens.
  private func speed(_ model: HybridLM, _ backend: any Backend, after prompt: Int) -> Double {
    let generator = Generator(model, capacity: prompt + decode, backend: backend)
    var logits = generator.read([(0..<prompt).map { (i: Int) -> UInt32 in UInt32(i * 7 % 97 + 32) }])
    var random = RandomStream(seed: 0, name: "compare")
    var clock = PhaseClock()
    for _ in 0..<decode { logits = generator.read([[Sampling().choose(logits.toArray(), random: &random)]]) }
    clock.mark("decode")
    return Double(decode) / clock.total
  }
}
