import Files
import Foundation
import JSON

/// Reads the files of a tokenizer, checked for being a kind that ``BPETokenizer`` computes exactly; another kind is refused
/// by name, never approximated.
extension TokenizerDescription {
  /// Reads a `tokenizer.json`, or the folder that holds it or `vocab.json` and `merges.txt`.
  package init(path: String) throws {
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
      throw TokenizerError(
        path: path,
        reason:
          "there is no such tokenizer; give `bytes`, or a folder with tokenizer.json, or with vocab.json and merges.txt"
      )
    }
    let folder = isFolder.boolValue ? path : URL(fileURLWithPath: path).deletingLastPathComponent().path
    let directory = URL(fileURLWithPath: folder.isEmpty ? "." : folder)
    self.init(path: path, name: directory.standardizedFileURL.lastPathComponent)
    func exists(_ file: String) -> Bool { FileManager.default.fileExists(atPath: directory.path + "/" + file) }
    let configuration =
      exists("tokenizer_config.json") ? try Self.file(directory.path + "/tokenizer_config.json") : nil
    endOfText = Self.content(configuration?["eos_token"])
    if !isFolder.boolValue || exists("tokenizer.json") {
      if isFolder.boolValue { self.path += "/tokenizer.json" }
      try read(Self.file(self.path))
    } else if exists("vocab.json"), exists("merges.txt") {
      steps = TokenizerSteps(composes: true, pieces: .qwen2(maximalDigits: 1))
      try readVocabulary(Self.file(path + "/vocab.json"))
      try readMerges(path + "/merges.txt")
      for (id, token) in configuration?["added_tokens_decoder"]?.members ?? [] {
        guard let id = Int(String(decoding: id, as: UTF8.self)), let content = Self.content(token) else {
          throw TokenizerError(path: path + "/tokenizer_config.json", reason: "added_tokens_decoder is not readable")
        }
        added.append(AddedToken(content: content, id: id, isSpecial: token["special"]?.boolean ?? true))
      }
    } else {
      throw TokenizerError(path: path, reason: "holds neither tokenizer.json nor vocab.json and merges.txt")
    }
  }

  /// The content of a `tokenizer.json`, for files that are not on disk.
  package init(json: Data, path: String) throws {
    self.init(path: path, name: path)
    try read(Self.parse(json, path: path))
  }

  private static func content(_ value: JSONValue?) -> [UInt8]? { value?.bytes ?? value?["content"]?.bytes }

  private static func file(_ path: String) throws -> JSONValue {
    try parse(readFile(path), path: path)
  }

  private static func parse(_ data: Data, path: String) throws -> JSONValue {
    let result = data.withUnsafeBytes { bytes in
      Result { () throws(JSONValue.Fault) in try JSONValue.parse(bytes) }
    }
    switch result {
    case .success(let value) where value.members != nil: return value
    case .success: throw TokenizerError(path: path, reason: "is not a JSON object")
    case .failure(let fault): throw TokenizerError(path: path, reason: "is not JSON: it " + fault.reason)
    }
  }

  private mutating func readVocabulary(_ object: JSONValue?) throws {
    guard let members = object?.members else { throw fail("is not a BPE tokenizer") }
    vocabulary.reserveCapacity(members.count)
    for (token, id) in members {
      guard let id = id.integer else { throw fail("the vocabulary does not map tokens to whole numbers") }
      vocabulary[token] = id
    }
  }

  private mutating func read(_ object: JSONValue) throws {
    guard let model = object["model"], model["type"]?.text ?? "BPE" == "BPE" else {
      throw fail("is not a BPE tokenizer")
    }
    steps = try TokenizerSteps(object, path: path)
    try readVocabulary(model["vocab"])
    for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
      if let value = model[key], !value.isNull, value.bytes != [] { throw fail("model.\(key) is not supported") }
    }
    // With all bytes in the vocabulary nothing is unknown, and where some are missing they are dropped.
    if steps.isByteLevel, let unknown = model["unk_token"]?.text {
      guard (0..<256).allSatisfy({ vocabulary[Array(ByteAlphabet.spelling(UInt8($0)).utf8)] != nil }) else {
        throw fail("model.unk_token \(unknown) with a vocabulary that lacks bytes is not supported")
      }
    }
    guard steps.isByteLevel != (model["byte_fallback"]?.boolean ?? false) else {
      throw fail("model.byte_fallback must go with a vocabulary of characters, and a ByteLevel with none")
    }
    ignoresMerges = model["ignore_merges"]?.boolean ?? false
    guard let lines = model["merges"]?.list else { throw fail("has no model.merges") }
    merges.reserveCapacity(lines.count)
    for line in lines {
      if let pair = line.list, pair.count == 2, let left = pair[0].bytes, let right = pair[1].bytes {
        try merge(left, right)
      } else if let text = line.bytes {
        try merge(line: text[...])
      } else {
        throw fail("model.merges is neither a list of strings nor one of pairs")
      }
    }
    for token in object["added_tokens"]?.list ?? [] {
      guard let content = token["content"]?.bytes, let id = token["id"]?.integer else {
        throw fail("an added token has no content or id")
      }
      for key in ["single_word", "lstrip", "rstrip"] where token[key]?.boolean ?? false {
        throw fail("added token \(String(decoding: content, as: UTF8.self)): \(key) is not supported")
      }
      added.append(
        AddedToken(
          content: content, id: id, isSpecial: token["special"]?.boolean ?? true,
          isNormalized: token["normalized"]?.boolean ?? false))
    }
    try readTemplate(object["post_processor"])
  }

  /// What is put around a text: a token before it, and perhaps the one that ends it, which is written anyway.
  private mutating func readTemplate(_ value: JSONValue?) throws {
    for step in TokenizerSteps.sequence(value, "processors") {
      switch step["type"]?.text {
      case "ByteLevel": continue
      case "TemplateProcessing":
        guard let single = step["single"]?.list,
          let text = single.firstIndex(where: { $0["Sequence"] != nil }), text <= 1, single.count <= text + 2
        else { throw fail("the post_processor's template is not one token at most before and behind the text") }
        func token(_ piece: JSONValue) throws -> Int {
          guard let name = piece["SpecialToken"]?["id"]?.text, let ids = step["special_tokens"]?[name]?["ids"]?.list,
            ids.count == 1, let id = ids[0].integer
          else { throw fail("the post_processor's template names a token that is not one id") }
          return id
        }
        if text == 1 { beginOfText = try token(single[0]) }
        if single.count > text + 1 {
          guard try token(single[text + 1]) == endOfDocument() else {
            throw fail("the post_processor ends a text with another token than the one that ends a document")
          }
        }
      case let type: throw fail("post_processor \(type ?? "without a type") is not supported")
      }
    }
  }

  private mutating func readMerges(_ path: String) throws {
    for line in try Array(readFile(path)).split(separator: UInt8(ascii: "\n")) where !line.starts(with: "#version".utf8)
    {
      try merge(line: line)
    }
  }

  /// Adds a merge that is two spellings with a space between.
  mutating func merge(line: ArraySlice<UInt8>) throws {
    let parts = line.split(separator: UInt8(ascii: " "), omittingEmptySubsequences: false)
    guard parts.count == 2 else {
      throw fail("a merge is not of two tokens: \(String(decoding: line, as: UTF8.self))")
    }
    try merge(Array(parts[0]), Array(parts[1]))
  }
}
