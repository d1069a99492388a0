/// Everything that decides a tokenizer's ids, whichever file it came from.
package struct TokenizerDescription: Sendable {
  /// Names it in errors.
  package var path: String
  package var name: String
  /// Ids by spelling, as the file spells tokens.
  package var vocabulary: [[UInt8]: Int] = [:]
  /// In the order of their ranks.
  package var merges: [(left: Int, right: Int, merged: Int)] = []
  package var added: [AddedToken] = []
  package var steps = TokenizerSteps()
  /// Whether a piece that is a token as a whole is that one, whatever its merges (Llama 3).
  package var ignoresMerges = false
  /// The token that texts of this family begin with, where they do.
  package var beginOfText: Int?
  /// The spelling of the token that the source names as the end of a text.
  package var endOfText: [UInt8]?

  package init(path: String, name: String) {
    self.path = path
    self.name = name
  }

  func fail(_ reason: String) -> TokenizerError { TokenizerError(path: path, reason: reason) }

  /// Adds a merge of two spellings.
  mutating func merge(_ left: [UInt8], _ right: [UInt8]) throws {
    guard let l = vocabulary[left], let r = vocabulary[right], let m = vocabulary[left + right] else {
      throw fail(
        "merge \(merges.count) (\(String(decoding: left, as: UTF8.self)) \(String(decoding: right, as: UTF8.self))) names "
          + "tokens that the vocabulary lacks")
    }
    merges.append((l, r, m))
  }

  /// The token that ends a document: the families' own, since an instructed model's `eos_token` ends a turn, else the one
  /// that the source names.
  func endOfDocument() throws -> Int {
    for name in ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"] {
      if let token = added.first(where: { $0.content.elementsEqual(name.utf8) }) { return token.id }
    }
    guard let endOfText, let token = added.first(where: { $0.content == endOfText }) else {
      throw fail("has no token that ends a document: <|endoftext|>, or eos_token of tokenizer_config.json")
    }
    return token.id
  }

  /// Whether texts always hold the token where its spelling stands: a piece of the vocabulary that its makers declared
  /// (SentencePiece's user-defined symbols, such as Gemma's runs of line feeds), not one that marks a place.
  func isAlwaysToken(_ token: AddedToken) -> Bool { !token.isSpecial && vocabulary[token.content] == token.id }
}

/// What a text goes through before pieces of it are merged, in the terms of `tokenizer.json`.
package struct TokenizerSteps: Sendable, Equatable, Hashable {
  /// Normal form C.
  package var composes = false
  /// A `▁` before every text that is not empty, or part of one between special tokens (Llama 2's first files).
  package var prepends = false
  /// The normalizer makes spaces `▁`.
  package var replacesSpaces = false
  package var pieces = Pieces.whole

  package enum Pieces: Sendable, Equatable, Hashable {
    /// Qwen2's pattern, or cl100k's with three digits, then bytes.
    case qwen2(maximalDigits: Int)
    /// GPT-2's pattern, digits one by one before it or not, then bytes.
    case gpt2(isolatesDigits: Bool)
    /// Spaces become `▁`; pieces begin at each, or the text is one.
    case metaspace(Prefix, splits: Bool)
    /// The text is one piece.
    case whole
  }

  /// Before which parts of a text a `▁` is put that has none yet.
  package enum Prefix: String, Sendable {
    case always, first, never
  }

  /// Whether tokens spell bytes, rather than characters.
  package var isByteLevel: Bool {
    switch pieces {
    case .qwen2, .gpt2: true
    case .metaspace, .whole: false
    }
  }

  /// U+2581, which stands for a space.
  static let space: [UInt8] = [0xE2, 0x96, 0x81]
}

extension TokenizerSteps {
  /// Where a `▁` is put before a text that is not empty.
  enum Prefixing { case never, unlessPresent, always }

  /// `text` with `▁` for spaces.
  static func replacingSpaces(_ text: UnsafeBufferPointer<UInt8>, prefixed: Prefixing) -> [UInt8] {
    var out: [UInt8] = []
    out.reserveCapacity(text.count + text.count / 2 + 3)
    let begins = text.first == UInt8(ascii: " ") || text.starts(with: space)
    if !text.isEmpty, prefixed == .always || prefixed == .unlessPresent && !begins { out += space }
    for byte in text {
      if byte == UInt8(ascii: " ") { out += space } else { out.append(byte) }
    }
    return out
  }

  /// Valid UTF-8 as the normalizer leaves it; nil where that is `text` itself.
  func normalized(_ text: UnsafeBufferPointer<UInt8>, prepends: Bool) -> [UInt8]? {
    let valid = Normalization.valid(text, composing: composes)
    guard replacesSpaces else { return valid }
    let prefixed = prepends ? Prefixing.always : .never
    return valid?.withUnsafeBufferPointer { Self.replacingSpaces($0, prefixed: prefixed) }
      ?? Self.replacingSpaces(text, prefixed: prefixed)
  }

  /// A token's spelling as it stands in normalised text.
  func normalized(_ content: [UInt8]) -> [UInt8] {
    content.withUnsafeBufferPointer { normalized($0, prepends: prepends) } ?? content
  }
}
