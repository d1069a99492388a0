/// The 256 printable characters that byte-level vocabularies spell bytes with (GPT-2's table).
package enum ByteAlphabet {
  private static let scalars: [Unicode.Scalar] = {
    var next: UInt32 = 256
    return (0..<256).map { byte -> Unicode.Scalar in
      switch byte {
      case 0x21...0x7E, 0xA1...0xAC, 0xAE...0xFF: return Unicode.Scalar(UInt8(byte))
      default:
        defer { next += 1 }
        return Unicode.Scalar(next).unsafelyUnwrapped
      }
    }
  }()

  /// Byte of every scalar below 0x144; −1 where there is none.
  private static let bytes: [Int] = {
    var table = [Int](repeating: -1, count: 0x144)
    for (byte, scalar) in scalars.enumerated() { table[Int(scalar.value)] = byte }
    return table
  }()

  package static func spelling(_ byte: UInt8) -> String { String(Character(scalars[Int(byte)])) }

  /// The bytes that `token` spells; nil when a character spells none.
  static func bytes(of token: [UInt8]) -> [UInt8]? {
    var out: [UInt8] = []
    out.reserveCapacity(token.count)
    for scalar in String(decoding: token, as: UTF8.self).unicodeScalars {
      guard scalar.value < 0x144, case let byte = bytes[Int(scalar.value)], byte >= 0 else { return nil }
      out.append(UInt8(byte))
    }
    return out
  }

  /// How vocabularies of characters spell a byte.
  static func fallback(_ byte: UInt8) -> String {
    let digits = String(byte, radix: 16, uppercase: true)
    return "<0x" + (digits.count == 1 ? "0" : "") + digits + ">"
  }

  private static let fallbacks = Dictionary(
    uniqueKeysWithValues: (0..<256).map { (Array(fallback(UInt8($0)).utf8), UInt8($0)) })

  /// The text that a token of such a vocabulary stands for.
  static func text(of token: [UInt8]) -> [UInt8] {
    if let byte = fallbacks[token] { return [byte] }
    guard token.contains(TokenizerSteps.space[0]) else { return token }
    var out: [UInt8] = []
    var i = 0
    while i < token.count {
      if token[i...].starts(with: TokenizerSteps.space) {
        out.append(UInt8(ascii: " "))
        i += TokenizerSteps.space.count
      } else {
        out.append(token[i])
        i += 1
      }
    }
    return out
  }
}
