import Files
import Foundation
import NN
import Safetensors
import Tensors

/// Writing models as Hugging Face folders, which transformers and NVlabs' own modelling code load where they know the
/// layers (``LoadingCode``).
package struct ModelWriter {
  /// Element type of the weights: float32, or bfloat16, rounded to nearest even.
  package var type: SafetensorsType
  /// Most bytes of arrays in one file; what Hugging Face's tools call the shard size.
  package var shardBytes: Int
  /// A folder whose tokenizer, generation settings and modelling code go along; of a GGUF file nothing does here.
  package var companions: String?

  package init(type: SafetensorsType = .float32, shardBytes: Int = 5_000_000_000, companions: String? = nil) {
    precondition(type == .float32 || type == .bfloat16, "models are written as float32 or bfloat16, not \(type)")
    self.type = type
    self.shardBytes = shardBytes
    self.companions = companions
  }

  /// Files beside the weights that belong to a model, where its source has them.
  private static let companionNames = [
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
  ]
  private static let modellingNames = ["configuration_jet_nemotron.py", "modeling_jet_nemotron.py"]

  /// Writes `model` into the folder `path`. The configuration comes last: a folder without it is no model, so that
  /// what was cut short cannot be taken for one.
  ///
  /// - Parameter values: of a parameter, made when they are written; by default those it has
  /// - Returns: bytes of all weight files
  @discardableResult
  package func write(
    _ model: HybridLM, to path: String, values: (Parameter) throws -> Tensor = { $0.value }
  ) throws -> Int {
    try createFolder(path)
    let configurationPath = path + "/config.json"
    for name in try FileManager.default.contentsOfDirectory(atPath: path)
    where name == "config.json" || (name.hasPrefix("model") && name.contains(".safetensors")) {
      try FileManager.default.removeItem(atPath: path + "/" + name)
    }
    let shards = split(model.store.parameters)
    var total = 0
    var map: [String: String] = [:]
    for (index, parameters) in shards.enumerated() {
      let name =
        shards.count == 1
        ? "model.safetensors" : "model-\(Self.padded(index + 1))-of-\(Self.padded(shards.count)).safetensors"
      total += try write(parameters, to: path + "/" + name, values: values)
      for parameter in parameters { map[parameter.name] = name }
    }
    if shards.count > 1 {
      let size = model.store.count * type.size
      try writeJSON(
        ["metadata": ["total_size": size], "weight_map": map], to: path + "/model.safetensors.index.json")
    }
    let code = model.configuration.loadingCode
    if let companions {
      try carry(Self.companionNames + (code == .jetNemotron ? Self.modellingNames : []), from: companions, to: path)
    }
    if code == .hybrid {
      try writeDurably(Data(PackageResources.modeling_jettrain_hybrid_py), to: path + "/modeling_jettrain_hybrid.py")
    }
    if !FileManager.default.fileExists(atPath: path + "/generation_config.json") {
      try writeJSON(
        model.configuration.rawObject.filter { ["bos_token_id", "eos_token_id", "pad_token_id"].contains($0.key) },
        to: path + "/generation_config.json")
    }
    try writeJSON(model.configuration.exported(as: type), to: configurationPath)
    return total
  }

  private static func padded(_ number: Int) -> String {
    let digits = String(number)
    return String(repeating: "0", count: max(0, 5 - digits.count)) + digits
  }

  /// Parameters in their order, cut where a file would grow too large; an array is never cut.
  private func split(_ parameters: [Parameter]) -> [[Parameter]] {
    var shards: [[Parameter]] = [[]]
    var size = 0
    for parameter in parameters {
      let bytes = parameter.count * type.size
      if size + bytes > shardBytes, !shards[shards.count - 1].isEmpty {
        shards.append([])
        size = 0
      }
      shards[shards.count - 1].append(parameter)
      size += bytes
    }
    return shards
  }

  private func write(
    _ parameters: [Parameter], to path: String, values: (Parameter) throws -> Tensor
  ) throws -> Int {
    let header = try SafetensorsHeader(
      parameters.map { .init(name: $0.name, type: type, shape: $0.shape) }, metadata: ["format": "pt"])
    let file = try DurableFile(path)
    try file.write(Array(header.bytes))
    for parameter in parameters {
      let value = try values(parameter)
      let piece = 4 << 20
      for first in stride(from: 0, to: value.count, by: piece) {
        try file.write(Self.encoded(value.elements(first..<min(first + piece, value.count)), as: type))
      }
    }
    _ = try file.finish()
    return header.fileSize
  }

  /// The elements of `value` as `type`, little-endian.
  private static func encoded(_ value: Tensor, as type: SafetensorsType) -> [UInt8] {
    switch type {
    case .float32: return value.toArray().bytes { $0.bitPattern.littleEndian }
    case .bfloat16 where value.dtype == .bfloat16: return value.toBits().bytes(\.littleEndian)
    case .bfloat16: return value.toArray().bytes { bfloat16(rounding: $0).littleEndian }
    default: preconditionFailure("\(value.dtype) cannot be written as \(type)")
    }
  }

  private func carry(_ names: [String], from source: String, to path: String) throws {
    guard !isGGUF(source),
      URL(fileURLWithPath: source).standardizedFileURL != URL(fileURLWithPath: path).standardizedFileURL
    else { return }
    for name in names + ["generation_config.json"]
    where FileManager.default.fileExists(atPath: source + "/" + name) {
      try writeDurably(readFile(source + "/" + name), to: path + "/" + name)
    }
  }

  private func writeJSON(_ object: [String: Any], to path: String) throws {
    let data = try JSONSerialization.data(
      withJSONObject: object, options: [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes])
    try writeDurably(data + Data("\n".utf8), to: path)
  }
}

/// The upper half of the float32 nearest to `value`, ties to even; NaN stays NaN.
package func bfloat16(rounding value: Float) -> UInt16 {
  let bits = value.bitPattern
  guard !value.isNaN else { return UInt16(truncatingIfNeeded: bits >> 16) | 0x40 }
  return UInt16(truncatingIfNeeded: (bits &+ 0x7FFF &+ (bits >> 16 & 1)) >> 16)
}

extension Array {
  /// The bytes of what `word` makes of every element, end to end.
  fileprivate func bytes<Word: FixedWidthInteger>(_ word: (Element) -> Word) -> [UInt8] {
    [UInt8](unsafeUninitializedCapacity: count * MemoryLayout<Word>.size) { out, initialized in
      for (index, element) in enumerated() {
        UnsafeMutableRawBufferPointer(out).storeBytes(
          of: word(element), toByteOffset: index * MemoryLayout<Word>.size, as: Word.self)
      }
      initialized = count * MemoryLayout<Word>.size
    }
  }
}
