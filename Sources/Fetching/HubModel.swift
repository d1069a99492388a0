import Files
import Foundation
import Hashing

/// A model of the Hugging Face Hub, or of a server that speaks as it does: `hf:ORG/NAME[@REVISION]`.
package struct HubModel {
  /// A file of the model.
  package struct File: Sendable {
    package let name: String
    package let size: Int
    /// SHA-256 of a large file, git's name (SHA-1) of a small one.
    fileprivate let sha256: String?
    fileprivate let gitName: String?
  }

  package let name: String
  /// The commit that was found.
  package let revision: String
  package let licence: String
  /// Those that make a model: weights in safetensors, configuration, tokenizer, licence.
  package let files: [File]
  private let endpoint: String
  private let curl: Curl

  /// Asks the server what the model holds.
  ///
  /// - Parameters:
  ///   - reference: `hf:ORG/NAME[@REVISION]`
  ///   - environment: where `HF_ENDPOINT` and `HF_TOKEN` may be
  package init(_ reference: String, environment: [String: String]) throws {
    let rest = reference.dropFirst(reference.hasPrefix("hf:") ? 3 : 0)
    let parts = rest.split(separator: "@", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
    let names = parts[0].split(separator: "/", omittingEmptySubsequences: false)
    func isPlain(_ text: some StringProtocol) -> Bool {
      !text.isEmpty && text != "." && text != ".."
        && text.utf8.allSatisfy {
          ($0 | 0x20 >= 97 && $0 | 0x20 <= 122) || (48...57).contains($0) || "-_.".utf8.contains($0)
        }
    }
    let asked = parts.count == 2 ? parts[1] : "main"
    guard names.count == 2, names.allSatisfy(isPlain), asked.split(separator: "/").allSatisfy(isPlain), !asked.isEmpty
    else { throw FetchError(reference, "expected hf:ORG/NAME or hf:ORG/NAME@REVISION") }
    name = parts[0]
    endpoint = environment["HF_ENDPOINT"].flatMap { $0.isEmpty ? nil : $0 } ?? "https://huggingface.co"
    curl = Curl(token: environment["HF_TOKEN"] ?? "")
    let escaped = asked.replacingOccurrences(of: "/", with: "%2F")
    let url = "\(endpoint)/api/models/\(name)/revision/\(escaped)?blobs=true"
    guard let object = try JSONSerialization.jsonObject(with: curl.read(url)) as? [String: Any],
      let commit = object["sha"] as? String, isPlain(commit), let siblings = object["siblings"] as? [[String: Any]]
    else { throw FetchError(url, "the answer is not what the Hub says of a model") }
    revision = commit
    licence =
      (object["cardData"] as? [String: Any])?["license"] as? String ?? "none that it names: look at \(endpoint)/\(name)"
    let all = try siblings.map { entry in
      guard let name = entry["rfilename"] as? String, let size = entry["size"] as? Int, size >= 0 else {
        throw FetchError(url, "a file has no name or size")
      }
      return File(
        name: name, size: size, sha256: (entry["lfs"] as? [String: Any])?["sha256"] as? String,
        gitName: entry["blobId"] as? String)
    }
    // No folders: a model's own files lie at the top, and no name may lead out of ours.
    files = all.filter { isPlain($0.name) && Self.belongs($0.name) }
    guard files.contains(where: { $0.name == "config.json" }),
      files.contains(where: { $0.name.hasSuffix(".safetensors") })
    else { throw FetchError(name, "holds no config.json with weights in safetensors") }
  }

  private static func belongs(_ name: String) -> Bool {
    let plain: Set = [
      "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
      "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "model.safetensors.index.json",
      "configuration_jet_nemotron.py", "modeling_jet_nemotron.py",
    ]
    if plain.contains(name) || name == "model.safetensors" { return true }
    if name.hasPrefix("model-"), name.hasSuffix(".safetensors") { return true }
    return ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].contains { name.uppercased().hasPrefix($0) }
  }

  package var size: Int { files.reduce(0) { $0 + $1.size } }

  /// Fetches all files into `folder`, those that are not there yet; each is checked before it gets its name. The
  /// configuration comes last: a folder without it is no model.
  package func fetch(into folder: String, quiet: Bool, say: (String) -> Void) throws {
    try createFolder(folder)
    for file in files.filter({ $0.name != "config.json" }) + files.filter({ $0.name == "config.json" }) {
      let path = folder + "/" + file.name
      if try isRight(path, file) {
        say("\(file.name): is there")
        continue
      }
      try? FileManager.default.removeItem(atPath: path)
      let partial = path + ".part"
      if Self.size(partial) > file.size { try FileManager.default.removeItem(atPath: partial) }
      say("\(file.name): \(file.size) bytes")
      if Self.size(partial) < file.size || file.size == 0 {
        try curl.download("\(endpoint)/\(name)/resolve/\(revision)/\(file.name)", to: partial, quiet: quiet)
      }
      guard try isRight(partial, file) else {
        try? FileManager.default.removeItem(atPath: partial)
        throw FetchError(path, "what came is not the file that the server described (size or hash); it was removed")
      }
      try renameDurably(partial, to: path)
    }
  }

  private static func size(_ path: String) -> Int {
    ((try? FileManager.default.attributesOfItem(atPath: path))?[.size] as? Int) ?? -1
  }

  private func isRight(_ path: String, _ file: File) throws -> Bool {
    guard Self.size(path) == file.size else { return false }
    if let expected = file.sha256 { return try sha256(file: path) == expected }
    guard let expected = file.gitName, expected.count == 40 else { return true }
    return gitBlobName(try readFile(path)) == expected
  }
}
