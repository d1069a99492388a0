import ArgumentParser
import Foundation
import Search
import TokenStreams
import Tokenizers
import Training

/// What models are judged by in a search.
struct ObjectiveOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "kl (needs --teacher), loss, recall (associative recall of random ids), or answers=FILE (JSON Lines with query, "
        + "choices, gold, or context, continuation); a weight may follow, as in kl:2. May be given several times.",
      valueName: "objective"))
  var objective: [String] = ["kl"]
  @Option(help: "The teacher.") var teacher: String?
  @OptionGroup var heldOut: HeldOut
  @Option(help: "Pairs of a sequence of recall.") var recallPairs = 16
  @Option(help: "The tokenizer of answers; default: the model's, else bytes.") var tokenizer: String?

  /// The objectives and their weights.
  func make(vocabulary: Int, tokenizerOf model: String, hasTeacher: Bool, seed: UInt64) throws -> (
    [Objective], [Double]
  ) {
    var objectives: [Objective] = []
    var weights: [Double] = []
    for text in objective {
      // A weight is what follows the last colon, where that is a number.
      let parts = text.split(separator: ":")
      let weight = parts.count > 1 ? Double(parts[parts.count - 1]) : nil
      let name = weight == nil ? text : parts.dropLast().joined(separator: ":")
      guard weight ?? 1 > 0 else { throw JobError(.usage, "--objective \(text): weights are above zero") }
      weights.append(weight ?? 1)
      switch name {
      case "kl", "loss":
        guard name == "loss" || hasTeacher else { throw JobError(.usage, "--objective kl needs --teacher") }
        objectives.append(
          try Objective(heldOut: heldOut.plan(), sequences: heldOut.sequences, kl: name == "kl"))
      case "recall":
        objectives.append(
          try Objective(
            recallPairs: recallPairs, sequences: heldOut.sequences, vocabulary: vocabulary, seed: seed))
      case _ where name.hasPrefix("answers="):
        objectives.append(
          try Objective(
            answers: String(name.dropFirst(8)), limit: heldOut.sequences,
            tokenizer: makeTokenizer(tokenizer, of: model)))
      default:
        throw JobError(.usage, "--objective \(text): unknown (kl, loss, recall and answers=FILE are known)")
      }
    }
    return (objectives, weights)
  }
}
