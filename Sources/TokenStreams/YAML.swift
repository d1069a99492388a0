import Foundation
import Yams

/// A text that is no YAML, or more than what this program reads of it.
package struct YAMLError: Error, CustomStringConvertible {
  package let description: String
}

/// The value of a YAML text: mappings as `[String: Any]`, lists, texts, `Bool`, `Int`, `Double`, `NSNull`; nil of an empty
/// one.
///
/// Yams parses; its own values are not used, since making them ends the process at a key that is no text and at long
/// numbers to base 60.
package func parseYAML(_ text: String) throws -> Any? {
  try check(text)
  let root: Node?
  do {
    root = try Yams.compose(yaml: text)
  } catch {
    throw YAMLError(description: reason(error))
  }
  var nodes = 0
  return try root.map { try value($0, &nodes) }
}

/// What Yams says, in one short line without the text around the place.
private func reason(_ error: any Error) -> String {
  switch error as? YamlError {
  case .reader(let problem, _, _, _): return "it is no text: \(problem)"
  case .scanner(_, let problem, let mark, _), .parser(_, let problem, let mark, _),
    .composer(_, let problem, let mark, _):
    return "\(mark): \(problem)"
  case .duplicatedKeysInMapping(let keys, let context):
    return
      "\(context.mark): twice in one mapping: \(keys.prefix(8).map { String($0.prefix(40)) }.joined(separator: ", "))"
  default: return "\(error)".split(separator: "\n").first.map { String($0.prefix(200)) } ?? "unreadable"
  }
}

/// The most aliases of a text: no file of this program comes near it, while what they stand for grows with a power of
/// them, and Yams follows those in keys before anybody can count.
private let mostAliases = 16

/// Refuses what Yams would take very long for.
private func check(_ text: String) throws {
  guard !text.utf8.contains(0) else { throw YAMLError(description: "it is a binary file") }
  var (aliases, before) = (0, UInt8(ascii: "\n"))
  for byte in text.utf8 {
    if byte == UInt8(ascii: "*"), "\n \t[{,:?-".utf8.contains(before) { aliases += 1 }
    before = byte
  }
  guard aliases <= mostAliases else { throw YAMLError(description: "it has more than \(mostAliases) aliases") }
}

private func value(_ node: Node, _ nodes: inout Int) throws -> Any {
  func fail(_ reason: String) -> YAMLError { YAMLError(description: "\(node.mark.map { "\($0): " } ?? "")\(reason)") }
  nodes += 1
  // A few aliases can stand for more than fits into memory.
  guard nodes <= 100_000 else { throw fail("more than 100000 values, aliases counted") }
  switch node {
  case .alias: throw fail("an alias of nothing")
  case .sequence(let sequence): return try sequence.map { try value($0, &nodes) }
  case .mapping(let mapping):
    var object: [String: Any] = [:]
    for (key, entry) in mapping {
      guard case .scalar(let name) = key else { throw fail("a key is a list or a mapping") }
      guard object.updateValue(try value(entry, &nodes), forKey: name.string) == nil else {
        throw fail("key \(name.string) occurs twice")
      }
    }
    return object
  case .scalar(let scalar):
    let text = scalar.string
    switch node.tag.rawValue {
    case Tag.Name.null.rawValue: return NSNull()
    case Tag.Name.bool.rawValue: return Bool.construct(from: scalar) ?? text
    case Tag.Name.int.rawValue where !text.contains(":"): return Int.construct(from: scalar) ?? text
    case Tag.Name.float.rawValue where !text.contains(":"): return Double.construct(from: scalar) ?? text
    default: return text
    }
  }
}

/// A mapping as YAML, keys sorted.
package func yamlText(_ object: [String: Any]) throws -> String { try Yams.dump(object: object, sortKeys: true) }
