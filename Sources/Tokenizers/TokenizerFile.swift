import Foundation

/// What the files of a tokenizer say, checked for being the kind that ``ByteLevelBPE`` computes exactly; another kind
/// is refused by name, never approximated.
struct TokenizerFile {
  let path: String
  let name: String
  private(set) var vocabulary: [String: Int] = [:]
  private(set) var merges: [(String, String)] = []
  private(set) var added: [(content: String, id: Int)] = []
  private(set) var maximalDigits = 1
  private(set) var normalizes = true
  /// What `tokenizer_config.json` names as the end of a text.
  private(set) var endOfText: String?

  /// Reads a `tokenizer.json`, or the folder that holds it or `vocab.json` and `merges.txt`.
  init(path: String) throws {
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
      throw TokenizerError(
        path: path,
        reason:
          "there is no such tokenizer; give `bytes`, or a folder with tokenizer.json, or with vocab.json and merges.txt"
      )
    }
    let folder = isFolder.boolValue ? path : (path as NSString).deletingLastPathComponent
    let directory = URL(fileURLWithPath: folder.isEmpty ? "." : folder)
    name = directory.standardizedFileURL.lastPathComponent
    func exists(_ file: String) -> Bool { FileManager.default.fileExists(atPath: directory.path + "/" + file) }
    var configuration: [String: Any] = [:]
    if exists("tokenizer_config.json") {
      configuration = try Self.object(directory.path + "/tokenizer_config.json")
      endOfText = Self.content(configuration["eos_token"])
    }
    if !isFolder.boolValue || exists("tokenizer.json") {
      self.path = isFolder.boolValue ? path + "/tokenizer.json" : path
      try read(Self.object(self.path))
    } else if exists("vocab.json"), exists("merges.txt") {
      self.path = path
      vocabulary = try Self.vocabulary(Self.object(path + "/vocab.json"), path: path + "/vocab.json")
      try readMerges(path + "/merges.txt")
      for (id, token) in configuration["added_tokens_decoder"] as? [String: Any] ?? [:] {
        guard let id = Int(id), let content = Self.content(token) else {
          throw TokenizerError(path: path + "/tokenizer_config.json", reason: "added_tokens_decoder is not readable")
        }
        added.append((content, id))
      }
    } else {
      throw TokenizerError(path: path, reason: "holds neither tokenizer.json nor vocab.json and merges.txt")
    }
  }

  /// The content of a `tokenizer.json`, for files that are not on disk.
  init(json: Data, path: String) throws {
    self.path = path
    name = path
    try read(Self.object(json, path: path))
  }

  private static func content(_ value: Any?) -> String? {
    value as? String ?? (value as? [String: Any])?["content"] as? String
  }

  private static func object(_ path: String) throws -> [String: Any] {
    guard let data = try? Data(contentsOf: URL(fileURLWithPath: path), options: .mappedIfSafe) else {
      throw TokenizerError(path: path, reason: "cannot be read; is it there, and readable?")
    }
    return try object(data, path: path)
  }

  private static func object(_ data: Data, path: String) throws -> [String: Any] {
    guard let object = try? JSONSerialization.jsonObject(with: data) as? [String: Any] else {
      throw TokenizerError(path: path, reason: "is not a JSON object")
    }
    return object
  }

  private static func vocabulary(_ object: [String: Any], path: String) throws -> [String: Int] {
    guard let vocabulary = object as? [String: Int] else {
      throw TokenizerError(path: path, reason: "the vocabulary does not map tokens to whole numbers")
    }
    return vocabulary
  }

  private mutating func read(_ object: [String: Any]) throws {
    let path = path
    func fail(_ reason: String) -> TokenizerError { TokenizerError(path: path, reason: reason) }
    guard let model = object["model"] as? [String: Any], model["type"] as? String ?? "BPE" == "BPE",
      let vocabulary = model["vocab"] as? [String: Any]
    else { throw fail("is not a BPE tokenizer") }
    self.vocabulary = try Self.vocabulary(vocabulary, path: path)
    for key in ["dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"]
    where !(model[key] is NSNull) && model[key] as? String ?? "" != "" || model[key] is NSNumber {
      throw fail("model.\(key) is not supported")
    }
    for key in ["byte_fallback", "ignore_merges"] where model[key] as? Bool ?? false {
      throw fail("model.\(key) is not supported")
    }
    if let pairs = model["merges"] as? [[String]] {
      merges = try pairs.map { pair in
        guard pair.count == 2 else { throw fail("a merge is not of two tokens: \(pair)") }
        return (pair[0], pair[1])
      }
    } else if let lines = model["merges"] as? [String] {
      merges = try lines.map { try Self.merge($0, path: path) }
    } else {
      throw fail("model.merges is neither a list of strings nor one of pairs")
    }
    try readSteps(object)
    for token in object["added_tokens"] as? [[String: Any]] ?? [] {
      guard let content = token["content"] as? String, let id = token["id"] as? Int else {
        throw fail("an added token has no content or id")
      }
      for key in ["single_word", "lstrip", "rstrip"] where token[key] as? Bool ?? false {
        throw fail("added token \(content): \(key) is not supported")
      }
      added.append((content, id))
    }
  }

  /// The steps before the merges, which must be those of ``PreTokenizer``.
  private mutating func readSteps(_ object: [String: Any]) throws {
    func fail(_ reason: String) -> TokenizerError { TokenizerError(path: path, reason: reason) }
    if let normalizer = object["normalizer"] as? [String: Any] {
      guard normalizer["type"] as? String == "NFC" else { throw fail("the normalizer is not NFC") }
    } else {
      normalizes = false
    }
    let steps = (object["pre_tokenizer"] as? [String: Any])?["pretokenizers"] as? [[String: Any]] ?? []
    guard steps.count == 2, steps[0]["type"] as? String == "Split", steps[0]["behavior"] as? String == "Isolated",
      steps[0]["invert"] as? Bool == false, let regex = (steps[0]["pattern"] as? [String: Any])?["Regex"] as? String,
      steps[1]["type"] as? String == "ByteLevel", steps[1]["add_prefix_space"] as? Bool == false,
      steps[1]["use_regex"] as? Bool == false
    else { throw fail("the pre-tokenizer is not a Split by pattern and a ByteLevel, as Qwen2.5's is") }
    switch regex {
    case PreTokenizer.pattern(digits: ""): maximalDigits = 1
    case PreTokenizer.pattern(digits: "{1,3}"): maximalDigits = 3
    default: throw fail("the pre-tokenizer's pattern is not Qwen2's or cl100k's: \(regex)")
    }
    if let post = object["post_processor"] as? [String: Any], post["type"] as? String != "ByteLevel" {
      throw fail("post_processor \(post["type"] ?? "") is not supported")
    }
  }

  private mutating func readMerges(_ path: String) throws {
    guard let text = try? String(contentsOfFile: path, encoding: .utf8) else {
      throw TokenizerError(path: path, reason: "is not readable as UTF-8")
    }
    for line in text.split(separator: "\n") where !line.hasPrefix("#version") {
      merges.append(try Self.merge(line, path: path))
    }
  }

  private static func merge(_ line: some StringProtocol, path: String) throws -> (String, String) {
    let parts = line.split(separator: " ", omittingEmptySubsequences: false)
    guard parts.count == 2 else { throw TokenizerError(path: path, reason: "a merge is not of two tokens: \(line)") }
    return (String(parts[0]), String(parts[1]))
  }
}
