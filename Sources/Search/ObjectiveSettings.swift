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

  /// The objectives and their weights, of which it is known that they can measure the models.
  ///
  /// - Parameters:
  ///   - model: path of the model whose tokenizer is taken where none is named, and whose end tokens end answers
  ///   - configurations: of the models that are to be measured
  ///   - teacher: needed by `kl`
  package func make(
    of model: String, fits configurations: [ModelConfiguration], teacher: ModelConfiguration?
  ) throws -> ([Objective], [Double]) {
    var objectives: [Objective] = []
    var weights: [Double] = []
    for text in names {
      // A weight is what follows the last colon, where that is a number.
      let parts = text.split(separator: ":")
      let weight = parts.count > 1 ? Double(parts[parts.count - 1]) : nil
      let name = weight == nil ? text : parts.dropLast().joined(separator: ":")
      guard weight ?? 1 > 0 else { throw JobError(.usage, "objective \(text): weights are above zero") }
      weights.append(weight ?? 1)
      let objective = try objective(name, of: model, hasTeacher: teacher != nil)
      try objective.check(fits: configurations, teacher: teacher)
      objectives.append(objective)
    }
    guard !objectives.isEmpty else { throw JobError(.usage, "a search needs an objective") }
    return (objectives, weights)
  }

  private func objective(_ name: String, of model: String, hasTeacher: Bool) throws -> Objective {
    if name == "kl" || name == "loss" {
      guard name == "loss" || hasTeacher else { throw JobError(.usage, "objective kl needs a teacher") }
      guard let heldOut else { throw JobError(.usage, "objective \(name) needs held-out text (--data)") }
      return try Objective(heldOut: heldOut.plan(), sequences: sequences, kl: name == "kl")
    }
    let tokenizer = try makeTokenizer(tokenizer, of: model)
    let parts = name.split(separator: "=", maxSplits: 1).map(String.init)
    let isAccuracy = parts.count == 2 && parts[0] == "accuracy"
    if let task = RetrievalTask(rawValue: isAccuracy ? parts[1] : name) {
      try retrieval.check(task)
      return Objective(
        task, retrieval, count: sequences, seed: seed, tokenizer: tokenizer, accuracy: isAccuracy)
    }
    guard parts.count == 2, isAccuracy || parts[0] == "answer-loss" else {
      throw JobError(
        .usage,
        "objective \(name): unknown; known are kl, loss, recall, needle, phone-book, answer-loss=FILE, accuracy=FILE, "
          + "accuracy=recall, accuracy=needle, accuracy=phone-book")
    }
    return try Objective(
      answers: parts[1], limit: sequences, seed: seed, tokenizer: tokenizer, match: isAccuracy ? match : nil,
      endTokens: endTokens(of: model, tokenizer))
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
