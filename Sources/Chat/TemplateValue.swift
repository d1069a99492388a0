/// A value that a template computes with.
indirect enum TemplateValue {
  case undefined, none
  case boolean(Bool)
  case integer(Int)
  case number(Double)
  case string(String)
  case list([TemplateValue])
  case object([(key: String, value: TemplateValue)])
  case namespace(Namespace)

  /// What `namespace(…)` makes: the one thing whose members a template may set.
  final class Namespace {
    var members: [String: TemplateValue]

    init(_ members: [String: TemplateValue]) { self.members = members }
  }

  var isTrue: Bool {
    switch self {
    case .undefined, .none: false
    case .boolean(let value): value
    case .integer(let value): value != 0
    case .number(let value): value != 0
    case .string(let text): !text.isEmpty
    case .list(let values): !values.isEmpty
    case .object(let members): !members.isEmpty
    case .namespace: true
    }
  }

  /// Its text in a template's output, as Python writes it.
  var text: String {
    switch self {
    case .undefined: ""
    case .none: "None"
    case .boolean(let value): value ? "True" : "False"
    case .integer(let value): String(value)
    case .number(let value): "\(value)"
    case .string(let text): text
    case .list(let values): "[" + values.map(\.quoted).joined(separator: ", ") + "]"
    case .object(let members): "{" + members.map { "'\($0.key)': \($0.value.quoted)" }.joined(separator: ", ") + "}"
    case .namespace: "namespace"
    }
  }

  private var quoted: String { if case .string(let text) = self { "'\(text)'" } else { text } }

  /// As JSON, in the spacing of Python's `json.dumps`.
  var json: String {
    switch self {
    case .undefined, .none, .namespace: return "null"
    case .boolean(let value): return value ? "true" : "false"
    case .integer, .number: return text
    case .string(let text):
      var out = "\""
      for scalar in text.unicodeScalars {
        switch scalar {
        case "\"": out += "\\\""
        case "\\": out += "\\\\"
        case "\n": out += "\\n"
        case "\r": out += "\\r"
        case "\t": out += "\\t"
        case let scalar where scalar.value < 32:
          let digits = String(scalar.value, radix: 16)
          out += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        default: out.unicodeScalars.append(scalar)
        }
      }
      return out + "\""
    case .list(let values): return "[" + values.map(\.json).joined(separator: ", ") + "]"
    case .object(let members):
      return "{" + members.map { "\(TemplateValue.string($0.key).json): \($0.value.json)" }.joined(separator: ", ")
        + "}"
    }
  }

  /// Values that it is made of, however deep, a text being one for each 64 bytes; counted no further than `most`.
  func weight(upTo most: Int) -> Int {
    func sum(_ values: some Sequence<TemplateValue>) -> Int {
      var total = 1
      for value in values where total < most { total += value.weight(upTo: most - total) }
      return total
    }
    return switch self {
    case .list(let values): sum(values)
    case .object(let members): sum(members.lazy.map(\.value))
    case .string(let text): 1 + text.utf8.count / 64
    default: 1
    }
  }

  /// Whether the two are equal; texts by their scalars, as in Python.
  func equals(_ other: TemplateValue) -> Bool {
    switch (self, other) {
    case (.undefined, .undefined), (.none, .none): true
    case (.string(let a), .string(let b)): a.unicodeScalars.elementsEqual(b.unicodeScalars)
    case (.list(let a), .list(let b)): a.count == b.count && zip(a, b).allSatisfy { $0.equals($1) }
    case (.object(let a), .object(let b)):
      a.count == b.count
        && a.allSatisfy { member in b.contains { $0.key == member.key && $0.value.equals(member.value) } }
    default: if let a = real, let b = other.real { a == b } else { false }
    }
  }

  /// As a number; truth counts as 0 and 1.
  var real: Double? {
    switch self {
    case .boolean(let value): value ? 1 : 0
    case .integer(let value): Double(value)
    case .number(let value): value
    default: nil
    }
  }

  /// The member `key` of an object.
  func member(_ key: String) -> TemplateValue {
    switch self {
    case .object(let members): members.last { $0.key == key }?.value ?? .undefined
    case .namespace(let space): space.members[key] ?? .undefined
    default: .undefined
    }
  }
}
