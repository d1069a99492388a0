/// Cuts text into the pieces that byte pairs are merged within, by one of three rules.
package struct PreTokenizer: Sendable {
  package enum Rule: Sendable {
    /// The pattern of Qwen2, and of cl100k with three digits at a time:
    ///
    ///     (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N} | ␠?[^\s\p{L}\p{N}]+[\r\n]* | \s*[\r\n]+
    ///         | \s+(?!\S) | \s+
    case qwen2(maximalDigits: Int)
    /// The pattern of GPT-2, after every digit was cut off by itself or not:
    ///
    ///     's|'t|'re|'ve|'m|'ll|'d | ␠?\p{L}+ | ␠?\p{N}+ | ␠?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+
    case gpt2(isolatesDigits: Bool)
    /// Before every `▁`, but behind the characters that `joins` has: where some token reaches over that place.
    case spaces(joins: Set<UInt32>)
  }

  /// Qwen2's pattern as `tokenizer.json` spells it, with `digits` in its place.
  package static func pattern(digits: String) -> String {
    #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"# + digits
      + #"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
  }

  let rule: Rule

  package init(_ rule: Rule) { self.rule = rule }

  /// Calls `body` with the bytes of every piece of valid UTF-8, in order.
  ///
  /// The alternatives of the patterns are tried in their order by hand: one pass, and a look ahead that never goes back over
  /// more than one run of spaces.
  package func split(_ bytes: UnsafeBufferPointer<UInt8>, _ body: (UnsafeBufferPointer<UInt8>) -> Void) {
    switch rule {
    case .qwen2(let digits): Self.split(bytes, body) { $0.pieceEnd(maximalDigits: digits) }
    case .gpt2(let isolatesDigits): Self.split(bytes, body) { $0.gpt2PieceEnd(isolatesDigits: isolatesDigits) }
    case .spaces(let joins): Self.splitAtSpaces(bytes, joins, body)
    }
  }

  @inline(__always)
  private static func split(
    _ bytes: UnsafeBufferPointer<UInt8>, _ body: (UnsafeBufferPointer<UInt8>) -> Void, end: (Cursor) -> Int
  ) {
    guard let text = bytes.baseAddress else { return }
    CharacterClasses.withTable { table in
      var cursor = Cursor(text: text, end: bytes.count, table: table)
      var start = 0
      while start < bytes.count {
        cursor.position = start
        let end = end(cursor)
        body(UnsafeBufferPointer(start: text + start, count: end - start))
        start = end
      }
    }
  }

  private static func splitAtSpaces(
    _ bytes: UnsafeBufferPointer<UInt8>, _ joins: Set<UInt32>, _ body: (UnsafeBufferPointer<UInt8>) -> Void
  ) {
    guard let text = bytes.baseAddress else { return }
    let end = bytes.count
    var (start, i, previous) = (0, 0, UInt32.max)
    while i < end {
      let (value, length) = CharacterClasses.scalar(text, i)
      if value == 0x2581, i > start, !joins.contains(previous) {
        body(UnsafeBufferPointer(start: text + start, count: i - start))
        start = i
      }
      previous = value
      i += length
    }
    if end > start { body(UnsafeBufferPointer(start: text + start, count: end - start)) }
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

    /// End of the piece that begins at `position`, by GPT-2's pattern.
    @inline(__always)
    func gpt2PieceEnd(isolatesDigits: Bool) -> Int {
      var (kind, length) = peek(position).unsafelyUnwrapped
      var next = position + length
      if text[position] == UInt8(ascii: "'"), let end = gpt2Contraction(next) { return end }
      if isolatesDigits, kind == .number { return next }
      if kind == .space || kind == .newline {
        // One space goes with the word behind it.
        guard text[position] == UInt8(ascii: " "), let after = peek(next), after.kind != .space, after.kind != .newline,
          !(isolatesDigits && after.kind == .number)
        else { return gpt2Spaces(isolatesDigits: isolatesDigits) }
        kind = after.kind
        next += after.length
      }
      return run(kind, from: next)
    }

    /// `\s+(?!\S)`, else `\s+`, at a run of spaces. A digit that was cut off before it is no character behind it.
    private func gpt2Spaces(isolatesDigits: Bool) -> Int {
      var (index, last) = (position, position)
      while let next = peek(index) {
        guard next.kind == .space || next.kind == .newline else {
          return last == position || (isolatesDigits && next.kind == .number) ? index : last
        }
        last = index
        index += next.length
      }
      return index
    }

    /// End of a contraction in small letters whose apostrophe stands before `index`.
    private func gpt2Contraction(_ index: Int) -> Int? {
      guard index < end else { return nil }
      let second = index + 1 < end ? text[index + 1] : 0
      switch (text[index], second) {
      case (UInt8(ascii: "s"), _), (UInt8(ascii: "t"), _), (UInt8(ascii: "m"), _), (UInt8(ascii: "d"), _):
        return index + 1
      case (UInt8(ascii: "r"), UInt8(ascii: "e")), (UInt8(ascii: "v"), UInt8(ascii: "e")),
        (UInt8(ascii: "l"), UInt8(ascii: "l")):
        return index + 2
      default: return nil
      }
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
