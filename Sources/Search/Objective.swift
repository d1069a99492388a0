import Evaluation
import Files
import Foundation
import Hashing
import Models
import NN
import Ops
import Tensors
import TokenStreams
import Tokenizers
import Training

/// What a placement is judged by; smaller is better.
package struct Objective {
  /// How it was asked for.
  package let name: String
  private let kind: Kind
  private let batches: [SequenceBatch]

  private enum Kind {
    /// Mean cross-entropy of the labels.
    case loss
    /// Mean KL(teacher ‖ student) at the labels.
    case kl
    /// Share of the answers, runs of labels, of which not every token is the most likely one.
    case wrongAnswers
    /// Share of the questions whose generated answer does not match.
    case wrongTexts([Question], AnswerMatch, any Tokenizer)
  }

  private struct Question {
    let prompt: [UInt32]
    let answer: String
    let length: Int
  }

  /// Mean cross-entropy on held-out text, or with `kl` the mean KL(teacher ‖ student) there.
  package init(heldOut plan: DataPlan, sequences: Int, kl: Bool) throws {
    name = kl ? "kl" : "loss"
    kind = kl ? .kl : .loss
    batches = try Evaluation.heldOut(plan, sequences: sequences)
  }

  /// A synthetic retrieval task: the loss of the answers, or with `accuracy` the share of wrong ones.
  ///
  /// - Parameter count: texts, each with its own questions
  package init(
    _ task: RetrievalTask, _ settings: RetrievalSettings, count: Int, seed: UInt64, tokenizer: any Tokenizer,
    accuracy: Bool
  ) {
    name = (accuracy ? "accuracy=" : "") + task.rawValue
    kind = accuracy ? .wrongAnswers : .loss
    var random = RandomStream(seed: seed, name: "objective.\(task.rawValue)")
    let examples = (0..<count).map { _ in
      RetrievalExample(task, settings, random: &random).pieces.map { piece in
        (tokens: tokenizer.encode(piece.text.utf8), counts: piece.isAnswer)
      }
    }
    batches = Self.packed(examples)
  }

  /// Questions with answers in JSON Lines, asked as text of the form `Question: …` and `Answer:` where they have fields of
  /// those names: the loss of the right answer, or with `match` the share of the generated ones
  /// that do not match it.
  ///
  /// - Parameters:
  ///   - limit: questions that are read
  ///   - match: how a generated answer must match; nil for the loss
  package init(answers path: String, limit: Int, tokenizer: any Tokenizer, match: AnswerMatch?) throws {
    name = (match == nil ? "answer-loss=" : "accuracy=") + path
    var examples: [[(tokens: [UInt32], counts: Bool)]] = []
    var questions: [Question] = []
    for (index, line) in try readFile(path).split(separator: UInt8(ascii: "\n")).prefix(limit).enumerated() {
      let (question, answer) = try Self.parse(line, place: "\(path):\(index + 1)")
      let (prompt, rest) = (tokenizer.encode(question.utf8), tokenizer.encode(answer.utf8))
      guard !prompt.isEmpty, !rest.isEmpty else { continue }
      examples.append([(prompt, false), (rest, true)])
      questions.append(Question(prompt: prompt, answer: answer, length: rest.count))
    }
    guard !examples.isEmpty else { throw FileError(path, "holds no questions") }
    if let match {
      kind = .wrongTexts(questions, match, tokenizer)
    } else {
      kind = .loss
    }
    batches = Self.packed(examples)
  }

  private static func parse(_ line: Data, place: String) throws -> (question: String, answer: String) {
    guard let object = try? JSONSerialization.jsonObject(with: Data(line)) as? [String: Any] else {
      throw FileError(place, "is not a JSON object")
    }
    if let query = object["query"] as? String, let choices = object["choices"] as? [String],
      let gold = object["gold"] as? Int, choices.indices.contains(gold)
    {
      return (query, " " + choices[gold])
    }
    if let context = object["context"] as? String, let continuation = object["continuation"] as? String {
      return (context, continuation)
    }
    if let question = object["question"] as? String, let answer = object["answer"] as? String {
      return ("Question: \(question)\nAnswer:", " " + answer)
    }
    throw FileError(
      place, "has neither query, choices and gold, nor context and continuation, nor question and answer")
  }

  /// Texts end to end in batches of about 2,048 tokens.
  private static func packed(_ examples: [[(tokens: [UInt32], counts: Bool)]]) -> [SequenceBatch] {
    var batches: [SequenceBatch] = []
    var batch = SequenceBatch()
    for example in examples {
      let all = example.flatMap { piece in piece.tokens.map { (id: Int32(bitPattern: $0), counts: piece.counts) } }
      guard all.count > 1 else { continue }
      let start = batch.tokens.count
      batch.tokens += all.dropLast().map(\.id)
      batch.labels += all.dropFirst().map { $0.counts ? $0.id : -1 }
      batch.segments.append(start..<batch.tokens.count)
      batch.sequenceCount += 1
      if batch.tokens.count >= 2048 {
        batches.append(batch)
        batch = SequenceBatch()
      }
    }
    return batch.tokens.isEmpty ? batches : batches + [batch]
  }

  /// What decides the scores of a given model.
  var identity: String {
    var generation = ""
    if case .wrongTexts(_, let match, _) = kind { generation = match.rawValue }
    return sha256("\(name) \(generation) \(batches.map { "\($0.tokens) \($0.labels) \($0.segments)" })")
  }

  /// Tokens that one evaluation reads.
  package var tokens: Int { batches.reduce(0) { $0 + $1.tokens.count } }

  /// The score of `model`.
  package func score(_ model: HybridLM, teacher: HybridLM?, backend: any Backend) -> Double {
    switch kind {
    case .loss, .kl:
      let result = Evaluation(
        model: model, teacher: comparesWithTeacher ? teacher : nil, batches: batches, backend: backend)
      return result.kl ?? result.loss
    case .wrongAnswers:
      return AnswerAccuracy(model, batches, backend: backend).wrongShare
    case .wrongTexts(let questions, let match, let tokenizer):
      var wrong = 0
      for question in questions {
        let settings = ContinuationSettings(maxTokens: question.length + (match == .contains ? 16 : 0))
        let generator = Generator(model, capacity: question.prompt.count + settings.maxTokens, backend: backend)
        let text = generator.continuations([question.prompt], settings, tokenizer: tokenizer)[0].text
        if !match.accepts(text, answer: question.answer) { wrong += 1 }
      }
      return Double(wrong) / Double(questions.count)
    }
  }

  private var comparesWithTeacher: Bool { if case .kl = kind { true } else { false } }

  /// Batches to learn gates from, and whether their loss is the KL to the teacher; nil where the score has no gradient.
  var differentiable: (batches: [SequenceBatch], kl: Bool)? {
    switch kind {
    case .loss: (batches, false)
    case .kl: (batches, true)
    case .wrongAnswers, .wrongTexts: nil
    }
  }
}

/// How a generated answer must match the right one.
package enum AnswerMatch: String, CaseIterable, Sendable {
  case contains, equals

  /// Case and white space around do not count.
  package func accepts(_ text: String, answer: String) -> Bool {
    func normalized(_ text: String) -> String {
      text.trimmingCharacters(in: .whitespacesAndNewlines).lowercased()
    }
    return self == .equals
      ? normalized(text) == normalized(answer) : normalized(text).contains(normalized(answer))
  }
}
