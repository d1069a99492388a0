import Chat
import Checkpointing
import Conversion
import Files
import Foundation
import GGUF
import Models
import NN
import Tensors
import Tokenizers

/// A model by any path that names one: a model folder, a run folder, or a checkpoint in it.
package func loadModel(_ path: String, backend: any Backend) throws -> HybridLM {
  guard FileManager.default.fileExists(atPath: path) else {
    throw ModelError(path: path, reason: "there is no such model folder, run folder or checkpoint")
  }
  if holdsModel(path) { return try HybridLM.load(path, backend: backend) }
  return try loadModel(Checkpoint(RunFolder.resolve(path)), backend: backend)
}

/// Whether ``loadModel(_:backend:)`` finds a model at `path`.
package func namesModel(_ path: String) -> Bool { holdsModel(path) || (try? RunFolder.resolve(path)) != nil }

/// The shapes of the model at any path that names one, or of a `config.json`.
package func modelConfiguration(of path: String) throws -> ModelConfiguration {
  guard !holdsModel(path), let folder = try? RunFolder.resolve(path) else { return try ModelConfiguration(path: path) }
  return try configuration(of: Checkpoint(folder))
}

private func configuration(of checkpoint: Checkpoint) throws -> ModelConfiguration {
  try ModelConfiguration(
    json: Data((checkpoint.manifest.job["config"] ?? "").utf8), path: checkpoint.path + "/manifest.json")
}

/// The model of a checkpoint: what never trained comes from where the job took it, the rest from the shards.
package func loadModel(_ checkpoint: Checkpoint, backend: any Backend) throws -> HybridLM {
  let manifest = checkpoint.manifest
  let job = manifest.job
  let model: HybridLM
  if manifest.identity.kind == JobKind.finetune.rawValue {
    model = try loadModel(job["student"] ?? "", backend: backend)
  } else {
    let teacher = job["teacher"].flatMap { $0.isEmpty ? nil : $0 }
    model = try ModelSetup.begin(
      configuration(of: checkpoint),
      weights: job["student"] ?? "",
      teacher: manifest.identity.kind == JobKind.distill.rawValue
        ? teacher.map { try loadModel($0, backend: backend) } : nil,
      initialization: StudentInitialization(rawValue: job["init"] ?? "") ?? .random,
      seed: UInt64(job["seed"] ?? "") ?? 0, backend: backend)
  }
  var restored: Set<String> = []
  try checkpoint.read { key, elements, values in
    guard key.role == .parameter else { return }
    guard let parameter = model.store[key.name], elements.upperBound <= parameter.count else {
      throw CheckpointError(checkpoint.path, "holds \(key.name), which the model does not have")
    }
    // It may lie in a mapped file, or be shared with the teacher.
    if restored.insert(key.name).inserted { parameter.own(on: backend) }
    parameter.set(elements, to: values)
  }
  guard ModelSetup.hash(model, where: { !restored.contains($0.name) }) == manifest.identity.frozen else {
    throw CheckpointError(
      checkpoint.path, "the weights it was trained upon have changed since (\(job["teacher"] ?? job["student"] ?? ""))")
  }
  return model
}

/// The folder, or GGUF file, whose tokenizer and settings belong to the model at `path`: the model itself, or for a
/// checkpoint the one that it began from; nil where there is none.
package func companionFolder(of path: String) -> String? {
  if holdsModel(path) { return path }
  guard let job = try? Checkpoint(RunFolder.resolve(path)).manifest.job else { return nil }
  return [job["student"], job["teacher"]].compactMap { $0 }.filter { !$0.isEmpty && namesModel($0) }
    .compactMap(companionFolder(of:)).first
}

/// Writes the tokenizer of a GGUF file as Hugging Face's files into `folder`, which is made; where `source` is a folder,
/// ``ModelWriter`` carries its files.
package func carryTokenizer(of source: String?, to folder: String) throws {
  guard let source, isGGUF(source) else { return }
  let file = try GGUFFile(path: source)
  let tokenizer = try TokenizerDescription(file, name: folder)
  try createFolder(folder)
  try writeDurably(try tokenizer.tokenizerJSON(), to: folder + "/tokenizer.json")
  try writeDurably(
    tokenizer.configurationJSON(chatTemplate: file.metadata["tokenizer.chat_template"]?.bytes),
    to: folder + "/tokenizer_config.json")
}

/// The folder of a tokenizer that is named by it or by its `tokenizer.json`.
package func companionFolder(ofTokenizer path: String) -> String {
  path.hasSuffix(".json") ? URL(fileURLWithPath: path).deletingLastPathComponent().path : path
}

/// The tokenizer of the model at `path`: the one that is named, else the one in its folder, else `bytes`.
package func makeTokenizer(_ name: String?, of path: String) throws -> any Tokenizer {
  if let name { return try makeTokenizer(name) }
  let folder = companionFolder(of: path)
  if let folder, isGGUF(folder) { return try makeTokenizer(folder) }
  let isThere = ["tokenizer.json", "vocab.json"].contains { name in
    folder.map { FileManager.default.fileExists(atPath: $0 + "/" + name) } ?? false
  }
  return try makeTokenizer(isThere ? folder! : "bytes")
}

/// The chat template of the model at `path`; nil where it has none.
package func chatTemplate(of path: String) throws -> ChatTemplate? {
  guard let companion = companionFolder(of: path) else { return nil }
  guard isGGUF(companion) else { return try ChatTemplate(folder: companion) }
  let metadata = try GGUFFile(path: companion).metadata
  let tokens = metadata["tokenizer.ggml.tokens"]?.list ?? []
  func token(_ name: String) -> String {
    let id = metadata["tokenizer.ggml.\(name)_token_id"]?.integer ?? -1
    return tokens.indices.contains(id) ? tokens[id].text ?? "" : ""
  }
  return try metadata["tokenizer.chat_template"]?.text.map {
    try ChatTemplate($0, beginOfText: token("bos"), endOfText: token("eos"))
  }
}

/// The chat template that lies beside the tokenizer at `path`.
package func chatTemplate(ofTokenizer path: String) throws -> ChatTemplate {
  let template = try isGGUF(path) ? chatTemplate(of: path) : ChatTemplate(folder: companionFolder(ofTokenizer: path))
  guard let template else {
    throw TokenizerError(
      path: path, reason: "has no chat template beside it: chat_template.jinja, or in tokenizer_config.json")
  }
  return template
}

/// The tokens that end a text of the model at `path`: the tokenizer's, and those of the model's `generation_config.json`
/// and `config.json`.
package func endTokens(of path: String, _ tokenizer: any Tokenizer) -> Set<UInt32> {
  var tokens: Set<UInt32> = [tokenizer.endOfText]
  guard let folder = companionFolder(of: path) else { return tokens }
  if isGGUF(folder), let end = (try? ModelConfiguration(path: folder))?.endOfText {
    tokens.insert(UInt32(clamping: end))
  }
  for name in ["generation_config.json", "config.json"] {
    guard let data = FileManager.default.contents(atPath: folder + "/" + name),
      let object = try? JSONSerialization.jsonObject(with: data) as? [String: Any]
    else { continue }
    let ids = object["eos_token_id"] as? [Int] ?? (object["eos_token_id"] as? Int).map { [$0] } ?? []
    tokens.formUnion(ids.compactMap { UInt32(exactly: $0) })
  }
  return tokens
}
