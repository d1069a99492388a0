/// Reads the JSON of a whole text.
struct JSONParser {
  private let bytes: UnsafeRawBufferPointer
  private var position = 0
  private var depth = 0
  /// Deeper than any file that is read is, shallow enough for the stack.
  private static let mostDepth = 64

  init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

  mutating func whole() throws(JSONValue.Fault) -> JSONValue {
    let value = try value()
    skipSpace()
    guard position == bytes.count else { throw fault("something behind its end") }
    return value
  }

  private func fault(_ found: String) -> JSONValue.Fault { JSONValue.Fault(reason: "has \(found) at byte \(position)") }

  private mutating func skipSpace() {
    while position < bytes.count, [32, 9, 10, 13].contains(bytes[position]) { position += 1 }
  }

  private mutating func take(_ character: Unicode.Scalar) -> Bool {
    skipSpace()
    guard position < bytes.count, bytes[position] == UInt8(ascii: character) else { return false }
    position += 1
    return true
  }

  private mutating func expect(_ character: Unicode.Scalar) throws(JSONValue.Fault) {
    guard take(character) else { throw fault("no `\(character)`") }
  }

  private mutating func word(_ word: StaticString, _ value: JSONValue) throws(JSONValue.Fault) -> JSONValue {
    let letters = UnsafeBufferPointer(start: word.utf8Start, count: word.utf8CodeUnitCount)
    guard bytes[position...].starts(with: letters) else { throw fault("an unknown word") }
    position += letters.count
    return value
  }

  private mutating func value() throws(JSONValue.Fault) -> JSONValue {
    skipSpace()
    guard position < bytes.count else { throw fault("its end too early") }
    switch bytes[position] {
    case UInt8(ascii: "{"), UInt8(ascii: "["):
      depth += 1
      guard depth <= Self.mostDepth else { throw fault("values \(Self.mostDepth) deep") }
      defer { depth -= 1 }
      return bytes[position] == UInt8(ascii: "{") ? try object() : try list()
    case UInt8(ascii: "\""): return .string(try string())
    case UInt8(ascii: "t"): return try word("true", .boolean(true))
    case UInt8(ascii: "f"): return try word("false", .boolean(false))
    case UInt8(ascii: "n"): return try word("null", .null)
    default: return .number(try number())
    }
  }

  private mutating func object() throws(JSONValue.Fault) -> JSONValue {
    try expect("{")
    var members: [(key: [UInt8], value: JSONValue)] = []
    if take("}") { return .object(members) }
    repeat {
      skipSpace()
      let key = try string()
      try expect(":")
      members.append((key, try value()))
    } while take(",")
    try expect("}")
    return .object(members)
  }

  private mutating func list() throws(JSONValue.Fault) -> JSONValue {
    try expect("[")
    var values: [JSONValue] = []
    if take("]") { return .list(values) }
    repeat { values.append(try value()) } while take(",")
    try expect("]")
    return .list(values)
  }

  private mutating func number() throws(JSONValue.Fault) -> Double {
    let start = position
    while position < bytes.count, case let byte = bytes[position],
      (48...57).contains(byte) || "+-.eE".utf8.contains(byte), position - start < 64
    {
      position += 1
    }
    guard let value = Double(String(decoding: bytes[start..<position], as: UTF8.self)) else {
      throw fault("something that is no value")
    }
    return value
  }

  private mutating func string() throws(JSONValue.Fault) -> [UInt8] {
    try expect("\"")
    var text: [UInt8] = []
    while position < bytes.count {
      let start = position
      while position < bytes.count, case let byte = bytes[position], byte >= 32, byte != 0x22, byte != 0x5C {
        position += 1
      }
      text += bytes[start..<position]
      guard position < bytes.count else { break }
      position += 1
      switch bytes[position - 1] {
      case UInt8(ascii: "\""):
        guard text.allSatisfy({ $0 < 0x80 }) || String(validating: text, as: UTF8.self) != nil else {
          throw fault("text that is not UTF-8")
        }
        return text
      case UInt8(ascii: "\\"): text += try escape()
      default: throw fault("a control character in a string")
      }
    }
    throw fault("a string without end")
  }

  private mutating func escape() throws(JSONValue.Fault) -> [UInt8] {
    guard position < bytes.count else { throw fault("a string without end") }
    position += 1
    switch bytes[position - 1] {
    case UInt8(ascii: "b"): return [8]
    case UInt8(ascii: "f"): return [12]
    case UInt8(ascii: "n"): return [10]
    case UInt8(ascii: "r"): return [13]
    case UInt8(ascii: "t"): return [9]
    case UInt8(ascii: "u"):
      var unit = try hexadecimal()
      if (0xD800..<0xDC00).contains(unit), bytes[position...].starts(with: #"\u"#.utf8) {
        position += 2
        let low = try hexadecimal()
        guard (0xDC00..<0xE000).contains(low) else { throw fault("half a surrogate pair") }
        unit = 0x10000 + (unit - 0xD800) << 10 + (low - 0xDC00)
      }
      guard let scalar = Unicode.Scalar(unit) else { throw fault("half a surrogate pair") }
      return Array(String(Character(scalar)).utf8)
    case let byte where [0x22, 0x5C, 0x2F].contains(byte): return [byte]
    default: throw fault("an unknown escape")
    }
  }

  private mutating func hexadecimal() throws(JSONValue.Fault) -> UInt32 {
    guard position + 4 <= bytes.count,
      case let digits = bytes[position..<position + 4], digits.allSatisfy({ Character(Unicode.Scalar($0)).isHexDigit }),
      let value = UInt32(String(decoding: digits, as: UTF8.self), radix: 16)
    else { throw fault("an escape that is not four hexadecimal digits") }
    position += 4
    return value
  }
}
