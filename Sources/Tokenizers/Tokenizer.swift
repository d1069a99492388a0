import Foundation
import GGUF
import Hashing

/// What becomes of a special token's spelling in a text, such as `<|endoftext|>`.
package enum SpecialTokens: Sendable {
  /// It is text like any other: what a corpus says cannot end a document.
  case asText
  /// It is the token, as in a chat template.
  case recognized
}

/// Text to token ids and back.
package protocol Tokenizer: Sendable {
  /// What a job file calls it, or the name of its folder.
  var name: String { get }
  /// One more than the largest id.
  var vocabularySize: Int { get }
  /// The id that ends a document.
  var endOfText: UInt32 { get }
  /// The id that texts of this family begin with, where they do; whoever builds data or reads a prompt puts it there.
  var beginOfText: UInt32? { get }
  /// SHA-256 of everything that decides the ids; shards and checkpoints carry it.
  var hash: String { get }

  /// The ids of a text, which should be UTF-8.
  ///
  /// - Parameter continuing: the text goes on from another, so that nothing is put before it
  func encode(_ text: UnsafeBufferPointer<UInt8>, special: SpecialTokens, continuing: Bool) -> [UInt32]
  /// The bytes of these tokens; ids of no text give none.
  func decode(_ tokens: some Sequence<UInt32>) -> [UInt8]
  /// Whether text may be cut between these two bytes without changing any id, special tokens being text.
  func mayCut(between left: UInt8, _ right: UInt8) -> Bool
}

extension Tokenizer {
  /// The ids of a text, which should be UTF-8.
  package func encode(
    _ text: some Sequence<UInt8>, special: SpecialTokens = .asText, continuing: Bool = false
  ) -> [UInt32] {
    text.withContiguousStorageIfAvailable { encode($0, special: special, continuing: continuing) }
      ?? Array(text).withUnsafeBufferPointer { encode($0, special: special, continuing: continuing) }
  }

  /// The ids of a text that begins a document: with the token that the family wants there, unless it is there.
  package func encodeDocument(_ text: some Sequence<UInt8>, special: SpecialTokens = .asText) -> [UInt32] {
    let ids = encode(text, special: special)
    guard let beginOfText, ids.first != beginOfText else { return ids }
    return [beginOfText] + ids
  }
}

/// The tokenizer of the simplest kind: a token is a byte, 256 ends a document.
package struct ByteTokenizer: Tokenizer {
  package let name = "bytes"
  package let vocabularySize = 257
  package let endOfText: UInt32 = 256
  package let beginOfText: UInt32? = nil
  package let hash: String

  package init() { hash = sha256("jettrain bytes 1") }

  package func encode(_ text: UnsafeBufferPointer<UInt8>, special: SpecialTokens, continuing: Bool) -> [UInt32] {
    text.map(UInt32.init)
  }

  package func decode(_ tokens: some Sequence<UInt32>) -> [UInt8] { tokens.compactMap(UInt8.init(exactly:)) }

  package func mayCut(between left: UInt8, _ right: UInt8) -> Bool { true }
}

/// A tokenizer that cannot be had, and why.
package struct TokenizerError: Error, CustomStringConvertible {
  package let path: String
  package let reason: String
  package var description: String { "\(path): \(reason)" }

  package init(path: String, reason: String) {
    self.path = path
    self.reason = reason
  }
}

/// The tokenizer of this name: `bytes`, or the path of a `tokenizer.json` or of a folder that holds one, or `vocab.json`
/// and `merges.txt`, or of a GGUF file.
package func makeTokenizer(_ name: String) throws -> any Tokenizer {
  if name == "bytes" { return ByteTokenizer() }
  guard name.hasSuffix(".gguf") else { return try BPETokenizer(path: name) }
  let base = URL(fileURLWithPath: name).deletingPathExtension().lastPathComponent
  return try BPETokenizer(TokenizerDescription(GGUFFile(path: name), name: base))
}

/// Turns tokens into text as they come, a whole character at a time.
package struct StreamingDecoder {
  private let tokenizer: any Tokenizer
  private var pending: [UInt8] = []

  package init(_ tokenizer: any Tokenizer) { self.tokenizer = tokenizer }

  /// The text that `token` completes; empty while a character is unfinished.
  package mutating func push(_ token: UInt32) -> String {
    pending += tokenizer.decode([token])
    let whole = pending.count - Self.unfinished(pending)
    defer { pending.removeFirst(whole) }
    return String(decoding: pending[..<whole], as: UTF8.self)
  }

  /// What is left when no more tokens come, U+FFFD for half a character.
  package mutating func finish() -> String {
    defer { pending = [] }
    return String(decoding: pending, as: UTF8.self)
  }

  /// How many bytes at the end begin a character that could still be finished.
  private static func unfinished(_ bytes: [UInt8]) -> Int {
    for back in 1...3 where back <= bytes.count {
      let byte = bytes[bytes.count - back]
      if byte & 0xC0 == 0x80 { continue }
      let length = byte < 0xC2 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : byte < 0xF5 ? 4 : 1
      return length > back ? back : 0
    }
    return 0
  }
}
