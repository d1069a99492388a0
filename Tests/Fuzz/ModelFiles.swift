import Chat
import Files
import Foundation
import GGUF
import Models
import TestSupport
import Tokenizers

/// Mutated files of models that come from elsewhere: GGUF, with all that is made of one, tokenizers of every family, chat
/// templates.
private let fixtures = repository + "/Tests/Fixtures/"
private let arraysOfEveryType = Array(FileManager.default.contents(atPath: fixtures + "gguf/types.gguf") ?? Data())
private let llama = Array(FileManager.default.contents(atPath: fixtures + "gguf/llama.gguf") ?? Data())
/// Where the header of `llama` ends, before which mutations find what is read.
private let llamaHeader = 16_500
private let families = ["gemma", "llama2", "mistral", "metaspace", "llama3", "smollm", "gpt2"].map {
  Array(FileManager.default.contents(atPath: fixtures + "tokenizers/\($0)/tokenizer.json") ?? Data())
}
private let templates = ["smollm2", "qwen2", "qwen3", "llama3", "gemma", "mistral", "language"].map {
  Array(FileManager.default.contents(atPath: fixtures + "chat/\($0).jinja") ?? Data())
}

/// A copy of `bytes` with a few of its bytes, or of a stretch of them, changed in place: what keeps lengths true.
private func altered(_ bytes: [UInt8], below end: Int, _ random: inout Generator) -> [UInt8] {
  var out = bytes
  for _ in 0..<Int.random(in: 1...6, using: &random) {
    let place = Int.random(in: 0..<min(end, out.count), using: &random)
    switch Int.random(in: 0..<3, using: &random) {
    case 0: out[place] = UInt8.random(in: 0...255, using: &random)
    case 1: for i in place..<min(place + 8, out.count) { out[i] = Bool.random(using: &random) ? 255 : 0 }
    default: out[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
    }
  }
  return out
}

/// - Parameter folder: where a case may write files
func modelFileKinds(folder: String) -> [(name: String, run: (inout Generator) throws -> Void)] {
  [
    (
      "GGUF headers and arrays",
      { random in
        let bytes =
          Bool.random(using: &random)
          ? mutate(arraysOfEveryType, &random) : altered(arraysOfEveryType, below: 700, &random)
        let file = try GGUFFile(content: bytes, path: "fuzz.gguf")
        for name in file.entries.keys { _ = try file.floats(name) }
      }
    ),
    (
      "GGUF models",
      { random in
        let path = folder + "/mutated.gguf"
        _ = FileManager.default.createFile(
          atPath: path, contents: Data(altered(llama, below: llamaHeader, &random)))
        let configuration = try ModelConfiguration(path: path)
        _ = HybridLM(configuration).cacheBytes(context: 65_536)
        let tokenizer = try makeTokenizer(path)
        _ = tokenizer.decode(tokenizer.encode("the theme \u{301} of <|endoftext|>\n 12".utf8, special: .recognized))
      }
    ),
    (
      "tokenizers of families",
      { random in
        let bytes = families.randomElement(using: &random)!
        let tokenizer = try BPETokenizer(json: Data(mutate(bytes, &random)), path: "tokenizer.json")
        let ids = tokenizer.encode("the  theme \u{301} of <s>\n\n12 <table>".utf8, special: .recognized)
        _ = tokenizer.decode(ids + [0, 258, 4_000_000])
      }
    ),
    (
      "chat templates",
      { random in
        let source = String(decoding: mutate(templates.randomElement(using: &random)!, &random), as: UTF8.self)
        let template = try ChatTemplate(source, beginOfText: "<bos>", endOfText: "<eos>")
        _ = try template.text(
          [.init(role: "system", content: "a"), .init(role: "user", content: "b")], asksForAnswer: true)
      }
    ),
  ]
}
