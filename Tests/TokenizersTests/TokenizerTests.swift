import Foundation
import TestSupport
import Testing

@testable import Tokenizers

/// The real Qwen2.5 tokenizer, where ../shared has it, and the rules it is made of.
@Suite struct TokenizerTests {
  private static let real = (sharedFolder ?? "") + "/tokenizer/qwen2.5"
  private static let hasReal = sharedFolder != nil

  /// llama.cpp's vectors: texts between marker lines, and their ids.
  @Test(.enabled(if: hasReal, "needs ../shared/tokenizer"), arguments: ["", "/tokenizer.json"])
  func vectorsAreReproduced(_ file: String) throws {
    let tokenizer = try makeTokenizer(Self.real + file)
    let folder = (sharedFolder ?? "") + "/tokenizer/"
    let texts = try String(contentsOfFile: folder + "vectors.inp", encoding: .utf8)
      .components(separatedBy: "\n__ggml_vocab_test__\n")
    let ids = try String(contentsOfFile: folder + "vectors.out", encoding: .utf8).components(separatedBy: "\n")
      .map { $0.split(separator: " ").compactMap { UInt32($0) } }
    var count = 0
    for (text, expected) in zip(texts, ids) {
      #expect(tokenizer.encode(text.utf8) == expected, "\(text)")
      count += 1
    }
    print("tokenizer vectors: \(count) compared")
    #expect(count > 40)
  }
}
