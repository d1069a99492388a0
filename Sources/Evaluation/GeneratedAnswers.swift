import Models
import Tensors
import Tokenizers
import Training

/// Questions as they are put to models that write their answers.
package struct QuestionSet: Sendable {
  package let questions: [Question]
  package let match: AnswerMatch
  package let tokenizer: any Tokenizer
  /// How texts end, and how long they may be.
  package let settings: ContinuationSettings
  private let prompts: [[UInt32]]

  /// Sequences that are continued side by side, and the tokens that they may fill in all caches together.
  private static let (batch, batchTokens) = (16, 16_384)

  /// - Parameters:
  ///   - questions: at least one, with prompts of at least one token
  ///   - endTokens: that end a text
  package init(_ questions: [Question], match: AnswerMatch, tokenizer: any Tokenizer, endTokens: Set<UInt32>) {
    (self.questions, self.match, self.tokenizer) = (questions, match, tokenizer)
    prompts = questions.map { tokenizer.encode($0.prompt.utf8) }
    // Room for some words around the longest answer, and for a rationale that is twice as long.
    let longest = questions.flatMap(\.answers).reduce(0) { longest, answer in
      max(longest, tokenizer.encode(answer.utf8).count * (AnswerMatch.isRationale(answer) ? 2 : 1))
    }
    // A model that was trained on text goes on with the next question.
    settings = ContinuationSettings(maxTokens: longest + 16, stopTokens: endTokens, stopStrings: ["Question:"])
  }

  /// Everything that decides which texts are taken for right.
  package var identity: String {
    "\(questions) \(match) \(tokenizer.hash) \(settings.maxTokens) \(settings.stopTokens.sorted()) \(settings.stopStrings)"
  }

  /// What `model` answers, question by question.
  ///
  /// - Throws: `JobError` where the tokenizer has ids that the model has no rows for
  package func texts(_ model: HybridLM, backend: any Backend) throws -> [String] {
    try Vocabulary(of: tokenizer).check(fits: model.configuration)
    var texts = [String](repeating: "", count: questions.count)
    // Of like length, so that none waits long for the others.
    let order = prompts.indices.sorted { (prompts[$0].count, $0) < (prompts[$1].count, $1) }
    var place = 0
    while place < order.count {
      var count = 1
      while place + count < order.count, count < Self.batch,
        (count + 1) * (prompts[order[place + count]].count + settings.maxTokens) <= Self.batchTokens
      { count += 1 }
      let chosen = order[place..<place + count]
      let asked = chosen.map { prompts[$0] }
      let capacity = (asked.map(\.count).max() ?? 0) + settings.maxTokens
      let generator = Generator(model, sequences: count, capacity: capacity, backend: backend)
      for (index, result) in zip(chosen, try generator.continuations(asked, settings, tokenizer: tokenizer)) {
        texts[index] = result.text
      }
      place += count
    }
    return texts
  }

  /// How many questions `model` answers as it should.
  package func right(_ model: HybridLM, backend: any Backend) throws -> Int {
    zip(try texts(model, backend: backend), questions).count { match.accepts($0, answers: $1.answers) }
  }

  /// The share of questions that `model` answers otherwise than it should.
  package func wrongShare(_ model: HybridLM, backend: any Backend) throws -> Double {
    1 - Double(try right(model, backend: backend)) / Double(questions.count)
  }
}
