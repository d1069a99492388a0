/// Cuts text into the pieces that byte pairs are merged within, as the pattern of Qwen2 does (cl100k's, with one
/// digit at a time):
///
///     (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N} | ␠?[^\s\p{L}\p{N}]+[\r\n]* | \s*[\r\n]+
///     | \s+(?!\S) | \s+
///
/// The alternatives are tried in their order by hand: one pass, and a look ahead that never goes back over more than
/// one run of spaces.
package struct PreTokenizer {
  /// The pattern as `tokenizer.json` spells it, with `digits` in its place.
  package static func pattern(digits: String) -> String {
    #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"# + digits
      + #"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
  }

  /// Most digits of one piece.
  let maximalDigits: Int

  package init(maximalDigits: Int) { self.maximalDigits = maximalDigits }

  /// Calls `body` with the bytes of every piece of valid UTF-8, in order.
  package func split(_ bytes: UnsafeBufferPointer<UInt8>, _ body: (UnsafeBufferPointer<UInt8>) -> Void) {
    guard let text = bytes.baseAddress else { return }
    CharacterClasses.withTable { table in
      var cursor = Cursor(text: text, end: bytes.count, table: table)
      var start = 0
      while start < bytes.count {
        cursor.position = start
        let end = cursor.pieceEnd(maximalDigits: maximalDigits)
        body(UnsafeBufferPointer(start: text + start, count: end - start))
        start = end
      }
    }
  }

  private struct Cursor {
    let text: UnsafePointer<UInt8>
    let end: Int
    let table: UnsafePointer<UInt8>
    var position = 0

    /// Class and length of the character at `index`; nil at the end.
    @inline(__always)
    func peek(_ index: Int) -> (kind: CharacterClass, length: Int)? {
      guard index < end else { return nil }
      let (value, length) = CharacterClasses.scalar(text, index)
      let kind = value < 0x40000 ? CharacterClass(rawValue: table[Int(value)]).unsafelyUnwrapped : .other
      return (kind, length)
    }

    /// Where the run of `kind` that begins at `index` ends.
    @inline(__always)
    func run(_ kind: CharacterClass, from index: Int) -> Int {
      var index = index
      while let next = peek(index), next.kind == kind { index += next.length }
      return index
    }

    /// End of the piece that begins at `position`.
    @inline(__always)
    func pieceEnd(maximalDigits: Int) -> Int {
      let (kind, length) = peek(position).unsafelyUnwrapped
      let next = position + length
      if text[position] == UInt8(ascii: "'"), let end = contraction(next) { return end }
      switch kind {
      case .letter: return run(.letter, from: next)
      case .number:
        var (index, digits) = (next, 1)
        while digits < maximalDigits, let digit = peek(index), digit.kind == .number {
          index += digit.length
          digits += 1
        }
        return index
      case .other:
        if peek(next)?.kind == .letter { return run(.letter, from: next) }
        return run(.newline, from: run(.other, from: next))
      case .space:
        if let after = peek(next) {
          if after.kind == .letter { return run(.letter, from: next) }
          if after.kind == .other, text[position] == UInt8(ascii: " ") {
            return run(.newline, from: run(.other, from: next))
          }
        }
        return spaces()
      case .newline: return spaces()
      }
    }

    /// `\s*[\r\n]+`, else `\s+(?!\S)`, else `\s+`, at a run of spaces.
    private func spaces() -> Int {
      var index = position
      var afterNewline: Int?
      var last = position
      while let next = peek(index), next.kind == .space || next.kind == .newline {
        last = index
        index += next.length
        if next.kind == .newline { afterNewline = index }
      }
      if let afterNewline { return afterNewline }
      // The last space before a word belongs to the word, unless it is the only one.
      return index == end || last == position ? index : last
    }

    /// End of a contraction whose apostrophe stands before `index`; letters in either case, and ſ, which folds to s.
    private func contraction(_ index: Int) -> Int? {
      guard index < end else { return nil }
      func letter(_ at: Int) -> UInt8 { at < end ? text[at] | 0x20 : 0 }
      switch letter(index) {
      case UInt8(ascii: "s"), UInt8(ascii: "t"), UInt8(ascii: "m"), UInt8(ascii: "d"): return index + 1
      case UInt8(ascii: "r") where letter(index + 1) == UInt8(ascii: "e"): return index + 2
      case UInt8(ascii: "v") where letter(index + 1) == UInt8(ascii: "e"): return index + 2
      case UInt8(ascii: "l") where letter(index + 1) == UInt8(ascii: "l"): return index + 2
      default:
        return text[index] == 0xC5 && index + 1 < end && text[index + 1] == 0xBF ? index + 2 : nil
      }
    }
  }
}
