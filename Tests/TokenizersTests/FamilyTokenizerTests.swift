import Foundation
import TestSupport
import Testing
import Tokenizers

/// Tokenizers of every family, small ones trained to its pipeline (Tests/Interop/make_tokenizer_fixtures.py).
@Suite struct FamilyTokenizerTests {
  private static let folder = repository + "/Tests/Fixtures/tokenizers/"
  private static let kinds = ["gemma", "llama2", "mistral", "metaspace", "llama3", "smollm", "gpt2"]

  private struct Expected: Decodable {
    let texts: [String]
    /// By kind, for each text: the ids with the template's tokens, and without.
    let ids: [String: [[[UInt32]]]]
  }

  @Test(arguments: kinds) func idsAreTheLibrarys(kind: String) throws {
    let expected = try JSONDecoder().decode(
      Expected.self, from: Data(contentsOf: URL(fileURLWithPath: Self.folder + "expected.json")))
    let tokenizer = try makeTokenizer(Self.folder + kind)
    for (text, ids) in zip(expected.texts, try #require(expected.ids[kind])) {
      #expect(tokenizer.encode(text.utf8, special: .recognized) == ids[1], "\(text.debugDescription)")
      let document = tokenizer.encodeDocument(text.utf8, special: .recognized)
      // The token before a text is put there once, also where the text spells it.
      #expect(document == (ids[1].first == tokenizer.beginOfText && tokenizer.beginOfText != nil ? ids[1] : ids[0]))
    }
  }

  /// Written as a `tokenizer.json` and read again, it is the same.
  @Test(arguments: kinds) func writingKeepsThem(kind: String) throws {
    let description = try TokenizerDescription(path: Self.folder + kind)
    let written = try TokenizerDescription(json: description.tokenizerJSON(), path: "written")
    let (a, b) = (try BPETokenizer(description), try BPETokenizer(written))
    #expect(a.hash == b.hash && a.beginOfText == b.beginOfText && a.endOfText == b.endOfText)
  }

  /// Texts may be cut where `mayCut` says so, and parts that continue get nothing before them.
  @Test(arguments: kinds) func cutTextsEncodeAsWholeOnes(kind: String) throws {
    let tokenizer = try makeTokenizer(Self.folder + kind)
    let text = Array(
      String(
        repeating: "It's the 2nd  of\n\nmany of the lines, \tand <table> the next.\nAnd\nso on 12345 the the\n",
        count: 40
      ).utf8)
    var parts: [UInt32] = []
    var start = 0
    for i in 1..<text.count where tokenizer.mayCut(between: text[i - 1], text[i]) {
      parts += tokenizer.encode(text[start..<i], continuing: start > 0)
      start = i
    }
    #expect(start > 0)
    parts += tokenizer.encode(text[start...], continuing: true)
    #expect(parts == tokenizer.encode(text))
  }

  /// Where a token reaches over a space there is no cut: the stand-in for Gemma has one of two words.
  @Test func tokensOverSpacesAreNotCut() throws {
    let tokenizer = try makeTokenizer(Self.folder + "gemma")
    #expect(tokenizer.encode(" of the".utf8).count == 1)
    #expect(!tokenizer.mayCut(between: UInt8(ascii: "f"), UInt8(ascii: " ")))
    #expect(tokenizer.mayCut(between: UInt8(ascii: "e"), UInt8(ascii: " ")))
  }

  @Test func whatFilesSayTwiceOrElseIsRefused() throws {
    func refusal(_ kind: String, _ change: (inout [String: Any]) -> Void) throws -> String? {
      let data = try Data(contentsOf: URL(fileURLWithPath: Self.folder + kind + "/tokenizer.json"))
      var object = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
      change(&object)
      do {
        _ = try BPETokenizer(json: JSONSerialization.data(withJSONObject: object), path: "test")
        return nil
      } catch {
        #expect(error is TokenizerError)
        return "\(error)"
      }
    }
    #expect(try refusal("mistral") { _ in } == nil)
    #expect(try refusal("mistral") { $0["normalizer"] = ["type": "Lowercase"] }?.contains("Lowercase") == true)
    #expect(
      try refusal("gemma") { object in
        var model = object["model"] as? [String: Any] ?? [:]
        model["byte_fallback"] = false
        object["model"] = model
      } != nil)
    #expect(
      try refusal("smollm") { $0["pre_tokenizer"] = ["type": "ByteLevel", "add_prefix_space": true] }?
        .contains("space") == true)
    #expect(
      try refusal("llama3") { object in
        object["post_processor"] = [
          "type": "TemplateProcessing",
          "single": [["Sequence": ["id": "A"]], ["SpecialToken": ["id": "<|eot_id|>"]]],
          "special_tokens": ["<|eot_id|>": ["id": "<|eot_id|>", "ids": [706], "tokens": ["<|eot_id|>"]]],
        ]
      } != nil)
  }
}
