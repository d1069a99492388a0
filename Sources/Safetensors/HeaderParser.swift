/// Reads the JSON of a safetensors header, and nothing more general: an object of names, each with its element type,
/// shape and offsets, and `__metadata__` with strings. Unlike a general parser it sees names that occur twice.
///
/// Errors are sentences without the path; the file adds it.
struct HeaderParser {
  /// A fault, in words.
  struct Fault: Error { let reason: String }

  /// What the header says of one array, unchecked.
  struct Field {
    var dtype: String?
    var shape: [Int]?
    var offsets: [Int]?
  }

  private let bytes: UnsafeRawBufferPointer
  private var position = 0

  init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

  /// Parses the whole header.
  mutating func parse() throws -> (fields: [String: Field], metadata: [String: String]) {
    var fields: [String: Field] = [:]
    var metadata: [String: String]?
    var isFirst = true
    while let name = try nextKey(&isFirst) {
      if name == "__metadata__" {
        guard metadata == nil else { throw Fault(reason: "__metadata__ occurs twice") }
        metadata = try strings()
      } else {
        let field = try field(name)
        guard fields.updateValue(field, forKey: name) == nil else { throw Fault(reason: "\(name) occurs twice") }
      }
    }
    skipSpace()
    guard position == bytes.count else { throw Fault(reason: "there is more behind the header's object") }
    return (fields, metadata ?? [:])
  }

  private mutating func field(_ name: String) throws -> Field {
    var field = Field()
    var isFirst = true
    while let key = try nextKey(&isFirst) {
      switch key {
      case "dtype" where field.dtype == nil: field.dtype = try string()
      case "shape" where field.shape == nil: field.shape = try integers()
      case "data_offsets" where field.offsets == nil: field.offsets = try integers()
      default: throw Fault(reason: "\(name): \(key) is unknown or occurs twice")
      }
    }
    return field
  }

  private mutating func strings() throws -> [String: String] {
    var values: [String: String] = [:]
    var isFirst = true
    while let key = try nextKey(&isFirst) { values[key] = try string() }
    return values
  }

  /// The next key of an object, in front of its value; nil behind the last.
  private mutating func nextKey(_ isFirst: inout Bool) throws -> String? {
    if isFirst {
      try expect("{")
      isFirst = false
      if take("}") { return nil }
    } else if !take(",") {
      try expect("}")
      return nil
    }
    let key = try string()
    try expect(":")
    return key
  }

  private mutating func integers() throws -> [Int] {
    var values: [Int] = []
    try expect("[")
    if take("]") { return values }
    repeat {
      skipSpace()
      var value = 0
      var digits = 0
      while position < bytes.count, case let digit = bytes[position], (48...57).contains(digit) {
        guard digits < 18 else { throw fault("a number that is too large") }
        value = value * 10 + Int(digit - 48)
        digits += 1
        position += 1
      }
      guard digits > 0 else { throw fault("something that is not a whole number") }
      values.append(value)
    } while take(",")
    try expect("]")
    return values
  }

  private mutating func string() throws -> String {
    try expect("\"")
    var text: [UInt8] = []
    while position < bytes.count {
      let byte = bytes[position]
      position += 1
      switch byte {
      case UInt8(ascii: "\""):
        guard let string = String(validating: text, as: UTF8.self) else { throw fault("text that is not UTF-8") }
        return string
      case UInt8(ascii: "\\"): text += try escape()
      case 0..<32: throw fault("a control character in a string")
      default: text.append(byte)
      }
    }
    throw fault("a string without end")
  }

  private mutating func escape() throws -> [UInt8] {
    guard position < bytes.count else { throw fault("a string without end") }
    defer { position += 1 }
    switch bytes[position] {
    case UInt8(ascii: "\""): return [UInt8(ascii: "\"")]
    case UInt8(ascii: "\\"): return [UInt8(ascii: "\\")]
    case UInt8(ascii: "/"): return [UInt8(ascii: "/")]
    case UInt8(ascii: "b"): return [8]
    case UInt8(ascii: "f"): return [12]
    case UInt8(ascii: "n"): return [10]
    case UInt8(ascii: "r"): return [13]
    case UInt8(ascii: "t"): return [9]
    case UInt8(ascii: "u"):
      var unit = try hexadecimal()
      if (0xD800..<0xDC00).contains(unit), position + 2 < bytes.count, bytes[position + 1] == UInt8(ascii: "\\"),
        bytes[position + 2] == UInt8(ascii: "u")
      {
        position += 2
        let low = try hexadecimal()
        guard (0xDC00..<0xE000).contains(low) else { throw fault("half a surrogate pair") }
        unit = 0x10000 + (unit - 0xD800) << 10 + (low - 0xDC00)
      }
      guard let scalar = Unicode.Scalar(unit) else { throw fault("half a surrogate pair") }
      return Array(String(Character(scalar)).utf8)
    default: throw fault("an unknown escape")
    }
  }

  /// The four digits behind the `u` at `position`; stays at the last of them.
  private mutating func hexadecimal() throws -> UInt32 {
    var value: UInt32 = 0
    for _ in 0..<4 {
      position += 1
      guard position < bytes.count, let digit = Character(Unicode.Scalar(bytes[position])).hexDigitValue else {
        throw fault("an escape that is not four hexadecimal digits")
      }
      value = value << 4 | UInt32(digit)
    }
    return value
  }

  private mutating func skipSpace() {
    while position < bytes.count, [32, 9, 10, 13].contains(bytes[position]) { position += 1 }
  }

  private mutating func take(_ character: Unicode.Scalar) -> Bool {
    skipSpace()
    guard position < bytes.count, bytes[position] == UInt8(ascii: character) else { return false }
    position += 1
    return true
  }

  private mutating func expect(_ character: Unicode.Scalar) throws {
    guard take(character) else { throw fault("no `\(character)`") }
  }

  private func fault(_ found: String) -> Fault {
    Fault(reason: "the header's JSON has \(found) at byte \(position)")
  }
}
