import Evaluation
import Files
import Foundation
import Models
import NN
import Tensors
import TokenStreams
import Tokenizers
import Training

/// What a placement is judged by; smaller is better.
package struct Objective {
  /// How it was asked for: `loss`, `kl`, `recall`, or `answers=FILE`.
  package let name: String
  private let batches: [SequenceBatch]
  private let comparesWithTeacher: Bool

  /// Mean cross-entropy on held-out text, or with `kl` the mean KL(teacher ‖ student) there.
  package init(heldOut plan: DataPlan, sequences: Int, kl: Bool) throws {
    name = kl ? "kl" : "loss"
    comparesWithTeacher = kl
    batches = try Evaluation.heldOut(plan, sequences: sequences)
  }

  /// Multi-query associative recall (Arora et al., 2024): pairs of a key and a value, all keys different, then keys again;
  /// the loss counts on the values that must follow. Made of random ids; attention solves it, a small state does not.
  ///
  /// - Parameter pairs: asked for in every sequence, all of them
  package init(recallPairs pairs: Int, sequences: Int, vocabulary: Int, seed: UInt64) throws {
    guard pairs > 0, 2 * pairs <= vocabulary else {
      throw JobError(.usage, "recall of \(pairs) pairs needs a vocabulary of \(2 * pairs), the model has \(vocabulary)")
    }
    name = "recall"
    comparesWithTeacher = false
    var random = RandomStream(seed: seed, name: "recall")
    batches = (0..<sequences).map { _ in
      // Keys from the lower half of the vocabulary, values from the upper.
      var keys = Array(0..<vocabulary / 2)
      keys.shuffle(using: &random)
      let items = keys.prefix(pairs).map { key in
        (Int32(key), Int32(vocabulary / 2 + Int(random.next() % UInt64(vocabulary - vocabulary / 2))))
      }
      var batch = SequenceBatch()
      for (key, value) in items {
        batch.tokens += [key, value]
        batch.labels += [-1, -1]
      }
      for (key, value) in items.shuffled(using: &random) {
        batch.tokens += [key, value]
        batch.labels += [value, -1]
      }
      batch.segments = [0..<batch.tokens.count]
      batch.sequenceCount = 1
      return batch
    }
  }

  /// The loss of the right answer: JSON Lines with `query`, `choices` and `gold`, or `context` and `continuation`.
  package init(answers path: String, limit: Int, tokenizer: any Tokenizer) throws {
    name = "answers=" + path
    comparesWithTeacher = false
    var batches: [SequenceBatch] = []
    for (index, line) in try readFile(path).split(separator: UInt8(ascii: "\n")).prefix(limit).enumerated() {
      let place = "\(path):\(index + 1)"
      guard let object = try? JSONSerialization.jsonObject(with: Data(line)) as? [String: Any] else {
        throw FileError(place, "is not a JSON object")
      }
      let question: String
      let answer: String
      if let query = object["query"] as? String, let choices = object["choices"] as? [String],
        let gold = object["gold"] as? Int, choices.indices.contains(gold)
      {
        (question, answer) = (query, " " + choices[gold])
      } else if let context = object["context"] as? String, let continuation = object["continuation"] as? String {
        (question, answer) = (context, continuation)
      } else {
        throw FileError(place, "has neither query, choices and gold, nor context and continuation")
      }
      let (prompt, rest) = (tokenizer.encode(question.utf8), tokenizer.encode(answer.utf8))
      guard !prompt.isEmpty, !rest.isEmpty else { continue }
      var batch = SequenceBatch()
      let all = (prompt + rest).map { Int32(bitPattern: $0) }
      batch.tokens = Array(all.dropLast())
      batch.labels = [Int32](repeating: -1, count: prompt.count - 1) + all[prompt.count...]
      batch.segments = [0..<batch.tokens.count]
      batch.sequenceCount = 1
      batches.append(batch)
    }
    guard !batches.isEmpty else { throw FileError(path, "holds no questions") }
    self.batches = batches
  }

  /// What decides the scores of a given model.
  var identity: String {
    sha256("\(name) \(batches.map { "\($0.tokens) \($0.labels) \($0.segments)" })")
  }

  /// The score of `model`.
  func score(_ model: HybridLM, teacher: HybridLM?, backend: any Backend) -> Double {
    let result = Evaluation(
      model: model, teacher: comparesWithTeacher ? teacher : nil, batches: batches, backend: backend)
    return result.kl ?? result.loss
  }
}
