import NN
import TokenStreams

/// A roll call: a row of letters, of which the capital ones are there, then questions, one a line: `d1` says that d is there,
/// `q0` that q is not, and between them stand sums such as `3+4=7`. One can read it; the first kind takes remembering all that
/// was told, the second nothing of it.
struct RollCall {
  static let letters = Array("abcdefghijklmnopqrstuvwxyz").map(String.init)

  typealias Question = (text: String, answer: String)

  let roll: String
  private let members: [(letter: String, isHere: Bool)]

  /// - Parameter count: letters on the roll
  init(count: Int, random: inout RandomStream) {
    let letters = Self.letters.shuffled(using: &random).prefix(count)
    members = letters.map { ($0, random.next() & 1 == 0) }
    roll = members.map { $0.isHere ? $0.letter.uppercased() : $0.letter }.joined() + "\n"
  }

  /// A question about a letter of the roll.
  func lookUp(_ random: inout RandomStream) -> Question {
    let member = members.randomElement(using: &random)!
    return (member.letter, member.isHere ? "1\n" : "0\n")
  }

  /// A sum of two digits.
  func sum(_ random: inout RandomStream) -> Question {
    let (a, b) = (Int(random.next() % 9) + 1, Int(random.next() % 9) + 1)
    return ("\(a)+\(b)=", "\(a + b)\n")
  }

  /// A roll call with its questions: a quarter of them sums, or what `kind` says.
  ///
  /// - Parameter split: which part of all rolls; it depends on the letters and their order
  static func text(
    _ settings: RetrievalSettings, _ kind: RetrievalTask, split: QuestionMaker.Split?, random: inout RandomStream
  ) -> (roll: String, questions: [Question]) {
    let fewest = min(settings.fewest ?? settings.items, settings.items)
    var call: RollCall
    repeat {
      call = RollCall(count: fewest + Int(random.next() % UInt64(settings.items - fewest + 1)), random: &random)
    } while split.map { $0 != QuestionMaker.Split(of: call.roll) } ?? false
    let questions = (0..<settings.queries).map { _ in
      switch kind {
      case .rollCallSums: call.sum(&random)
      case .rollCallLetters: call.lookUp(&random)
      default: random.next() & 3 == 0 ? call.sum(&random) : call.lookUp(&random)
      }
    }
    return (call.roll, questions)
  }
}
