/// Unicode normalisation form C of byte text, without touching what has it already.
package enum Normalization {
  /// Whether a scalar never changes under NFC, and nothing before it or behind it combines across its front: what
  /// begins there can be normalised apart from what comes before. Only ranges that are known to be so; others take the
  /// slow way. A test asks Foundation about every scalar.
  @inline(__always)
  package static func isInert(_ value: UInt32) -> Bool {
    switch value {
    case 0..<0x300: true
    case 0x400..<0x483, 0x48A..<0x530: true  // Cyrillic
    case 0x2010..<0x2029, 0x2030..<0x205F: true  // punctuation
    case 0x3001..<0x302A, 0x3041..<0x3097, 0x30A1..<0x3100: true  // kana
    case 0x3400..<0x4DC0, 0x4E00..<0xA000, 0xAC00..<0xD7A4: true  // ideographs, Hangul syllables
    case 0xFF01..<0xFFBF: true  // full width
    case 0x1F300..<0x1FB00, 0x20000..<0x2A6E0: true  // pictographs, ideographs
    default: false
    }
  }

  /// Whether NFC by the tables of Unicode 9 may change a scalar or combine it with its neighbours. The reference
  /// (`tokenizers`) has those tables: what was added later is to it a character that combines with nothing.
  @inline(__always)
  private static func mayChange(_ value: UInt32) -> Bool {
    guard !isInert(value), let age = Unicode.Scalar(value)?.properties.age else { return false }
    return age.major <= 9
  }

  /// Text as valid UTF-8, in form C if asked; nil when it is already. What is not UTF-8 becomes U+FFFD, one for each
  /// maximal part of a character, as Python's `errors="replace"` does.
  package static func valid(_ bytes: UnsafeBufferPointer<UInt8>, composing: Bool) -> [UInt8]? {
    if isValid(bytes) { return composing ? composed(bytes) : nil }
    let repaired = Array(String(decoding: bytes, as: UTF8.self).utf8)
    return composing ? repaired.withUnsafeBufferPointer { composed($0) } ?? repaired : repaired
  }

  private static func isValid(_ bytes: UnsafeBufferPointer<UInt8>) -> Bool {
    var i = 0
    while i < bytes.count {
      let first = bytes[i]
      if first < 0x80 {
        i += 1
        continue
      }
      let length = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0
      guard length > 0, i + length <= bytes.count else { return false }
      for k in 1..<length where bytes[i + k] & 0xC0 != 0x80 { return false }
      let second = bytes[i + 1]
      switch first {
      case 0xE0 where second < 0xA0, 0xED where second >= 0xA0, 0xF0 where second < 0x90, 0xF4 where second >= 0x90:
        return false
      default: i += length
      }
    }
    return true
  }

  /// Valid UTF-8 in form C; nil when it is already.
  private static func composed(_ bytes: UnsafeBufferPointer<UInt8>) -> [UInt8]? {
    guard let text = bytes.baseAddress else { return nil }
    var out: [UInt8]?
    /// Bytes that are in `out`.
    var done = 0
    /// Where the last inert character began: what a following mark may combine with.
    var boundary = 0
    var i = 0
    while i < bytes.count {
      let (value, length) = CharacterClasses.scalar(text, i)
      if !mayChange(value) {
        // What the reference does not know is kept out of the run, lest Foundation combine it.
        boundary = isInert(value) ? i : i + length
        i += length
        continue
      }
      var end = i + length
      while end < bytes.count, case let next = CharacterClasses.scalar(text, end), mayChange(next.value) {
        end += next.length
      }
      let run = UnsafeBufferPointer(rebasing: bytes[boundary..<end])
      let scalars = sequence(state: boundary) { position -> UInt32? in
        guard position < end else { return nil }
        let (value, length) = CharacterClasses.scalar(text, position)
        position += length
        return value
      }
      var composed: [UInt8] = []
      for value in CanonicalComposition.tables.compose(scalars) {
        composed += Array(String(Character(Unicode.Scalar(value).unsafelyUnwrapped)).utf8)
      }
      if !composed.elementsEqual(run) {
        var result = out ?? []
        out = nil
        result.append(contentsOf: bytes[done..<boundary])
        result.append(contentsOf: composed)
        out = result
        done = end
      }
      boundary = end
      i = end
    }
    out?.append(contentsOf: bytes[done...])
    return out
  }
}
