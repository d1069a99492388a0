import Files
import Foundation
import NN
import TokenStreams

/// A question of a file, as a model is asked it.
package struct Question: Sendable, Equatable {
  package let prompt: String
  /// What right answers say, each as it follows the prompt; the first is the one whose loss is measured.
  package let answers: [String]

  /// Draws questions from JSON Lines, whose lines have `query`, `choices` and `gold`; or `context` with `continuation`, or
  /// with `answer`; or `question` and `answer`, which are asked as `Question: …` and `Answer:`. `aliases` are right too.
  ///
  /// Files are often sorted by subject, so that their first lines are of one: those drawn are the first of a permutation
  /// that the seed decides, and more of them hold the fewer.
  ///
  /// - Parameter limit: questions at most
  /// - Throws: `FileError` with the line that cannot be used
  package static func draw(_ limit: Int, from path: String, seed: UInt64) throws -> [Question] {
    let lines = try readFile(path).split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).enumerated()
      .filter { line in line.element.contains { !" \t\r".utf8.contains($0) } }
    guard !lines.isEmpty else { throw FileError(path, "holds no questions") }
    var random = RandomStream(seed: seed, name: "questions")
    let order = Permutation(count: lines.count, key: random.next())
    return try (0..<min(limit, lines.count)).map { index in
      let line = lines[order[index]]
      return try Question(line.element, place: "\(path):\(line.offset + 1)")
    }
  }

  private init(_ line: Data, place: String) throws {
    guard let object = try? JSONSerialization.jsonObject(with: Data(line)) as? [String: Any] else {
      throw FileError(place, "is not a JSON object")
    }
    let answer = object["answer"] as? String
    let aliases = object["aliases"] as? [String] ?? []
    var right: [String]
    if let query = object["query"] as? String, let choices = object["choices"] as? [String],
      let gold = object["gold"] as? Int
    {
      guard choices.indices.contains(gold) else {
        throw FileError(place, "gold is \(gold), there are \(choices.count) choices")
      }
      (prompt, right) = (query, [choices[gold]])
    } else if let context = object["context"] as? String,
      let continuation = object["continuation"] as? String ?? answer
    {
      (prompt, right) = (context, [continuation] + aliases)
    } else if let question = object["question"] as? String, let answer {
      (prompt, right) = ("Question: \(question)\nAnswer:", [answer] + aliases)
    } else {
      throw FileError(
        place,
        "has neither query, choices and gold, nor context and continuation or answer, nor question and answer")
    }
    guard !prompt.isEmpty, right.allSatisfy({ $0.contains { !$0.isWhitespace } }) else {
      throw FileError(place, "asks or answers nothing")
    }
    // A word follows what stands before it behind a space.
    if prompt.last?.isWhitespace == false {
      right = right.map { $0.first?.isWhitespace == false ? " " + $0 : $0 }
    }
    answers = right
  }
}
