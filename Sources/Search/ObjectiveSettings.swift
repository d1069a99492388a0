import Evaluation
import Foundation
import Models
import TokenStreams
import Tokenizers
import Training

/// Which objectives a search has, as a user writes them.
package struct ObjectiveSettings: Sendable {
  /// `kl`, `loss`, `recall`, `needle`, `phone-book`, `answer-loss=FILE`, `accuracy=FILE` or `accuracy=TASK`; a weight may
  /// follow a colon, as in `kl:2`.
  package var names: [String] = ["kl"]
  package var heldOut: HeldOutFolder?
  /// Held-out sequences, questions and texts to read.
  package var sequences = 64
  package var retrieval = RetrievalSettings()
  package var match = AnswerMatch.contains
  package var tokenizer: String?
  /// Draws questions and retrieval texts: the same default in every command, so that their scores are of the same ones.
  package var seed = standardSeed

  package static let standardSeed: UInt64 = 1

  package init() {}

  /// What one of ``names`` asks for.
  private enum Request {
    case heldOut(kl: Bool)
    case task(RetrievalTask, accuracy: Bool)
    case answers(String, accuracy: Bool)

    /// Whether its score has a gradient.
    var isDifferentiable: Bool {
      switch self {
      case .heldOut: true
      case .task(_, let accuracy), .answers(_, let accuracy): !accuracy
      }
    }
  }

  private func request(_ text: String) throws -> (request: Request, weight: Double) {
    // A weight is what follows the last colon, where that is a number.
    let parts = text.split(separator: ":")
    let weight = parts.count > 1 ? Double(parts[parts.count - 1]) : nil
    let name = weight == nil ? text : parts.dropLast().joined(separator: ":")
    guard weight ?? 1 > 0, weight?.isFinite ?? true else {
      throw JobError(.usage, "objective \(text): weights are above zero")
    }
    if name == "kl" || name == "loss" { return (.heldOut(kl: name == "kl"), weight ?? 1) }
    let words = name.split(separator: "=", maxSplits: 1).map(String.init)
    let isAccuracy = words.count == 2 && words[0] == "accuracy"
    if let task = RetrievalTask(rawValue: isAccuracy ? words[1] : name) {
      return (.task(task, accuracy: isAccuracy), weight ?? 1)
    }
    guard words.count == 2, isAccuracy || words[0] == "answer-loss" else {
      throw JobError(
        .usage,
        "objective \(name): unknown; known are kl, loss, \(RetrievalTask.allCases.map(\.rawValue).joined(separator: ", ")), "
          + "answer-loss=FILE, accuracy=FILE, "
          + RetrievalTask.allCases.map { "accuracy=\($0.rawValue)" }.joined(separator: ", "))
    }
    return (.answers(words[1], accuracy: isAccuracy), weight ?? 1)
  }

  /// Refuses what can be seen to be wrong without reading a file.
  ///
  /// - Parameters:
  ///   - hasTeacher: needed by `kl`
  ///   - strategies: that search by them
  package func check(hasTeacher: Bool, strategies: [StrategyName] = []) throws {
    guard !names.isEmpty else { throw JobError(.usage, "a search needs an objective") }
    let requests = try names.map { try request($0).request }
    var hasKL = false
    for request in requests {
      switch request {
      case .heldOut(let kl):
        hasKL = hasKL || kl
        guard !kl || hasTeacher else { throw JobError(.usage, "objective kl needs a teacher") }
        guard heldOut != nil else {
          throw JobError(.usage, "objective \(kl ? "kl" : "loss") needs held-out text (--data, objectives.data)")
        }
      case .task(let task, _): try retrieval.check(task)
      case .answers: break
      }
    }
    guard hasKL || !strategies.contains(.klRestore) else {
      throw JobError(.usage, "strategy kl-restore ranks layers by KL: it needs the objective kl beside the others")
    }
    guard !strategies.contains(.differentiable) || requests.contains(where: \.isDifferentiable) else {
      throw JobError(
        .usage, "strategy differentiable needs an objective with a gradient: kl, loss, answer-loss or a retrieval loss")
    }
  }

  /// The objectives, of which it is known that they can measure the models.
  ///
  /// - Parameters:
  ///   - model: path of the model whose tokenizer is taken where none is named, and whose end tokens end answers
  ///   - configurations: of the models that are to be measured
  ///   - teacher: needed by `kl`
  package func make(
    of model: String, fits configurations: [ModelConfiguration], teacher: ModelConfiguration?
  ) throws -> [Objective] {
    try check(hasTeacher: teacher != nil)
    return try names.map { name in
      let (request, weight) = try request(name)
      var objective: Objective
      switch request {
      case .heldOut(let kl):
        guard let heldOut else { preconditionFailure("checked above") }
        objective = try Objective(heldOut: heldOut.plan(), sequences: sequences, kl: kl)
      case .task(let task, let accuracy):
        objective = Objective(
          task, retrieval, count: sequences, seed: seed, tokenizer: try makeTokenizer(tokenizer, of: model),
          accuracy: accuracy)
      case .answers(let path, let accuracy):
        let tokenizer = try makeTokenizer(tokenizer, of: model)
        objective = try Objective(
          answers: path, limit: sequences, seed: seed, tokenizer: tokenizer, match: accuracy ? match : nil,
          endTokens: endTokens(of: model, tokenizer))
      }
      objective.weight = weight
      try objective.check(fits: configurations, teacher: teacher)
      return objective
    }
  }
}

/// Where held-out text lies.
package struct HeldOutFolder: Sendable {
  /// Folder of a dataset, with a mix the folder of its datasets.
  private let data: String
  private let mix: String?
  private let context: Int

  /// - Parameters:
  ///   - mix: a name from Jobs/mixes, or a path
  ///   - context: tokens of a sequence
  package init(data: String, mix: String?, context: Int) {
    (self.data, self.mix, self.context) = (data, mix, context)
  }

  /// The plan of its held-out shards.
  package func plan() throws -> DataPlan {
    let url = URL(fileURLWithPath: data)
    return try DataPlan(
      mix: mix.map { try Mix($0, folder: "Jobs/mixes") } ?? Mix(of: url.lastPathComponent),
      root: mix == nil ? url.deletingLastPathComponent().path : data, context: context, seed: 0, label: "evaluation",
      trains: false)
  }
}

extension RetrievalSettings {
  /// Refuses what `task` cannot be asked for.
  package func check(_ task: RetrievalTask) throws {
    let limit = RetrievalExample.limit(task, self)
    guard (1...limit).contains(items), queries > 0, words > 0, keys <= 676 else {
      throw JobError(
        .usage, "\(task.rawValue): items must be 1 to \(limit), queries and words above zero, keys 676 at most")
    }
  }
}
