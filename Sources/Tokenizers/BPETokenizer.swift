import Foundation
import Hashing
import Synchronization

/// Byte pair encoding (Sennrich et al., 2016; over bytes: Radford et al., 2019) as the families of models use it: over the
/// bytes of pieces that a pattern cuts (Qwen, Llama 3, SmolLM2), or over characters, with bytes for those that the
/// vocabulary lacks (Llama 2, Mistral, Gemma). ``TokenizerSteps`` says what comes before.
package final class BPETokenizer: Tokenizer {
  package let name: String
  package let vocabularySize: Int
  package let endOfText: UInt32
  package let beginOfText: UInt32?
  package let hash: String

  private let steps: TokenizerSteps
  private let preTokenizer: PreTokenizer
  private let merges: BytePairMerges
  /// Token of each byte; `UInt32.max` for a byte that the vocabulary lacks, which the reference drops.
  private let byteTokens: [UInt32]
  /// Token of each character below U+30000, `UInt32.max` where there is none; empty for vocabularies of bytes.
  private let characterTokens: [UInt32]
  /// Pieces that are tokens whatever their merges; empty where merges decide.
  private let wholePieces: [[UInt8]: UInt32]
  /// Bytes of all tokens end to end, and where each begins; one more than there are ids.
  private let tokenBytes: [UInt8]
  private let tokenStarts: [Int]
  /// Tokens found by spelling: in a text that is text, and in one with special tokens; as it is, and normalised.
  private let (alwaysRaw, alwaysNormalized): (AddedTokens, AddedTokens)
  private let (allRaw, allNormalized): (AddedTokens, AddedTokens)
  /// Whether ``mayCut(between:_:)`` can be true.
  private let mayBeCut: Bool
  /// Caches that no thread uses now.
  private let caches = Mutex<[PieceCache]>([])

  /// Reads the tokenizer at `path` (see ``makeTokenizer(_:)``).
  package convenience init(path: String) throws { try self.init(TokenizerDescription(path: path)) }

  /// The tokenizer that the text of a `tokenizer.json` describes; `path` names it in errors.
  package convenience init(json: Data, path: String) throws {
    try self.init(TokenizerDescription(json: json, path: path))
  }

  package init(_ description: TokenizerDescription) throws {
    func fail(_ reason: String) -> TokenizerError { description.fail(reason) }
    let (vocabulary, added) = (description.vocabulary, description.added)
    (name, steps) = (description.name, description.steps)
    let highest = max(vocabulary.values.max() ?? 0, added.map(\.id).max() ?? 0)
    let count = vocabulary.count + added.count
    guard vocabulary.values.allSatisfy({ $0 >= 0 }), added.allSatisfy({ $0.id >= 0 }), highest < 4 * count + 1024
    else { throw fail("ids go up to \(highest) with \(count) tokens: the file is damaged") }
    vocabularySize = highest + 1

    let spelled = try Self.bytes(of: description, size: vocabularySize)
    var starts = [0]
    starts.reserveCapacity(vocabularySize + 1)
    var flat: [UInt8] = []
    for bytes in spelled {
      flat += bytes ?? []
      starts.append(flat.count)
    }
    (tokenBytes, tokenStarts) = (flat, starts)

    let isByteLevel = steps.isByteLevel
    byteTokens = try (0..<256).map { byte in
      let spelling = isByteLevel ? ByteAlphabet.spelling(UInt8(byte)) : ByteAlphabet.fallback(UInt8(byte))
      if let id = vocabulary[Array(spelling.utf8)] { return UInt32(id) }
      // Rare control characters, and bytes that UTF-8 never has, are missing from some vocabularies (SmolLM2's).
      guard isByteLevel, !(0x20..<0x7F).contains(byte), byte != 10 else {
        throw fail("the vocabulary has no token for byte \(byte) (\(spelling)): this kind is not supported")
      }
      return .max
    }
    characterTokens = isByteLevel ? [] : Self.characters(of: vocabulary)
    let pairs = description.merges.map { (left: UInt32($0.left), right: UInt32($0.right), merged: UInt32($0.merged)) }
    guard Set(pairs.map { UInt64($0.left) << 32 | UInt64($0.right) }).count == pairs.count else {
      throw fail("a merge occurs twice")
    }
    merges = BytePairMerges(pairs)
    wholePieces =
      description.ignoresMerges
      ? Dictionary(vocabulary.map { (spelled[$0.value] ?? [], UInt32($0.value)) }) { $1 } : [:]
    preTokenizer = PreTokenizer(Self.rule(description))

    let always = added.filter(description.isAlwaysToken)
    func spellings(_ tokens: [AddedToken], normalized: Bool) -> AddedTokens {
      AddedTokens(
        tokens.filter { $0.isNormalized == normalized }.map { token in
          (normalized ? description.steps.normalized(token.content) : token.content, UInt32(token.id))
        })
    }
    (alwaysRaw, alwaysNormalized) = (spellings(always, normalized: false), spellings(always, normalized: true))
    (allRaw, allNormalized) = (spellings(added, normalized: false), spellings(added, normalized: true))
    mayBeCut = !always.contains {
      $0.content.contains(UInt8(ascii: " ")) || $0.content.contains(UInt8(ascii: "\n")) && isByteLevel
    }

    let end = try description.endOfDocument()
    endOfText = UInt32(end)
    if let begin = description.beginOfText {
      guard 0..<vocabularySize ~= begin else { throw fail("has no token \(begin), which it wants before a text") }
      beginOfText = UInt32(begin)
    } else {
      beginOfText = nil
    }

    var hasher = SHA256()
    // What Qwen2.5's was called when it was the only kind, which the shards of old carry.
    if case .qwen2(let digits) = steps.pieces, !description.ignoresMerges, always.isEmpty {
      hasher.update("byte-level BPE 1 \(digits) \(steps.composes) \(end) \(vocabularySize)")
    } else {
      hasher.update("BPE 2 \(steps) \(description.ignoresMerges) \(end) \(vocabularySize)")
      hasher.update(characterTokens.withUnsafeBytes { sha256(Data($0)) })
      for token in always { hasher.update("always \(token.id)") }
    }
    hasher.update(flat)
    for part in [starts.map { UInt32($0) }, pairs.flatMap { [$0.left, $0.right] }] {
      part.withUnsafeBytes { hasher.update($0) }
    }
    for token in added.filter({ !$0.content.isEmpty }).sorted(by: { $0.id < $1.id }) {
      hasher.update(token.content + [UInt8(0)] + Array(String(token.id).utf8))
    }
    hash = hasher.finish()
  }

  /// The bytes of text that every id stands for; nil for ids without a token.
  private static func bytes(of description: TokenizerDescription, size: Int) throws -> [[UInt8]?] {
    let isByteLevel = description.steps.isByteLevel
    let added = Dictionary(description.added.map { ($0.id, $0.content) }) { first, _ in first }
    var spelled = [[UInt8]?](repeating: nil, count: size)
    for (token, id) in description.vocabulary {
      guard let bytes = added[id] ?? (isByteLevel ? ByteAlphabet.bytes(of: token) : ByteAlphabet.text(of: token))
      else {
        throw description.fail(
          "token \(id) has characters that stand for no byte: this is not a byte-level vocabulary")
      }
      // Gemma's files spell the tab both as itself and as its byte.
      guard spelled[id] == nil || spelled[id] == bytes else { throw description.fail("id \(id) belongs to two tokens") }
      spelled[id] = bytes
    }
    for (id, content) in added where spelled[id] == nil { spelled[id] = content }
    return spelled
  }

  private static func characters(of vocabulary: [[UInt8]: Int]) -> [UInt32] {
    var tokens = [UInt32](repeating: .max, count: 0x30000)
    for (token, id) in vocabulary where token.count <= 4 {
      let scalars = Array(String(decoding: token, as: UTF8.self).unicodeScalars)
      if scalars.count == 1, scalars[0].value < 0x30000 { tokens[Int(scalars[0].value)] = UInt32(id) }
    }
    return tokens
  }

  private static func rule(_ description: TokenizerDescription) -> PreTokenizer.Rule {
    switch description.steps.pieces {
    case .qwen2(let digits): return .qwen2(maximalDigits: digits)
    case .gpt2(let isolatesDigits): return .gpt2(isolatesDigits: isolatesDigits)
    case .metaspace(_, splits: true): return .spaces(joins: [])
    case .metaspace(_, splits: false), .whole:
      // The text is one piece; where no merge reaches over a place it may be cut there.
      var spellings: [Int: [UInt8]] = [:]
      for (token, id) in description.vocabulary { spellings[id] = token }
      var joins: Set<UInt32> = []
      for merge in description.merges {
        var previous: UInt32?
        for scalar in String(decoding: spellings[merge.merged] ?? [], as: UTF8.self).unicodeScalars {
          if scalar.value == 0x2581, let previous { joins.insert(previous) }
          previous = scalar.value
        }
      }
      return .spaces(joins: joins)
    }
  }

  package func decode(_ tokens: some Sequence<UInt32>) -> [UInt8] {
    var out: [UInt8] = []
    for token in tokens where token < vocabularySize {
      out += tokenBytes[tokenStarts[Int(token)]..<tokenStarts[Int(token) + 1]]
    }
    return out
  }

  /// Qwen2's pattern lets no piece reach over a line feed before a letter, the others none over a letter before a space;
  /// normalisation combines none of them.
  package func mayCut(between left: UInt8, _ right: UInt8) -> Bool {
    func isLetter(_ byte: UInt8) -> Bool { (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20) }
    guard mayBeCut else { return false }
    switch preTokenizer.rule {
    case .qwen2: return left == UInt8(ascii: "\n") && isLetter(right)
    case .gpt2: return right == UInt8(ascii: " ") && isLetter(left)
    case .spaces(let joins): return right == UInt8(ascii: " ") && isLetter(left) && !joins.contains(UInt32(left))
    }
  }

  package func encode(_ text: UnsafeBufferPointer<UInt8>, special: SpecialTokens, continuing: Bool) -> [UInt32] {
    var cache = caches.withLock { $0.popLast() } ?? PieceCache()
    defer { caches.withLock { $0.append(cache) } }
    var out: [UInt32] = []
    out.reserveCapacity(text.count / 3)
    let (raw, normalized) = special == .asText ? (alwaysRaw, alwaysNormalized) : (allRaw, allNormalized)
    raw.split(text) { part, start in
      let isFirst = start == 0 && !continuing
      func encode(_ part: UnsafeBufferPointer<UInt8>) {
        if normalized.isEmpty { return encodeNormal(part, isFirst: isFirst, &cache, into: &out) }
        normalized.split(part) { piece, start in
          encodeNormal(piece, isFirst: isFirst && start == 0, &cache, into: &out)
        } token: {
          out.append($0)
        }
      }
      let bytes = steps.normalized(part, prepends: steps.prepends && (start > 0 || !continuing))
      if let bytes { bytes.withUnsafeBufferPointer(encode) } else { encode(part) }
    } token: {
      out.append($0)
    }
    return out
  }

  /// Encodes valid, normalised text.
  private func encodeNormal(
    _ text: UnsafeBufferPointer<UInt8>, isFirst: Bool, _ cache: inout PieceCache, into out: inout [UInt32]
  ) {
    guard case .metaspace(let prefix, _) = steps.pieces else { return encodePieces(text, &cache, into: &out) }
    let isPrefixed = prefix == .always || prefix == .first && isFirst
    TokenizerSteps.replacingSpaces(text, prefixed: isPrefixed ? .unlessPresent : .never)
      .withUnsafeBufferPointer { encodePieces($0, &cache, into: &out) }
  }

  private func encodePieces(_ text: UnsafeBufferPointer<UInt8>, _ cache: inout PieceCache, into out: inout [UInt32]) {
    guard let base = text.baseAddress else { return }
    var tokens: [UInt32] = []
    byteTokens.withUnsafeBufferPointer { byteTokens in
      preTokenizer.split(text) { piece in
        let key = PieceCache.Key(piece, readable: text.count - (piece.baseAddress! - base))
        if let key, cache.append(key, to: &out) { return }
        tokens.removeAll(keepingCapacity: true)
        if !wholePieces.isEmpty, let whole = wholePieces[Array(piece)] {
          tokens.append(whole)
        } else {
          if characterTokens.isEmpty {
            for byte in piece where byteTokens[Int(byte)] != .max { tokens.append(byteTokens[Int(byte)]) }
          } else {
            appendCharacters(of: piece, byteTokens, to: &tokens)
          }
          merges.apply(to: &tokens)
        }
        out += tokens
        if let key { cache.store(key, tokens) }
      }
    }
  }

  /// A token for every character, or for each of its bytes where the vocabulary lacks it.
  private func appendCharacters(
    of piece: UnsafeBufferPointer<UInt8>, _ byteTokens: UnsafeBufferPointer<UInt32>, to tokens: inout [UInt32]
  ) {
    guard let text = piece.baseAddress else { return }
    characterTokens.withUnsafeBufferPointer { characterTokens in
      var i = 0
      while i < piece.count {
        let (value, length) = CharacterClasses.scalar(text, i)
        let token = value < 0x30000 ? characterTokens[Int(value)] : .max
        if token != .max {
          tokens.append(token)
        } else {
          for byte in piece[i..<i + length] { tokens.append(byteTokens[Int(byte)]) }
        }
        i += length
      }
    }
  }
}
