import Files
import Foundation
import GGUF
import NN
import Safetensors
import Tensors

/// Whether a model lies at `path`: a Hugging Face folder, or a GGUF file.
package func holdsModel(_ path: String) -> Bool {
  FileManager.default.fileExists(atPath: isGGUF(path) ? path : path + "/config.json")
}

/// Whether `path` names a GGUF file.
package func isGGUF(_ path: String) -> Bool { path.hasSuffix(".gguf") }

/// Reading models from Hugging Face folders, `config.json` and `model.safetensors` or shards with an index, and from GGUF
/// files.
extension HybridLM {
  /// The model in the folder or GGUF file at `path`, with all its weights.
  ///
  /// Matrices of bfloat16 and float32 are borrowed from the mapped files: a backend on the host copies nothing, and ranks
  /// there share them. Vectors, float16, all of a GGUF file, and arrays at odd addresses become float32 of their own.
  package static func load(_ path: String, backend: any Backend) throws -> HybridLM {
    if isGGUF(path) { return try load(GGUFModel(GGUFFile(path: path)), backend: backend) }
    let model = HybridLM(try ModelConfiguration(path: path))
    try model.loadWeights(path, backend: backend)
    return model
  }

  private static func load(_ source: GGUFModel, backend: any Backend) throws -> HybridLM {
    let model = HybridLM(try source.configuration())
    let asked = Dictionary(
      model.store.parameters.map { (source.name(of: $0.name) ?? $0.name, $0.name) }, uniquingKeysWith: { $1 })
    try model.checkNames(of: source.arrayNames.map { asked[$0] ?? $0 }, path: source.file.path)
    for parameter in model.store.parameters {
      guard source.shape(of: parameter) == parameter.shape else {
        throw ModelError(
          path: source.file.path,
          reason: "\(parameter.name) has shape \(source.shape(of: parameter) ?? []), not \(parameter.shape)")
      }
      parameter.value = try source.value(of: parameter, model.configuration.architecture, on: backend)
    }
    return model
  }

  private func loadWeights(_ path: String, backend: any Backend) throws {
    let sources = try Self.weightSources(path)
    try checkNames(of: Array(sources.keys), path: path)
    for parameter in store.parameters {
      guard let file = sources[parameter.name], let entry = file.entries[parameter.name] else { continue }
      guard entry.shape == parameter.shape else {
        throw ModelError(
          path: file.path,
          reason: "\(parameter.name) has shape \(entry.shape), config.json asks for \(parameter.shape)")
      }
      let view = parameter.isMatrix ? file.view(parameter.name, on: backend) : nil
      parameter.value = try view ?? file.copy(parameter.name, on: backend)
    }
  }

  /// Throws, with names, when the folder's arrays are not those that the configuration asks for.
  private func checkNames(of arrays: [String], path: String) throws {
    let missing = Set(store.parameters.map(\.name)).subtracting(arrays)
    let surplus = arrays.filter { name in
      // A tied head may be there, and tables of angles that old versions of transformers saved.
      store[name] == nil && !(name == "lm_head.weight" && configuration.tiesEmbeddings)
        && !name.hasSuffix(".rotary_emb.inv_freq")
    }
    guard missing.isEmpty, surplus.isEmpty else {
      let faults = [("lack", missing.sorted()), ("hold, but config.json does not ask for,", surplus.sorted())]
      throw ModelError(
        path: path,
        reason: "the weights "
          + faults.filter { !$0.1.isEmpty }.map { "\($0.0) \(Self.listed($0.1))" }.joined(separator: "; and "))
    }
  }

  /// The first few names, and how many more.
  private static func listed(_ names: [String]) -> String {
    names.prefix(8).joined(separator: ", ") + (names.count > 8 ? " and \(names.count - 8) more" : "")
  }

  /// The file that holds each array of the folder.
  private static func weightSources(_ path: String) throws -> [String: SafetensorsFile] {
    let index = path + "/model.safetensors.index.json"
    guard FileManager.default.fileExists(atPath: index) else {
      let file = try SafetensorsFile(path: path + "/model.safetensors")
      return Dictionary(uniqueKeysWithValues: file.entries.keys.map { ($0, file) })
    }
    let content = try readFile(index)
    guard let object = try? JSONSerialization.jsonObject(with: content) as? [String: Any],
      let map = object["weight_map"] as? [String: String]
    else { throw ModelError(path: index, reason: "has no weight_map") }
    var sources: [String: SafetensorsFile] = [:]
    for name in Set(map.values).sorted() {
      guard !name.contains("/"), name != "..", name != "." else {
        throw ModelError(path: index, reason: "names a file outside its folder: \(name)")
      }
      let file = try SafetensorsFile(path: path + "/" + name)
      for array in file.entries.keys {
        guard sources.updateValue(file, forKey: array) == nil else {
          throw ModelError(path: file.path, reason: "\(array) is in two files of the folder")
        }
      }
    }
    for (array, name) in map where sources[array]?.path != path + "/" + name {
      throw ModelError(path: index, reason: "says that \(array) is in \(name), which does not hold it")
    }
    return sources
  }

  /// Gives every parameter without a value its initial one.
  package func initialize(seed: UInt64, backend: any Backend) {
    for parameter in store.parameters where !parameter.hasValue {
      parameter.value = backend.tensor(parameter.initialValues(seed: seed), parameter.shape)
    }
  }

  /// Gives every parameter without a value undefined elements, of the type that it has at rest: to plan with.
  package func allocate(on backend: any Backend) {
    for parameter in store.parameters where !parameter.hasValue {
      let isNarrow = configuration.keepsBFloat16 && parameter.isMatrix
      parameter.value = backend.empty(parameter.shape, isNarrow ? .bfloat16 : .float32)
    }
  }

  /// Shares with `teacher` what a student of it keeps (RECIPE section 5): MLPs, norms, embeddings, head, and whole
  /// layers of attention. Shared values are not copied until they train.
  package func inherit(from teacher: HybridLM) throws {
    for parameter in store.parameters {
      guard let source = teacher.store[parameter.name] else { continue }
      if case .layer(let index) = parameter.part, parameter.group == .mixers, !layers[index].type.isAttention,
        teacher.layers[index].type != layers[index].type
      {
        continue
      }
      guard source.shape == parameter.shape else {
        throw ModelError(
          path: "student", reason: "\(parameter.name) is \(parameter.shape), the teacher's is \(source.shape)")
      }
      parameter.value = source.value.detached
    }
  }
}
