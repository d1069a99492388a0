import Foundation
import Safetensors

/// A `config.json` or a model folder that cannot be used.
package struct ModelError: Error, CustomStringConvertible {
  package let path: String
  package let reason: String
  package var description: String { "\(path): \(reason)" }

  package init(path: String, reason: String) {
    self.path = path
    self.reason = reason
  }
}

/// What mixes tokens in one layer.
package enum LayerType: String, Sendable, Equatable, CaseIterable {
  case attention = "attn"
  case slidingWindow = "swa"
  case jet
  case gatedLinearAttention = "gla"
  case retention = "retnet"
  case mamba2
  case deltaNet = "deltanet"
  case gatedDeltaNet = "gdn"
  case rwkv7

  /// Whether it is softmax attention, which a student may keep as its teacher has it.
  package var isAttention: Bool { self == .attention || self == .slidingWindow }
  /// Linear mixers that ``LinearConfiguration`` describes.
  package static let linear: [LayerType] = [
    .gatedLinearAttention, .retention, .mamba2, .deltaNet, .gatedDeltaNet, .rwkv7,
  ]
}

/// The shape of a JetBlock.
package struct JetConfiguration: Sendable, Equatable {
  package var heads: Int
  package var keySize: Int
  package var valueSize: Int
  package var convolutionSize: Int
  /// Channels of the kernel generator: value channels ÷ this.
  package var reduction: Int
  package var epsilon: Float
}

/// A model as Hugging Face's `config.json` describes it: `qwen2`, or `jet_nemotron` with its layer types.
package struct ModelConfiguration: Sendable {
  package var modelType: String
  package var vocabularySize: Int
  package var hiddenSize: Int
  package var intermediateSize: Int
  package var attentionHeads: Int
  package var keyValueHeads: Int
  package var headSize: Int
  package var layerTypes: [LayerType]
  package var slidingWindow: Int?
  package var jet: JetConfiguration?
  /// Shapes of the other linear mixers that the model has.
  package var linear: [LayerType: LinearConfiguration] = [:]
  /// In a once-for-all supernet: the linear mixer that every layer holds beside its attention.
  package var supernetMixer: LayerType?
  package var normEpsilon: Float
  /// Standard deviation of matrices that begin at random.
  package var initializerRange: Float
  package var ropeTheta: Float
  package var tiesEmbeddings: Bool
  package var endOfText: Int?
  /// The file as it was, for writing it beside the weights.
  package var json: Data

  package var layerCount: Int { layerTypes.count }

  /// Whether weights as released are bfloat16, and so stay in memory.
  package var keepsBFloat16: Bool {
    let object = rawObject
    return (object["torch_dtype"] ?? object["dtype"]) as? String == "bfloat16"
  }

  /// The file's object with all its keys.
  var rawObject: [String: Any] {
    // It was parsed before.
    (try? JSONSerialization.jsonObject(with: json) as? [String: Any]) ?? [:]
  }

  /// Reads `path`, a `config.json` or a folder that holds one.
  package init(path: String) throws {
    var isFolder: ObjCBool = false
    let exists = FileManager.default.fileExists(atPath: path, isDirectory: &isFolder)
    let file = isFolder.boolValue ? path + "/config.json" : path
    guard exists, let data = FileManager.default.contents(atPath: file) else {
      throw ModelError(path: file, reason: "there is no such configuration; give a config.json or its folder")
    }
    try self.init(json: data, path: file)
  }

  /// Parses the JSON text `json`; `path` names it in errors.
  package init(json: Data, path: String) throws {
    guard let object = try? JSONSerialization.jsonObject(with: json) as? [String: Any] else {
      throw ModelError(path: path, reason: "is not a JSON object")
    }
    let reader = ConfigurationReader(object: object, path: path)
    self.json = json
    modelType = try reader.string("model_type")
    guard ["qwen2", "jet_nemotron"].contains(modelType) else {
      throw ModelError(
        path: path, reason: "model_type \(modelType) is not supported (qwen2 and jet_nemotron are)")
    }
    vocabularySize = try reader.positive("vocab_size")
    hiddenSize = try reader.positive("hidden_size")
    intermediateSize = try reader.positive("intermediate_size")
    attentionHeads = try reader.positive("num_attention_heads")
    keyValueHeads = try reader.optionalPositive("num_key_value_heads") ?? attentionHeads
    headSize = try reader.optionalPositive("head_dim") ?? hiddenSize / attentionHeads
    normEpsilon = Float(reader.number("rms_norm_eps") ?? 1e-6)
    initializerRange = Float(reader.number("initializer_range") ?? 0.02)
    // transformers 5 keeps the angles' settings together; kinds that change them are not computed here.
    let rope = object["rope_parameters"] as? [String: Any] ?? object["rope_scaling"] as? [String: Any] ?? [:]
    let kind = (rope["rope_type"] ?? rope["type"]) as? String ?? "default"
    guard kind == "default" else { throw ModelError(path: path, reason: "rope type \(kind) is not supported") }
    let activation = object["hidden_act"] as? String ?? "silu"
    guard activation == "silu" else {
      throw ModelError(path: path, reason: "hidden_act \(activation) is not supported")
    }
    let ropeReader = ConfigurationReader(object: rope, path: path)
    ropeTheta = Float(reader.number("rope_theta") ?? ropeReader.number("rope_theta") ?? 10_000)
    tiesEmbeddings = object["tie_word_embeddings"] as? Bool ?? false
    endOfText = object["eos_token_id"] as? Int
    guard attentionHeads % keyValueHeads == 0, headSize > 0, headSize % 2 == 0 else {
      throw ModelError(
        path: path,
        reason: "num_key_value_heads \(keyValueHeads) must divide num_attention_heads \(attentionHeads), "
          + "and the head size \(headSize) must be even and above zero")
    }
    guard normEpsilon > 0, normEpsilon.isFinite, ropeTheta > 0, ropeTheta.isFinite, initializerRange > 0,
      initializerRange.isFinite
    else {
      throw ModelError(path: path, reason: "rms_norm_eps, rope_theta and initializer_range must be above zero")
    }
    let layers = try reader.positive("num_hidden_layers")
    guard layers <= 10_000 else { throw ModelError(path: path, reason: "num_hidden_layers \(layers) is impossible") }
    // Older files of qwen2 say it by a number: layers from `max_window_layers` on have a window.
    let firstWindow =
      object["use_sliding_window"] as? Bool == true ? try reader.optionalCount("max_window_layers") ?? layers : layers
    let names =
      object["layer_types"] as? [String] ?? (0..<layers).map { $0 < firstWindow ? "attn" : "swa" }
    guard names.count == layers else {
      throw ModelError(
        path: path, reason: "layer_types has \(names.count) entries, num_hidden_layers is \(layers)")
    }
    let spellings = ["full_attention": "attn", "sliding_attention": "swa"]
    layerTypes = try names.map { name in
      guard let type = LayerType(rawValue: spellings[name] ?? name) else {
        throw ModelError(
          path: path,
          reason:
            "layer_types: \(name) is unknown (\(LayerType.allCases.map(\.rawValue).joined(separator: ", ")) are known)")
      }
      return type
    }
    let efficient = object["efficient_attention_config"] as? [String: Any] ?? [:]
    let isSupernet = object["supernet_mixer"] != nil
    if layerTypes.contains(.slidingWindow) || (isSupernet && efficient["swa"] != nil) {
      let sliding = ConfigurationReader(
        object: efficient["swa"] as? [String: Any] ?? [:], path: path + ": efficient_attention_config.swa")
      slidingWindow = try sliding.optionalPositive("window_size") ?? reader.positive("sliding_window")
    }
    if let name = object["supernet_mixer"] {
      guard let type = LayerType(rawValue: name as? String ?? ""), !type.isAttention,
        layerTypes.allSatisfy({ $0 == .attention })
      else {
        throw ModelError(
          path: path, reason: "supernet_mixer must name a linear mixer, and all layers of a supernet are attn")
      }
      supernetMixer = type
    }
    let held = layerTypes + [supernetMixer].compactMap { $0 }
    for type in LayerType.linear where held.contains(type) {
      linear[type] = try LinearConfiguration(
        type,
        ConfigurationReader(
          object: efficient[type.rawValue] as? [String: Any] ?? [:],
          path: path + ": efficient_attention_config." + type.rawValue))
    }
    if held.contains(.jet) {
      jet = try JetConfiguration(
        ConfigurationReader(
          object: efficient["jet"] as? [String: Any] ?? [:], path: path + ": efficient_attention_config.jet"))
    }
  }
}

extension JetConfiguration {
  fileprivate init(_ reader: ConfigurationReader) throws {
    heads = try reader.positive("num_heads")
    keySize = try reader.positive("head_dim")
    // 96 × 2.6666666667 must give 256.
    let values = (Double(keySize) * (reader.number("expand_v") ?? 2)).rounded()
    guard values >= 1, values * Double(heads) <= 0x1p24 else {
      throw ModelError(path: reader.path, reason: "expand_v makes \(values) value channels of \(heads) heads")
    }
    valueSize = Int(values)
    convolutionSize = try reader.optionalPositive("conv_size") ?? 4
    reduction = try reader.optionalPositive("dconv_generator_reduction") ?? 8
    epsilon = Float(reader.number("norm_eps") ?? 1e-5)
    guard epsilon > 0, epsilon.isFinite else {
      throw ModelError(path: reader.path, reason: "norm_eps must be above zero")
    }
    guard convolutionSize == 4, heads * valueSize % reduction == 0 else {
      throw ModelError(
        path: reader.path,
        reason: "conv_size must be 4, and dconv_generator_reduction must divide num_heads × d_V = "
          + "\(heads * valueSize)")
    }
  }
}

/// Reads typed fields of a JSON object; numbers may be strings ("1e-5"), as released files have them.
struct ConfigurationReader {
  let object: [String: Any]
  let path: String

  func string(_ key: String) throws -> String {
    guard let value = object[key] as? String else {
      throw ModelError(path: path, reason: "\(key) is missing or not a string")
    }
    return value
  }

  func number(_ key: String) -> Double? {
    if let text = object[key] as? String { return Double(text) }
    return (object[key] as? NSNumber)?.doubleValue
  }

  func positive(_ key: String) throws -> Int {
    guard let value = try optionalPositive(key) else {
      throw ModelError(path: path, reason: "\(key) is missing")
    }
    return value
  }

  /// A whole number that may be 0.
  func optionalCount(_ key: String) throws -> Int? { number(key) == 0 ? 0 : try optionalPositive(key) }

  func optionalPositive(_ key: String) throws -> Int? {
    guard let value = number(key) else { return nil }
    // No size of a model comes near it, and no product of two can overflow.
    guard value >= 1, value <= 0x1p24, value == value.rounded() else {
      throw ModelError(path: path, reason: "\(key) must be a whole number from 1 to 16777216, not \(value)")
    }
    return Int(value)
  }
}
