/// Making JSON of values.
extension JSONValue: ExpressibleByStringLiteral, ExpressibleByBooleanLiteral, ExpressibleByIntegerLiteral,
  ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral
{
  package init(stringLiteral text: String) { self = .string(Array(text.utf8)) }
  package init(booleanLiteral value: Bool) { self = .boolean(value) }
  package init(integerLiteral value: Int) { self = .number(Double(value)) }
  package init(arrayLiteral values: JSONValue...) { self = .list(values) }
  package init(dictionaryLiteral members: (String, JSONValue)...) {
    self = .object(members.map { (Array($0.utf8), $1) })
  }
  package init(_ text: String) { self = .string(Array(text.utf8)) }
  package init(_ value: Int) { self = .number(Double(value)) }

  /// The value as JSON; strings that are not UTF-8 have U+FFFD where they are not.
  package func append(to out: inout [UInt8]) {
    switch self {
    case .null: out += "null".utf8
    case .boolean(let value): out += (value ? "true" : "false").utf8
    case .number(let value): out += (Int(exactly: value).map(String.init) ?? String(value)).utf8
    case .string(let bytes): Self.append(bytes, to: &out)
    case .list(let values):
      out.append(UInt8(ascii: "["))
      for (index, value) in values.enumerated() {
        if index > 0 { out.append(UInt8(ascii: ",")) }
        value.append(to: &out)
      }
      out.append(UInt8(ascii: "]"))
    case .object(let members):
      out.append(UInt8(ascii: "{"))
      for (index, member) in members.enumerated() {
        if index > 0 { out += ",\n".utf8 }
        Self.append(member.key, to: &out)
        out.append(UInt8(ascii: ":"))
        member.value.append(to: &out)
      }
      out.append(UInt8(ascii: "}"))
    }
  }

  private static func append(_ string: [UInt8], to out: inout [UInt8]) {
    let valid =
      String(validating: string, as: UTF8.self) == nil
      ? Array(String(decoding: string, as: UTF8.self).utf8) : string
    out.append(UInt8(ascii: "\""))
    for byte in valid {
      switch byte {
      case UInt8(ascii: "\""), UInt8(ascii: "\\"): out += [UInt8(ascii: "\\"), byte]
      case 0..<32: out += ("\\u00" + (byte < 16 ? "0" : "") + String(byte, radix: 16)).utf8
      default: out.append(byte)
      }
    }
    out.append(UInt8(ascii: "\""))
  }
}
