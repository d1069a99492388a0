import Foundation
import NN
import Safetensors
import Tensors

/// Reading and writing models as Hugging Face folders: `config.json`, and `model.safetensors` or shards with an
/// index.
extension HybridLM {
  /// The model in the folder at `path`, with all its weights, as float32.
  package static func load(_ path: String, backend: any Backend) throws -> HybridLM {
    let model = HybridLM(try ModelConfiguration(path: path))
    try model.loadWeights(path, backend: backend)
    return model
  }

  private func loadWeights(_ path: String, backend: any Backend) throws {
    let files = try Self.weightFiles(path)
    var sources: [String: SafetensorsFile] = [:]
    for file in files {
      for name in file.entries.keys {
        guard sources.updateValue(file, forKey: name) == nil else {
          throw ModelError(path: file.path, reason: "\(name) is in two files of the folder")
        }
      }
    }
    for parameter in store.parameters {
      guard let file = sources.removeValue(forKey: parameter.name), let entry = file.entries[parameter.name]
      else { throw ModelError(path: path, reason: "the weights lack \(parameter.name)") }
      guard entry.shape == parameter.shape else {
        throw ModelError(
          path: file.path,
          reason: "\(parameter.name) has shape \(entry.shape), config.json asks for \(parameter.shape)")
      }
      let value = backend.empty(parameter.shape)
      try file.read(parameter.name, into: value.floats)
      parameter.value = value
    }
    sources["lm_head.weight"] = configuration.tiesEmbeddings ? nil : sources["lm_head.weight"]
    if let surplus = sources.keys.min() {
      throw ModelError(
        path: path, reason: "the weights hold \(surplus), which config.json does not ask for")
    }
  }

  private static func weightFiles(_ path: String) throws -> [SafetensorsFile] {
    let index = path + "/model.safetensors.index.json"
    guard let data = FileManager.default.contents(atPath: index) else {
      return [try SafetensorsFile(path: path + "/model.safetensors")]
    }
    guard let object = try? JSONSerialization.jsonObject(with: data) as? [String: Any],
      let map = object["weight_map"] as? [String: String]
    else { throw ModelError(path: index, reason: "has no weight_map") }
    return try Set(map.values).sorted().map { name in
      guard !name.contains("/") else {
        throw ModelError(path: index, reason: "names a file outside its folder: \(name)")
      }
      return try SafetensorsFile(path: path + "/" + name)
    }
  }

  /// Gives every parameter without a value its initial one.
  package func initialize(seed: UInt64, backend: any Backend) {
    for parameter in store.parameters where !parameter.hasValue {
      parameter.value =
        backend is ShapeBackend
        ? backend.empty(parameter.shape)
        : backend.tensor(parameter.initialValues(seed: seed), parameter.shape)
    }
  }

  /// Makes this model the student of `teacher` (RECIPE section 5): MLPs, norms, embeddings, head, and whole
  /// layers kept as attention share the teacher's values; the rest is initialised. Shared values are not
  /// copied until they train.
  package func inherit(from teacher: HybridLM) throws {
    for parameter in store.parameters {
      guard let source = teacher.store[parameter.name] else { continue }
      let parts = parameter.name.split(separator: ".")
      if parts.count > 3, parts[3] == "self_attn", let index = Int(parts[2]),
        layers[index].type == .jet
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

  /// Writes the folder `path`: `config.json` and float32 weights in one file.
  package func save(_ path: String) throws {
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    try configuration.json.write(to: URL(fileURLWithPath: path + "/config.json"))
    let header = try SafetensorsHeader(
      store.parameters.map { .init(name: $0.name, shape: $0.shape) }, metadata: ["format": "pt"])
    let temporary = path + "/model.safetensors.partial"
    guard FileManager.default.createFile(atPath: temporary, contents: nil),
      let file = FileHandle(forWritingAtPath: temporary)
    else { throw ModelError(path: temporary, reason: "cannot be created") }
    try file.write(contentsOf: header.bytes)
    for parameter in store.parameters {
      let value = parameter.value
      try file.write(
        contentsOf: Data(
          bytesNoCopy: UnsafeMutableRawPointer(value.floats), count: value.count * 4, deallocator: .none))
    }
    try file.synchronize()
    try file.close()
    guard rename(temporary, path + "/model.safetensors") == 0 else {
      throw ModelError(path: path, reason: "cannot be renamed: \(String(cString: strerror(errno)))")
    }
  }
}
