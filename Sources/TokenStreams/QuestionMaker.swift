import Hashing

/// Makes questions with answers: arithmetic word problems and look-ups, for tests and the demo's stand-in of
/// Redstone-QA. The same seed gives the same questions.
package struct QuestionMaker {
  /// A part of all possible questions. Which one a question belongs to depends on its text alone, so that no seed gives
  /// a held-out question to train on.
  package enum Split: String, CaseIterable, Sendable {
    case training
    /// An eighth of all.
    case heldOut = "held-out"

    package init(of question: String) { self = sha256(question).first! < "2" ? .heldOut : .training }
  }

  private var state: UInt64
  private let split: Split?
  private var made: Set<String> = []

  private static let names = ["Ada", "Ben", "Chloe", "Dan", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jon"]
  private static let things = ["apples", "books", "coins", "pens", "stones", "cards", "shells", "nuts"]
  private static let colors = ["red", "blue", "green", "black", "white", "yellow"]

  /// - Parameter split: makes questions of this part alone, none twice, so that any cut of them keeps questions apart
  package init(seed: UInt64, split: Split? = nil) {
    state = seed &+ 0x9E37_79B9_7F4A_7C15
    self.split = split
  }

  private mutating func below(_ limit: Int) -> Int {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return Int((z ^ (z >> 31)) % UInt64(limit))
  }

  private mutating func pick(_ list: [String]) -> String { list[below(list.count)] }

  /// One question and its answer.
  package mutating func next() -> (question: String, answer: String) {
    guard let split else { return draw() }
    // Look-ups alone number more than 10^12.
    while true {
      let drawn = draw()
      if Split(of: drawn.question) == split, made.insert(drawn.question).inserted { return drawn }
    }
  }

  private mutating func draw() -> (question: String, answer: String) {
    let (name, thing) = (pick(Self.names), pick(Self.things))
    let (a, b) = (below(90) + 10, below(9) + 1)
    switch below(5) {
    case 0:
      return ("\(name) has \(a) \(thing) and gets \(b) more. How many \(thing) has \(name) now?", "\(a + b)")
    case 1:
      return ("\(name) has \(a) \(thing) and gives \(b) away. How many \(thing) are left?", "\(a - b)")
    case 2:
      let boxes = below(9) + 1
      return ("\(name) fills \(boxes) boxes with \(b) \(thing) each. How many \(thing) is that?", "\(boxes * b)")
    default:
      var owners: [String] = []
      while owners.count < 4 {
        let owner = pick(Self.names)
        if !owners.contains(owner) { owners.append(owner) }
      }
      let facts = owners.map { (owner: $0, color: pick(Self.colors), count: below(9) + 1) }
      let text = facts.map { "\($0.owner) has \($0.count) \($0.color) \(thing)." }.joined(separator: " ")
      let asked = facts[below(facts.count)]
      return below(2) == 0
        ? ("\(text) What color are the \(thing) of \(asked.owner)?", asked.color)
        : ("\(text) How many \(thing) has \(asked.owner)?", "\(asked.count)")
    }
  }
}
