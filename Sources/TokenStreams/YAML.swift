import Yams

/// A YAML text that says something no reader of this program could take.
package struct YAMLError: Error, CustomStringConvertible {
  package let description: String
}

/// The value of a YAML text: mappings with texts as keys, lists, texts, numbers, truth values; nil of an empty text.
///
/// - Throws: what the parser says, or where a key is no text, for which Yams 6.2 traps
package func readYAML(_ text: String) throws -> Any? {
  guard let root = try Yams.compose(yaml: text) else { return nil }
  func check(_ node: Node) throws {
    switch node {
    case .mapping(let mapping):
      for (key, value) in mapping {
        guard case .scalar = key else {
          let place = key.mark.map { "line \($0.line), column \($0.column): " } ?? ""
          throw YAMLError(description: place + "a key is a list or mapping: expected key: value")
        }
        try check(value)
      }
    case .sequence(let sequence): for value in sequence { try check(value) }
    case .scalar, .alias: break
    }
  }
  try check(root)
  return root.any
}
