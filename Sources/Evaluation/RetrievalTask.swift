import Foundation
import NN
import TokenStreams

/// Synthetic questions that only a memory of the text before them answers; what linear attention with a small state is
/// known to fail. Plain text, so that any tokenizer reads it.
package enum RetrievalTask: String, CaseIterable, Sendable {
  /// Multi-query associative recall (Arora et al., 2024): pairs of a letter and a digit, then letters again.
  case recall
  /// Needle in a haystack: a number told once among sentences about other things.
  case needle
  /// Phone book (Jelassi et al., 2024): lines of a name and a number, then a name.
  case phoneBook = "phone-book"
  /// A row of letters, of which the capital ones are there, then which are, with sums between.
  case rollCall = "roll-call"
  /// The same without sums.
  case rollCallLetters = "roll-call-letters"
  /// The same with sums alone.
  case rollCallSums = "roll-call-sums"

  package var isRollCall: Bool { [.rollCall, .rollCallLetters, .rollCallSums].contains(self) }
}

/// How long and how many.
package struct RetrievalSettings: Sendable, Equatable {
  /// Facts told: pairs, needles, entries.
  package var items: Int
  /// Questions; a fact is asked for again when all were.
  package var queries: Int
  /// Words of hay around the needles.
  package var words: Int
  /// Different keys that recall draws from; at most 52 are letters, more are pairs of letters.
  package var keys: Int
  /// Of a roll call, letters at least; nil for as many as `items`.
  package var fewest: Int?

  package init(
    items: Int = 16, queries: Int = 8, words: Int = 200, keys: Int = 52, fewest: Int? = nil
  ) {
    (self.items, self.queries, self.words, self.keys) = (items, queries, words, keys)
    self.fewest = fewest
  }
}

/// One text of facts and questions, in pieces.
package struct RetrievalExample: Sendable, Equatable {
  package struct Piece: Sendable, Equatable {
    package let text: String
    /// Whether it follows from what was told.
    package let isAnswer: Bool
  }
  package private(set) var pieces: [Piece] = []

  private mutating func tell(_ text: String) { pieces.append(Piece(text: text, isAnswer: false)) }
  private mutating func answer(_ text: String) { pieces.append(Piece(text: text, isAnswer: true)) }

  /// The facts, up to the first query.
  package var question: String { pieces.prefix(told).map(\.text).joined() }
  /// The queries with their answers.
  package var answer: String { pieces.dropFirst(told).map(\.text).joined() }

  private var told = 0

  private static let names = [
    "Ada", "Ben", "Chloe", "Dan", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jon", "Kira", "Liam", "Mona", "Nils",
    "Olga",
    "Paul", "Rosa", "Sven", "Tara", "Uwe", "Vera", "Will", "Xenia", "Yuri", "Zoe",
  ]
  private static let surnames = [
    "Abel", "Brook", "Clay", "Dorn", "Ellis", "Frost", "Gale", "Hart", "Ivers", "Joss", "Kern", "Lund", "Moss", "Nash",
    "Orr", "Pike", "Quinn", "Reed", "Stone", "Thorn", "Upton", "Vance", "Wolf", "Yates", "Zorn",
  ]
  private static let cities = [
    "Lima", "Oslo", "Cairo", "Kyoto", "Quito", "Delhi", "Paris", "Rome", "Seoul", "Tunis", "Accra", "Bern", "Dakar",
    "Hanoi",
    "Perth", "Riga", "Sofia", "Turin", "Vilnius", "Warsaw",
  ]
  private static let hay = [
    "The grass is green.", "The sky is blue.", "The sun is warm.", "Here we go.", "There and back again.",
    "The river runs to the sea.", "Birds rest in the old tree.", "A light wind moves the leaves.",
  ]

  /// An example of `task`; the same state of `random` gives the same.
  ///
  /// - Parameter split: of roll calls, which part of all that there are
  package init(
    _ task: RetrievalTask, _ settings: RetrievalSettings, split: QuestionMaker.Split? = nil,
    random: inout RandomStream
  ) {
    if task.isRollCall {
      let (roll, questions) = RollCall.text(settings, task, split: split, random: &random)
      tell(roll)
      told = 1
      for question in questions {
        tell(question.text)
        answer(question.answer)
      }
      return
    }
    func below(_ limit: Int) -> Int { Int(random.next() % UInt64(limit)) }
    var facts: [(key: String, value: String)] = []
    switch task {
    case .rollCall, .rollCallLetters, .rollCallSums: break
    case .recall:
      var keys = Self.keys(settings.keys)
      keys.shuffle(using: &random)
      facts = keys.prefix(settings.items).map { (" " + $0, String(below(10))) }
      for fact in facts { tell(fact.key + fact.value) }
    case .phoneBook:
      var keys = Self.names.flatMap { name in Self.surnames.map { name + " " + $0 } }
      keys.shuffle(using: &random)
      facts = keys.prefix(settings.items).map { ($0 + ":", " " + String(below(9000) + 1000)) }
      for fact in facts { tell(fact.key + fact.value + "\n") }
      tell("\n")
    case .needle:
      var cities = Self.cities
      cities.shuffle(using: &random)
      facts = cities.prefix(settings.items).map { ("The magic number of \($0) is", " " + String(below(9000) + 1000)) }
      var sentences: [String] = []
      var words = 0
      while words < settings.words {
        let sentence = Self.hay[below(Self.hay.count)]
        sentences.append(sentence)
        words += sentence.split(separator: " ").count
      }
      for fact in facts { sentences.insert(fact.key + fact.value + ".", at: below(sentences.count + 1)) }
      tell(sentences.joined(separator: " ") + "\n")
    }
    told = pieces.count
    var asked: [(key: String, value: String)] = []
    while asked.count < settings.queries { asked += facts.shuffled(using: &random) }
    for fact in asked.prefix(settings.queries) {
      tell(fact.key)
      answer(fact.value)
      if task != .recall { tell(task == .needle ? ".\n" : "\n") }
    }
  }

  /// Letters, and where they do not suffice pairs of small letters.
  private static func keys(_ count: Int) -> [String] {
    let small = "abcdefghijklmnopqrstuvwxyz".map(String.init)
    let keys = count <= 52 ? small + small.map { $0.uppercased() } : small.flatMap { first in small.map { first + $0 } }
    return Array(keys.prefix(count))
  }

  /// Everything before the last answer, and that answer: what a model is asked to go on with.
  package var lastQuestion: (context: String, answer: String) {
    (pieces.dropLast().map(\.text).joined(), pieces.last?.text.trimmingCharacters(in: .whitespacesAndNewlines) ?? "")
  }

  /// The most facts that `task` can tell apart.
  package static func limit(_ task: RetrievalTask, _ settings: RetrievalSettings) -> Int {
    switch task {
    case .recall: min(676, settings.keys)
    case .needle: cities.count
    case .phoneBook: names.count * surnames.count
    case .rollCall, .rollCallLetters, .rollCallSums: RollCall.letters.count
    }
  }
}
