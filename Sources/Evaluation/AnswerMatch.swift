import Foundation

/// How a generated text must match a right answer.
///
/// Texts are compared word by word: case, punctuation and how numbers are written (`1,000`, `5.0`) do not count, and `5` is
/// not found in `15`. Of answers that give a final number behind `####`, as GSM8K's do, that number alone decides: the text
/// must have it behind its own `####`, or last.
package enum AnswerMatch: String, CaseIterable, Sendable {
  /// The words of a right answer follow each other somewhere in the text's first line.
  case contains
  /// The text's first line is a right answer.
  case equals

  /// Whether `text` matches one of `answers`.
  package func accepts(_ text: String, answers: [String]) -> Bool {
    answers.contains { accepts(text, answer: $0) }
  }

  private func accepts(_ text: String, answer: String) -> Bool {
    let final = Self.behindMark(answer)
    if let final, let number = AnswerWords.numbers(in: final).first {
      let given = Self.behindMark(text).flatMap { AnswerWords.numbers(in: $0).first }
      return (given ?? AnswerWords.numbers(in: text).last) == number
    }
    let right = AnswerWords.words(in: final ?? answer)
    // An answer of several lines is looked for in all of them.
    let isLong = answer.trimmingCharacters(in: .whitespacesAndNewlines).contains("\n")
    let given = isLong ? AnswerWords.words(in: text) : AnswerWords.firstLine(of: text)
    switch self {
    case .equals: return given == right
    case .contains:
      guard !right.isEmpty, given.count >= right.count else { return false }
      return (0...given.count - right.count).contains { given[$0..<$0 + right.count].elementsEqual(right) }
    }
  }

  /// Whether an answer is a rationale with its result behind `####`.
  package static func isRationale(_ answer: String) -> Bool { behindMark(answer) != nil }

  private static func behindMark(_ text: String) -> String? {
    text.firstRange(of: "####").map { String(text[$0.upperBound...]) }
  }
}

/// Texts as words in small letters and numbers in one spelling.
enum AnswerWords {
  /// The words of the first line that has any.
  static func firstLine(of text: String) -> [String] {
    text.split(whereSeparator: \.isNewline).lazy.map { words(in: String($0)) }.first { !$0.isEmpty } ?? []
  }

  /// The words of `text`; where it has none, the signs that it consists of.
  static func words(in text: String) -> [String] {
    // By way of capitals, so that ß is ss and ς is σ.
    let scalars = Array(text.uppercased().lowercased().unicodeScalars)
    var words: [String] = []
    var place = 0
    while place < scalars.count {
      if let number = number(in: scalars, at: place) {
        // A number is a word of its own only where no letter touches it and no fraction or time goes on.
        var end = number.end
        while end < scalars.count, belongs(scalars, end) { end += 1 }
        words.append(end == number.end ? number.text : spelled(scalars[place..<end]))
        place = end
      } else if scalars[place].properties.isIdeographic || isSymbol(scalars[place]) {
        // Such words stand without spaces between.
        words.append(String(scalars[place]))
        place += 1
      } else if isWordScalar(scalars[place]) {
        let start = place
        while place < scalars.count, belongs(scalars, place) { place += 1 }
        words.append(spelled(scalars[start..<place]))
      } else {
        place += 1
      }
    }
    guard words.isEmpty else { return words }
    return text.split(whereSeparator: \.isWhitespace).map { sign in
      let bare = sign.trimmingCharacters(in: CharacterSet(charactersIn: ".,;:!?"))
      return bare.isEmpty ? String(sign) : bare
    }
  }

  /// All numbers of `text`, wherever they stand, in one spelling each.
  static func numbers(in text: String) -> [String] {
    let scalars = Array(text.unicodeScalars)
    var numbers: [String] = []
    var place = 0
    while place < scalars.count {
      if let number = number(in: scalars, at: place) {
        numbers.append(number.text)
        place = number.end
      } else {
        place += 1
      }
    }
    return numbers
  }

  private static func isDigit(_ scalar: Unicode.Scalar) -> Bool { ("0"..."9").contains(scalar) }

  /// What says something, though no letter does: 🧀, →, ½ and their like, but no punctuation and no sign of money.
  private static func isSymbol(_ scalar: Unicode.Scalar) -> Bool {
    !scalar.isASCII && [.otherSymbol, .mathSymbol, .otherNumber].contains(scalar.properties.generalCategory)
  }

  private static func isWordScalar(_ scalar: Unicode.Scalar) -> Bool {
    scalar.properties.isAlphabetic || scalar.properties.numericType != nil
      || scalar.properties.generalCategory == .nonspacingMark
  }

  /// Whether the scalar at `place`, behind one of a word, goes on with it: letters and digits, an apostrophe between
  /// letters, a stroke or colon between digits.
  private static func belongs(_ scalars: [Unicode.Scalar], _ place: Int) -> Bool {
    if isWordScalar(scalars[place]) { return !scalars[place].properties.isIdeographic && !isSymbol(scalars[place]) }
    guard place > 0, place + 1 < scalars.count else { return false }
    let (before, behind) = (scalars[place - 1], scalars[place + 1])
    switch scalars[place] {
    case "'", "’": return before.properties.isAlphabetic && behind.properties.isAlphabetic
    case "/", ":": return isDigit(before) && isDigit(behind)
    default: return false
    }
  }

  private static func spelled(_ scalars: ArraySlice<Unicode.Scalar>) -> String {
    String(String.UnicodeScalarView(scalars.filter { $0 != "'" && $0 != "’" }))
  }

  /// The number that begins at `place`: a sign that nothing stands before, digits with commas between thousands, decimals.
  /// Zeros that mean nothing are left out.
  private static func number(in scalars: [Unicode.Scalar], at place: Int) -> (text: String, end: Int)? {
    var end = place
    let isNegative = ["-", "−"].contains(scalars[place])
    if isNegative {
      let before = place > 0 ? scalars[place - 1] : " "
      guard !isWordScalar(before), before != ")" else { return nil }
      end += 1
    }
    // The sign of money may stand between.
    if isNegative, end < scalars.count, ["$", "€", "£"].contains(scalars[end]) { end += 1 }
    guard end < scalars.count, isDigit(scalars[end]) else { return nil }
    func digits(from start: Int) -> Int {
      var end = start
      while end < scalars.count, isDigit(scalars[end]) { end += 1 }
      return end
    }
    var whole = ""
    func take(to next: Int) {
      whole += String(String.UnicodeScalarView(scalars[end..<next]))
      end = next
    }
    take(to: digits(from: end))
    if whole.count <= 3 {
      while end < scalars.count, scalars[end] == ",", digits(from: end + 1) == end + 4 {
        end += 1
        take(to: end + 3)
      }
    }
    var decimals = ""
    if end + 1 < scalars.count, scalars[end] == ".", isDigit(scalars[end + 1]) {
      let next = digits(from: end + 1)
      decimals = String(String.UnicodeScalarView(scalars[end + 1..<next]))
      end = next
    }
    while decimals.last == "0" { decimals.removeLast() }
    whole = String(whole.drop { $0 == "0" })
    let size = (whole.isEmpty ? "0" : whole) + (decimals.isEmpty ? "" : "." + decimals)
    return ((isNegative && size != "0" ? "-" : "") + size, end)
  }
}
