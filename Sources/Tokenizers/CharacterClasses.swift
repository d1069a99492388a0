/// What the pre-tokenizer's pattern asks of a character: `\p{L}`, `\p{N}`, `\s`, `[\r\n]`, or none of them.
enum CharacterClass: UInt8 {
  case letter, number, newline, space, other
}

/// The classes of all characters, and how to read UTF-8, for scanning text without building strings.
enum CharacterClasses {
  /// Class of every scalar below U+40000; the planes behind it hold no letters, numbers or spaces.
  private static let table: [UInt8] = (0..<0x40000).map { value in
    guard let scalar = Unicode.Scalar(UInt32(value)) else { return CharacterClass.other.rawValue }
    return classify(scalar).rawValue
  }

  private static func classify(_ scalar: Unicode.Scalar) -> CharacterClass {
    if scalar == "\r" || scalar == "\n" { return .newline }
    if scalar.properties.isWhitespace { return .space }
    // The reference (`tokenizers`) knows the letters and numbers of Unicode 16; a newer one is nothing to it.
    guard let age = scalar.properties.age, age.major <= 16 else { return .other }
    switch scalar.properties.generalCategory {
    case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: return .letter
    case .decimalNumber, .letterNumber, .otherNumber: return .number
    default: return .other
    }
  }

  /// Gives `body` the table, whose address stays for the call.
  static func withTable<Result>(_ body: (UnsafePointer<UInt8>) -> Result) -> Result {
    table.withUnsafeBufferPointer { body($0.baseAddress!) }
  }

  /// The scalar that begins at `position` of valid UTF-8, and its length in bytes.
  @inline(__always)
  static func scalar(_ text: UnsafePointer<UInt8>, _ position: Int) -> (value: UInt32, length: Int) {
    let first = UInt32(text[position])
    if first < 0x80 { return (first, 1) }
    let second = UInt32(text[position + 1] & 0x3F)
    if first < 0xE0 { return ((first & 0x1F) << 6 | second, 2) }
    let third = UInt32(text[position + 2] & 0x3F)
    if first < 0xF0 { return ((first & 0x0F) << 12 | second << 6 | third, 3) }
    return ((first & 0x07) << 18 | second << 12 | third << 6 | UInt32(text[position + 3] & 0x3F), 4)
  }
}
