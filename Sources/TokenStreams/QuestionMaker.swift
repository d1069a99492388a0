import Foundation

/// Makes questions with answers: arithmetic word problems and look-ups, for tests and the demo's stand-in of
/// Redstone-QA. The same seed gives the same questions.
package struct QuestionMaker {
  private var state: UInt64

  private static let names = ["Ada", "Ben", "Chloe", "Dan", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jon"]
  private static let things = ["apples", "books", "coins", "pens", "stones", "cards", "shells", "nuts"]
  private static let colors = ["red", "blue", "green", "black", "white", "yellow"]

  package init(seed: UInt64) { state = seed &+ 0x9E37_79B9_7F4A_7C15 }

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
