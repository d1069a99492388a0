import ArgumentParser
import Evaluation
import Files
import Foundation
import Models
import Reporting
import Search
import Tensors
import TokenStreams
import Tokenizers
import Training

struct Eval: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Loss, perplexity and KL to a teacher on held-out text, and any objective of a search.",
    discussion: "Prints one line of JSON. Losses are better when smaller; accuracy=… is the share of right answers.")
  @Argument(help: "A model folder, run folder or checkpoint.") var model: String
  @OptionGroup var objectives: ObjectiveOptions
  @OptionGroup var device: DeviceOption

  func run() {
    withoutWorld {
      let backend = try device.backend()
      let settings = try objectives.settings(fallback: [])
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
          if let (right, asked) = try objective.answers(model, backend: backend) {
            fields[objective.name] = Double(right) / Double(max(1, asked))
            fields[objective.name + " answers"] = asked
          } else {
            fields[objective.name] = try objective.score(model, teacher: teacher, backend: backend)
          }
        }
      }
      FileHandle.standardOutput.write(try jsonLine(fields))
    }
  }
}

struct Compare: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Models side by side: held-out loss, KL to the first, right answers, cache sizes, decoding speed.")
  @Argument(help: "NAME=MODEL; the first is the teacher.") var models: [String]
  @OptionGroup var heldOut: HeldOut
  @OptionGroup var device: DeviceOption
  @Option(
    help: ArgumentHelp(
      "Count right answers: a file of questions, or recall, needle, phone-book, roll-call, "
        + "roll-call-letters, roll-call-sums. May be given several times.",
      valueName: "file|task"))
  var accuracy: [String] = []
  @OptionGroup var retrieval: RetrievalOptions
  @Option(help: "Show what every model answers to questions of this file.") var samples: String?
  @Option(help: "With --samples: how many.", transform: Whole.from(1, to: 100)) var show = 6
  @Option(help: "Whether a generated answer contains or equals a right one, word by word.") var match = AnswerMatch
    .contains
  @Option(help: "The tokenizer of answers; default: the first model's, else bytes.") var tokenizer: String?
  @Option(help: "Draws questions and retrieval texts.") var seed = ObjectiveSettings.standardSeed
  @Option(help: "Tokens to time decoding with.", transform: Whole.from(1, to: 65_536)) var decode = 64
  @Option(help: "Also write it all as a page, report.html say.") var report: String?
  @Option(help: "Title of the page.") var title = "Models side by side"
  @Option(help: "A sentence for the top of the page; may be given several times.") var note: [String] = []

  func run() {
    withoutWorld {
      let backend = try device.backend()
      guard let folder = heldOut.folder else { throw JobError(.usage, "compare needs held-out text (--data)") }
      let named = try models.map { argument in
        let parts = argument.split(separator: "=", maxSplits: 1).map(String.init)
        guard parts.count == 2 else { throw JobError(.usage, "\(argument): expected NAME=MODEL") }
        return (name: parts[0], path: parts[1])
      }
      var plan = ModelComparison.Plan(
        text: try EvaluationText(heldOut: folder.plan(), sequences: heldOut.sequences))
      plan.decodedTokens = decode
      var comparison: ModelComparison?
      var teacher: HybridLM?
      for (name, path) in named {
        let model = try loadModel(path, backend: backend)
        try model.checkFinite(at: path)
        if comparison == nil { comparison = try prepare(&plan, of: path, model) }
        try comparison?.add(name, model, at: path, teacher: teacher, plan, backend: backend)
        if teacher == nil { teacher = model }
      }
      guard let comparison else { return }
      print(comparison.text)
      if let report {
        try createFolder(Files.folder(of: report))
        try writeDurably(Data(comparison.page(title: title, notes: note).utf8), to: report)
        print("\n\(report) shows it all")
      }
    }
  }

  /// What is asked, with the tokenizer of the first model.
  private func prepare(
    _ plan: inout ModelComparison.Plan, of path: String, _ model: HybridLM
  ) throws -> ModelComparison {
    var settings = ObjectiveSettings()
    settings.names = accuracy.map { "accuracy=\($0)" }
    settings.sequences = heldOut.sequences
    settings.retrieval = retrieval.settings
    settings.match = match
    settings.tokenizer = tokenizer
    settings.seed = seed
    if !accuracy.isEmpty { plan.tasks = try settings.make(of: path, fits: [model.configuration], teacher: nil) }
    let answers = try makeTokenizer(tokenizer, of: path)
    plan.samples = try samples.map { file in
      QuestionSet(
        try Question.draw(show, from: file, seed: seed), match: match, tokenizer: answers,
        endTokens: endTokens(of: path, answers))
    }
    return ModelComparison(plan)
  }
}
