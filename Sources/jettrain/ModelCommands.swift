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
  @OptionGroup var device: DeviceOption

  func run() {
    withoutWorld {
      let backend = try device.backend()
      let settings = objectives.settings(fallback: [])
      guard settings.heldOut != nil || !settings.names.isEmpty else {
        throw JobError(.usage, "eval needs held-out text (--data), an --objective, or both")
      }
      let model = try loadModel(model, backend: backend)
      try model.checkFinite(at: self.model)
      let teacher = try objectives.teacher.map { try loadModel($0, backend: backend) }
      var fields: [String: Any] = ["model": self.model]
      if let heldOut = settings.heldOut {
        let result = try Evaluation(
          model: model, teacher: teacher,
          text: EvaluationText(heldOut: heldOut.plan(), sequences: settings.sequences), backend: backend)
        fields.merge(["loss": result.loss, "perplexity": exp(result.loss), "labels": result.labels]) { $1 }
        if let kl = result.kl { fields["kl"] = kl }
      }
      if !settings.names.isEmpty {
        let measures = try settings.make(
          of: self.model, fits: [model.configuration], teacher: teacher?.configuration)
        for objective in measures {
          fields[objective.name] = try objective.score(model, teacher: teacher, backend: backend)
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
  @OptionGroup var device: DeviceOption
  @Option(help: "Tokens to time decoding with.", transform: Whole.from(1, to: 65_536)) var decode = 64

  private static let contexts = [1024, 16_384, 65_536]

  func run() {
    withoutWorld {
      let backend = try device.backend()
      guard let folder = heldOut.folder else { throw JobError(.usage, "compare needs held-out text (--data)") }
      let text = try EvaluationText(heldOut: folder.plan(), sequences: heldOut.sequences)
      var teacher: HybridLM?
      var rows = [
        ["model", "loss", "KL", "perplexity"] + Self.contexts.map { "cache \($0 / 1024)K" }
          + ["decode tok/s", "at \(Self.contexts[0] / 1024)K"]
      ]
      for argument in models {
        let parts = argument.split(separator: "=", maxSplits: 1).map(String.init)
        guard parts.count == 2 else { throw JobError(.usage, "\(argument): expected NAME=MODEL") }
        let model = try loadModel(parts[1], backend: backend)
        try model.checkFinite(at: parts[1])
        let result = try Evaluation(model: model, teacher: teacher, text: text, backend: backend)
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
    let vocabulary = model.configuration.vocabularySize
    var logits = generator.read([(0..<prompt).map { UInt32(($0 * 7 % 97 + 32) % vocabulary) }])
    var random = RandomStream(seed: 0, name: "compare")
    var clock = PhaseClock()
    for _ in 0..<decode { logits = generator.read([[Sampling().choose(logits.toArray(), random: &random)]]) }
    clock.mark("decode")
    return Double(decode) / clock.total
  }
}
