import Foundation
import Hashing
import Synchronization

/// Byte-level byte pair encoding (Radford et al., 2019) as Qwen2.5 uses it: normal form C, the pattern of
/// ``PreTokenizer``, bytes, merges.
package final class ByteLevelBPE: Tokenizer {
  package let name: String
  package let vocabularySize: Int
  package let endOfText: UInt32
  package let hash: String

  private let preTokenizer: PreTokenizer
  private let normalizes: Bool
  private let merges: BytePairMerges
  /// Token of each byte.
  private let byteTokens: [UInt32]
  /// Bytes of all tokens end to end, and where each begins; one more than there are ids.
  private let tokenBytes: [UInt8]
  private let tokenStarts: [Int]
  /// Spellings of special and other added tokens, the longer first.
  private let addedTokens: [(bytes: [UInt8], id: UInt32)]
  /// Caches that no thread uses now.
  private let caches = Mutex<[PieceCache]>([])

  /// Reads the tokenizer at `path` (see ``makeTokenizer(_:)``).
  package convenience init(path: String) throws { try self.init(TokenizerFile(path: path)) }

  /// The tokenizer that the text of a `tokenizer.json` describes; `path` names it in errors.
  package convenience init(json: Data, path: String) throws { try self.init(TokenizerFile(json: json, path: path)) }

  private init(_ file: TokenizerFile) throws {
    func fail(_ reason: String) -> TokenizerError { TokenizerError(path: file.path, reason: reason) }
    name = file.name
    preTokenizer = PreTokenizer(maximalDigits: file.maximalDigits)
    normalizes = file.normalizes
    let highest = max(file.vocabulary.values.max() ?? 0, file.added.map(\.id).max() ?? 0)
    let count = file.vocabulary.count + file.added.count
    guard file.vocabulary.values.allSatisfy({ $0 >= 0 }), file.added.allSatisfy({ $0.id >= 0 }),
      highest < 4 * count + 1024
    else { throw fail("ids go up to \(highest) with \(count) tokens: the file is damaged") }
    vocabularySize = highest + 1

    var spelled = [[UInt8]?](repeating: nil, count: vocabularySize)
    for (token, id) in file.vocabulary {
      guard let bytes = ByteAlphabet.bytes(of: token) else {
        throw fail("token \(id) has characters that stand for no byte: this is not a byte-level vocabulary")
      }
      guard spelled[id] == nil else { throw fail("id \(id) belongs to two tokens") }
      spelled[id] = bytes
    }
    for token in file.added where spelled[token.id] == nil { spelled[token.id] = Array(token.content.utf8) }
    var starts = [0]
    starts.reserveCapacity(vocabularySize + 1)
    var flat: [UInt8] = []
    for bytes in spelled {
      flat += bytes ?? []
      starts.append(flat.count)
    }
    (tokenBytes, tokenStarts) = (flat, starts)

    byteTokens = try (0..<256).map { byte in
      guard let id = file.vocabulary[ByteAlphabet.spelling(UInt8(byte))] else {
        throw fail("the vocabulary has no token for byte \(byte): this is not a byte-level vocabulary")
      }
      return UInt32(id)
    }
    var pairs: [(left: UInt32, right: UInt32, merged: UInt32)] = []
    pairs.reserveCapacity(file.merges.count)
    for (left, right) in file.merges {
      guard let l = file.vocabulary[left], let r = file.vocabulary[right], let m = file.vocabulary[left + right] else {
        throw fail("merge \(pairs.count) (\(left) \(right)) names tokens that the vocabulary lacks")
      }
      pairs.append((UInt32(l), UInt32(r), UInt32(m)))
    }
    guard Set(pairs.map { UInt64($0.left) << 32 | UInt64($0.right) }).count == pairs.count else {
      throw fail("a merge occurs twice")
    }
    merges = BytePairMerges(pairs)
    addedTokens = file.added.map { (Array($0.content.utf8), UInt32($0.id)) }.filter { !$0.0.isEmpty }
      .sorted { $0.0.count > $1.0.count }
    guard
      let end = file.added.first(where: { $0.content == "<|endoftext|>" })?.id
        ?? file.endOfText.flatMap({ text in file.added.first { $0.content == text }?.id })
    else { throw fail("has no token that ends a document: <|endoftext|>, or eos_token of tokenizer_config.json") }
    endOfText = UInt32(end)

    var hasher = SHA256()
    hasher.update("byte-level BPE 1 \(file.maximalDigits) \(file.normalizes) \(end) \(vocabularySize)")
    hasher.update(flat)
    for part in [starts.map { UInt32($0) }, pairs.flatMap { [$0.left, $0.right] }] {
      part.withUnsafeBytes { hasher.update($0) }
    }
    for token in addedTokens.sorted(by: { $0.id < $1.id }) {
      hasher.update(token.bytes + [UInt8(0)] + Array(String(token.id).utf8))
    }
    hash = hasher.finish()
  }

  package func decode(_ tokens: some Sequence<UInt32>) -> [UInt8] {
    var out: [UInt8] = []
    for token in tokens where token < vocabularySize {
      out += tokenBytes[tokenStarts[Int(token)]..<tokenStarts[Int(token) + 1]]
    }
    return out
  }

  /// A line feed before an ASCII letter: the pattern lets no piece reach over it, and normalisation combines neither.
  package func mayCut(between left: UInt8, _ right: UInt8) -> Bool {
    left == UInt8(ascii: "\n") && (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(right | 0x20)
  }

  package func encode(_ text: UnsafeBufferPointer<UInt8>, special: SpecialTokens) -> [UInt32] {
    var cache = caches.withLock { $0.popLast() } ?? PieceCache()
    defer { caches.withLock { $0.append(cache) } }
    var out: [UInt32] = []
    out.reserveCapacity(text.count / 3)
    switch special {
    case .asText: encodeText(text, &cache, into: &out)
    case .recognized:
      var start = 0
      var i = 0
      while i < text.count {
        let rest = UnsafeBufferPointer(rebasing: text[i...])
        guard let token = addedTokens.first(where: { rest.starts(with: $0.bytes) }) else {
          i += 1
          continue
        }
        encodeText(UnsafeBufferPointer(rebasing: text[start..<i]), &cache, into: &out)
        out.append(token.id)
        i += token.bytes.count
        start = i
      }
      encodeText(UnsafeBufferPointer(rebasing: text[start...]), &cache, into: &out)
    }
    return out
  }

  private func encodeText(_ text: UnsafeBufferPointer<UInt8>, _ cache: inout PieceCache, into out: inout [UInt32]) {
    if text.isEmpty { return }
    if let changed = Normalization.valid(text, composing: normalizes) {
      changed.withUnsafeBufferPointer { encodeValid($0, &cache, into: &out) }
    } else {
      encodeValid(text, &cache, into: &out)
    }
  }

  private func encodeValid(_ text: UnsafeBufferPointer<UInt8>, _ cache: inout PieceCache, into out: inout [UInt32]) {
    guard let base = text.baseAddress else { return }
    var tokens: [UInt32] = []
    byteTokens.withUnsafeBufferPointer { byteTokens in
      preTokenizer.split(text) { piece in
        let key = PieceCache.Key(piece, readable: text.count - (piece.baseAddress! - base))
        if let key, cache.append(key, to: &out) { return }
        tokens.removeAll(keepingCapacity: true)
        for byte in piece { tokens.append(byteTokens[Int(byte)]) }
        merges.apply(to: &tokens)
        out += tokens
        if let key { cache.store(key, tokens) }
      }
    }
  }
}

/// Tokens of pieces met before. Each place holds the last piece that fell there, so that its size is fixed.
struct PieceCache {
  /// A piece of at most fifteen bytes, with its length.
  struct Key: Equatable {
    fileprivate let low: UInt64
    fileprivate let high: UInt64

    /// - Parameter readable: bytes that may be read from where the piece begins
    @inline(__always)
    init?(_ piece: UnsafeBufferPointer<UInt8>, readable: Int) {
      let count = piece.count
      guard count < 16, let base = UnsafeRawPointer(piece.baseAddress) else { return nil }
      if readable >= 16 {
        let (first, second) = (base.loadUnaligned(as: UInt64.self), (base + 8).loadUnaligned(as: UInt64.self))
        low = count >= 8 ? first : first & ((1 << UInt64(8 * count)) - 1)
        high = (count > 8 ? second & ((1 << UInt64(8 * (count - 8))) - 1) : 0) | UInt64(count) << 56
      } else {
        var (low, high) = (UInt64(0), UInt64(count) << 56)
        for (i, byte) in piece.enumerated() {
          if i < 8 { low |= UInt64(byte) << UInt64(8 * i) } else { high |= UInt64(byte) << UInt64(8 * (i - 8)) }
        }
        (self.low, self.high) = (low, high)
      }
    }

    @inline(__always)
    fileprivate var place: Int {
      let mixed = (low ^ high &* 0x9E37_79B9_7F4A_7C15) &* 0xBF58_476D_1CE4_E5B9
      return Int(truncatingIfNeeded: mixed >> 40) & (PieceCache.size - 1)
    }
  }

  private struct Entry {
    var low: UInt64 = 0
    var high: UInt64 = 0
    var tokens = SIMD4<UInt32>.zero
    var count = 0
  }

  private static let size = 1 << 16
  private var entries = [Entry](repeating: Entry(), count: size)

  /// Adds the tokens of `key` to `out`, if they are known.
  @inline(__always)
  func append(_ key: Key, to out: inout [UInt32]) -> Bool {
    entries.withUnsafeBufferPointer { entries in
      let entry = entries[key.place]
      guard entry.low == key.low, entry.high == key.high else { return false }
      for i in 0..<entry.count { out.append(entry.tokens[i]) }
      return true
    }
  }

  mutating func store(_ key: Key, _ tokens: [UInt32]) {
    guard tokens.count <= 4 else { return }
    var entry = Entry(low: key.low, high: key.high, count: tokens.count)
    for (i, token) in tokens.enumerated() { entry.tokens[i] = token }
    entries[key.place] = entry
  }
}

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
  static func bytes(of token: String) -> [UInt8]? {
    var out: [UInt8] = []
    out.reserveCapacity(token.utf8.count)
    for scalar in token.unicodeScalars {
      guard scalar.value < 0x144, case let byte = bytes[Int(scalar.value)], byte >= 0 else { return nil }
      out.append(UInt8(byte))
    }
    return out
  }
}
