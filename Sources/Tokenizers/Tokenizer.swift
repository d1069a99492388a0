import Crypto
import Foundation

/// Text to token ids and back.
package protocol Tokenizer: Sendable {
  /// What a job file calls it.
  var name: String { get }
  var vocabularySize: Int { get }
  /// The id that ends a document.
  var endOfText: UInt32 { get }
  /// SHA-256 of everything that decides the ids; shards and checkpoints carry it.
  var hash: String { get }

  func encode(_ text: some Sequence<UInt8>) -> [UInt32]
  /// The bytes of these tokens; ids of no text give none.
  func decode(_ tokens: some Sequence<UInt32>) -> [UInt8]
}

/// The tokenizer of the simplest kind: a token is a byte, 256 ends a document.
package struct ByteTokenizer: Tokenizer {
  package let name = "bytes"
  package let vocabularySize = 257
  package let endOfText: UInt32 = 256
  package let hash: String

  package init() {
    hash = SHA256.hash(data: Data("jettrain bytes 1".utf8)).map { byte in
      (byte < 16 ? "0" : "") + String(byte, radix: 16)
    }.joined()
  }

  package func encode(_ text: some Sequence<UInt8>) -> [UInt32] { text.map(UInt32.init) }

  package func decode(_ tokens: some Sequence<UInt32>) -> [UInt8] { tokens.compactMap(UInt8.init(exactly:)) }
}

/// A tokenizer that does not exist here.
package struct TokenizerError: Error, CustomStringConvertible {
  package let name: String
  package var description: String {
    "tokenizer \(name) is not known; this version has `bytes` (a token is a byte)"
  }
}

/// The tokenizer of this name.
package func makeTokenizer(_ name: String) throws -> any Tokenizer {
  guard name == "bytes" else { throw TokenizerError(name: name) }
  return ByteTokenizer()
}
