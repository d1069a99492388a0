import Foundation
import TestSupport
import Testing
import Tokenizers

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

  /// `vocab.json` with `merges.txt` is the same tokenizer as `tokenizer.json`.
  @Test(.enabled(if: hasReal, "needs ../shared/tokenizer")) func bothSpellingsAreOneTokenizer() throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-\(UUID())").path
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
      try FileManager.default.createSymbolicLink(
        atPath: folder + "/" + name, withDestinationPath: Self.real + "/" + name)
    }
    let (a, b) = (try makeTokenizer(folder), try makeTokenizer(Self.real))
    #expect(a.hash == b.hash && a.vocabularySize == 151_665 && a.endOfText == 151_643)
  }

  @Test(.enabled(if: hasReal, "needs ../shared/tokenizer")) func specialTokensAreTextUnlessAskedFor() throws {
    let tokenizer = try makeTokenizer(Self.real)
    let text = "a<|endoftext|><tool_call>b"
    let asText = tokenizer.encode(text.utf8)
    #expect(!asText.contains(151_643) && !asText.contains(151_657))
    #expect(tokenizer.encode(text.utf8, special: .recognized) == [64, 151_643, 151_657, 65])
    for ids in [asText, tokenizer.encode(text.utf8, special: .recognized)] {
      #expect(String(decoding: tokenizer.decode(ids), as: UTF8.self) == text)
    }
  }

  /// Every text comes back, in pieces that are whole characters.
  @Test(.enabled(if: hasReal, "needs ../shared/tokenizer")) func streamsNeverShowHalfACharacter() throws {
    let tokenizer = try makeTokenizer(Self.real)
    let text = "Füße 🦙🇩🇪 កាន់តែពិសេស\n日本語 👩‍👩‍👧‍👦 x²"
    var decoder = StreamingDecoder(tokenizer)
    let parts = tokenizer.encode(text.utf8).map { decoder.push($0) } + [decoder.finish()]
    #expect(parts.joined() == text)
    #expect(parts.contains("") && !parts.contains { $0.contains("\u{FFFD}") })
  }

  // MARK: - Its parts, which need no files

  /// The hand-written splitter against the pattern itself, by ICU's engine.
  @Test(arguments: [1, 3]) func splitsAsThePatternDoes(digits: Int) throws {
    let pattern = PreTokenizer.pattern(digits: digits == 1 ? "" : "{1,3}")
    let regex = try NSRegularExpression(pattern: pattern)
    let alphabet = [
      "a", "Z", "é", "ſ", "字", "'", "'s", "'LL", "'Re", "'ve", "'x", " ", "  ", "\t", "\n", "\r\n", "\u{A0}",
      "\u{3000}",
      "1", "½", "٣", ".", "!", "_", "🦙", "\u{301}", "\u{200D}", "-",
    ]
    var random = SystemRandomNumberGenerator()
    for _ in 0..<20_000 {
      let text = (0..<Int.random(in: 0...14, using: &random)).map { _ in alphabet.randomElement(using: &random)! }
        .joined()
      let whole = text as NSString
      let expected = regex.matches(in: text, range: NSRange(location: 0, length: whole.length))
        .map { whole.substring(with: $0.range) }
      var pieces: [String] = []
      Array(text.utf8).withUnsafeBufferPointer { bytes in
        PreTokenizer(.qwen2(maximalDigits: digits)).split(bytes) { pieces.append(String(decoding: $0, as: UTF8.self)) }
      }
      #expect(pieces.map(Array.init(_:)) == expected.map(Array.init(_:)), "\(text.debugDescription)")
    }
  }

  /// Both ways of merging against the definition: the lowest rank in the whole piece, the leftmost of equal ones.
  @Test func mergesAsDefined() {
    var generator = SystemRandomNumberGenerator()
    for _ in 0..<60 {
      // Random merges over four letters, each of two tokens that exist.
      var pairs: [(left: UInt32, right: UInt32, merged: UInt32)] = []
      var seen: Set<[UInt32]> = []
      while pairs.count < 24 {
        let limit = UInt32(4 + pairs.count)
        let (l, r) = (UInt32.random(in: 0..<limit, using: &generator), UInt32.random(in: 0..<limit, using: &generator))
        if seen.insert([l, r]).inserted { pairs.append((l, r, limit)) }
      }
      let merges = BytePairMerges(pairs)
      for length in [0, 1, 2, 3, 10, 64, 65, 300] {
        let letters = (0..<length).map { _ in UInt32.random(in: 0..<4, using: &generator) }
        var expected = letters
        while let best = pairs.enumerated().first(where: { _, pair in
          zip(expected, expected.dropFirst()).contains { $0 == (pair.left, pair.right) }
        }) {
          let i = (0..<expected.count - 1).first {
            (expected[$0], expected[$0 + 1]) == (best.element.left, best.element.right)
          }!
          expected.replaceSubrange(i...i + 1, with: [best.element.merged])
        }
        var tokens = letters
        merges.apply(to: &tokens)
        #expect(tokens == expected)
      }
    }
  }

  @Test func inertCharactersNeverChange() {
    for value in UInt32(0)..<0x30000 {
      guard Normalization.isInert(value), let scalar = Unicode.Scalar(value) else { continue }
      let text = String(Character(scalar))
      #expect(scalar.properties.canonicalCombiningClass == .notReordered, "\(value)")
      guard Array(text.precomposedStringWithCanonicalMapping.unicodeScalars) == [scalar] else {
        Issue.record("U+\(String(value, radix: 16)) changes under NFC")
        continue
      }
      // Nor does it join what stands before it.
      if value >= 0x80, Array(("a" + text).precomposedStringWithCanonicalMapping.unicodeScalars).count != 2 {
        Issue.record("U+\(String(value, radix: 16)) combines")
      }
    }
  }

  @Test func composesLikeTheStandard() {
    func composed(_ text: String) -> String {
      let bytes = Array(text.utf8)
      return bytes.withUnsafeBufferPointer { buffer in
        Normalization.valid(buffer, composing: true).map { String(decoding: $0, as: UTF8.self) } ?? text
      }
    }
    for (text, expected) in [
      ("e\u{301}", "\u{E9}"), ("\u{AC00}\u{11A8}", "\u{AC01}"), ("\u{1100}\u{1161}\u{11A8}x", "\u{AC01}x"),
      ("\u{212B}", "\u{C5}"), ("a\u{328}\u{301}", "\u{105}\u{301}"), ("a\u{301}\u{328}", "\u{105}\u{301}"),
      ("\u{958}", "\u{915}\u{93C}"), ("u\u{308}\u{304}", "\u{1D6}"), ("\u{301}\u{301}", "\u{301}\u{301}"),
      ("x\u{301}y\u{300}", "x\u{301}\u{1EF3}"),
    ] {
      #expect(Array(composed(text).unicodeScalars) == Array(expected.unicodeScalars), "\(text.unicodeScalars)")
    }
    // Foundation drops the last of many marks; here none is lost.
    let marks = String(String.UnicodeScalarView(repeatElement("\u{301}", count: 500)))
    #expect(composed("\u{32B}" + marks).unicodeScalars.count == 501)
    #expect(
      composed(String(decoding: [0x61, 0xC3, 0xE2, 0x82, 0x62] as [UInt8], as: UTF8.self)) == "a\u{FFFD}\u{FFFD}b")
  }

  /// Texts may be cut where `mayCut` says so.
  @Test(.enabled(if: hasReal, "needs ../shared")) func cutTextsEncodeAsWholeOnes() throws {
    let tokenizer = try makeTokenizer(Self.real)
    let text = Array(
      try Data(contentsOf: URL(fileURLWithPath: sharedFolder! + "/corpora/tinyshakespeare.txt")).prefix(200_000))
    var parts: [UInt32] = []
    var start = 0
    for i in 1..<text.count where tokenizer.mayCut(between: text[i - 1], text[i]) {
      parts += tokenizer.encode(text[start..<i])
      start = i
    }
    parts += tokenizer.encode(text[start...])
    #expect(parts == tokenizer.encode(text))
  }

  @Test func otherKindsAreRefused() throws {
    func refused(_ change: (inout [String: Any]) -> Void) -> Bool {
      var vocabulary = Dictionary(uniqueKeysWithValues: (0..<256).map { (ByteAlphabet.spelling(UInt8($0)), $0) })
      vocabulary["th"] = 256
      var object: [String: Any] = [
        "added_tokens": [["id": 257, "content": "<|endoftext|>"]],
        "normalizer": ["type": "NFC"],
        "pre_tokenizer": [
          "pretokenizers": [
            [
              "type": "Split", "behavior": "Isolated", "invert": false,
              "pattern": ["Regex": PreTokenizer.pattern(digits: "")],
            ], ["type": "ByteLevel", "add_prefix_space": false, "use_regex": false],
          ]
        ],
        "model": ["type": "BPE", "vocab": vocabulary, "merges": ["t h"]],
      ]
      change(&object)
      do {
        let tokenizer = try BPETokenizer(json: JSONSerialization.data(withJSONObject: object), path: "test")
        #expect(tokenizer.encode("thth".utf8) == [256, 256])
        return false
      } catch {
        #expect(error is TokenizerError, "\(error)")
        return true
      }
    }
    #expect(!refused { _ in })
    #expect(refused { $0["normalizer"] = ["type": "NFKC"] })
    #expect(refused { $0["pre_tokenizer"] = ["type": "Whitespace"] })
    #expect(refused { $0["post_processor"] = ["type": "TemplateProcessing"] })
    #expect(refused { $0["added_tokens"] = [] as [Any] })
    #expect(
      refused { object in
        var model = object["model"] as? [String: Any] ?? [:]
        model["merges"] = ["t x"]
        object["model"] = model
      })
    #expect(
      refused { object in
        var model = object["model"] as? [String: Any] ?? [:]
        model["merges"] = ["t h", "t h"]
        object["model"] = model
      })
  }
}
