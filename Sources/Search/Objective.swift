import Evaluation
import Hashing
import Models
import NN
import Ops
import Tensors
import TokenStreams
import Tokenizers
import Training

/// What a placement is judged by; smaller is better.
package struct Objective: Sendable {
  /// How it was asked for, without its weight.
  package let name: String
  /// In the joint score.
  package internal(set) var weight = 1.0
  private let kind: Kind
  private let text: EvaluationText

  private enum Kind: Sendable {
    /// Mean cross-entropy of the labels.
    case loss
    /// Mean KL(teacher ‖ student) at the labels.
    case kl
    /// Share of the answers, runs of labels, of which not every token is the most likely one.
    case wrongAnswers
    /// Share of the questions whose generated answer does not match.
    case wrongTexts(QuestionSet)
  }

  /// Goes into every score's identity: raised when the same model and text would get another score.
  private static let version = 2

  /// Mean cross-entropy on held-out text, or with `kl` the mean KL(teacher ‖ student) there.
  package init(heldOut plan: DataPlan, sequences: Int, kl: Bool) throws {
    name = kl ? "kl" : "loss"
    kind = kl ? .kl : .loss
    text = try EvaluationText(heldOut: plan, sequences: sequences)
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
      // Of roll calls what is never made to train on.
      RetrievalExample(task, settings, split: .heldOut, random: &random).pieces.map { piece in
        (tokens: tokenizer.encode(piece.text.utf8), counts: piece.isAnswer)
      }
    }
    text = EvaluationText(batches: Self.packed(examples), vocabulary: Vocabulary(of: tokenizer))
  }

  /// Questions of a file (``Question/draw(_:from:seed:)``): the loss of the right answer, or with `match` the share of the
  /// generated ones that do not match it.
  ///
  /// - Parameters:
  ///   - limit: questions that are drawn
  ///   - match: how a generated answer must match; nil for the loss
  ///   - endTokens: that end a generated text
  package init(
    answers path: String, limit: Int, seed: UInt64, tokenizer: any Tokenizer, match: AnswerMatch?,
    endTokens: Set<UInt32>
  ) throws {
    name = (match == nil ? "answer-loss=" : "accuracy=") + path
    let questions = try Question.draw(limit, from: path, seed: seed)
    kind =
      match.map { .wrongTexts(QuestionSet(questions, match: $0, tokenizer: tokenizer, endTokens: endTokens)) } ?? .loss
    let examples = questions.map { question in
      [
        (tokens: tokenizer.encode(question.prompt.utf8), counts: false),
        (tokens: tokenizer.encode(question.answers[0].utf8), counts: true),
      ]
    }
    text = EvaluationText(batches: Self.packed(examples), vocabulary: Vocabulary(of: tokenizer))
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
    var questions = ""
    if case .wrongTexts(let set) = kind { questions = set.identity }
    let batches = text.batches.map { "\($0.tokens) \($0.labels) \($0.segments)" }
    return sha256("version \(Self.version) \(name) \(questions) \(batches)")
  }

  /// Tokens that one evaluation reads.
  package var tokens: Int { text.tokens }

  /// Refuses models that cannot be measured.
  ///
  /// - Throws: `JobError` where the text has ids that a model has no rows for
  package func check(fits models: [ModelConfiguration], teacher: ModelConfiguration?) throws {
    for model in models { try text.vocabulary.check(fits: model, teacher: comparesWithTeacher ? teacher : nil) }
  }

  /// The score of `model`.
  package func score(_ model: HybridLM, teacher: HybridLM?, backend: any Backend) throws -> Double {
    switch kind {
    case .loss, .kl:
      let result = try Evaluation(
        model: model, teacher: comparesWithTeacher ? teacher : nil, text: text, backend: backend)
      return result.kl ?? result.loss
    case .wrongAnswers: return try AnswerAccuracy(model, text, backend: backend).wrongShare
    case .wrongTexts(let questions): return try questions.wrongShare(model, backend: backend)
    }
  }

  /// Right answers of `model`, and how many were asked for; nil where the score is no share of answers.
  package func answers(_ model: HybridLM, backend: any Backend) throws -> (right: Int, asked: Int)? {
    switch kind {
    case .loss, .kl: return nil
    case .wrongAnswers:
      let found = try AnswerAccuracy(model, text, backend: backend)
      return (found.right, found.answers)
    case .wrongTexts(let questions):
      return (try questions.right(model, backend: backend), questions.questions.count)
    }
  }

  private var comparesWithTeacher: Bool { if case .kl = kind { true } else { false } }

  /// Batches to learn gates from, and whether their loss is the KL to the teacher; nil where the score has no gradient.
  var differentiable: (batches: [SequenceBatch], kl: Bool)? {
    switch kind {
    case .loss: (text.batches, false)
    case .kl: (text.batches, true)
    case .wrongAnswers, .wrongTexts: nil
    }
  }
}
