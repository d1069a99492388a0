import Foundation
import Tensors

/// Reading an architecture from the object of a `config.json`, in the words of transformers 4 and 5. What would change the
/// numbers and is not computed is refused by name.
extension Architecture {
  init(_ reader: ConfigurationReader) throws {
    func fail(_ reason: String) -> ModelError { ModelError(path: reader.path, reason: reason) }
    let object = reader.object
    family = try Self.family(reader)
    vocabularySize = try reader.positive("vocab_size")
    hiddenSize = try reader.positive("hidden_size")
    intermediateSize = try reader.positive("intermediate_size")
    attentionHeads = try reader.positive("num_attention_heads")
    keyValueHeads = try reader.optionalPositive("num_key_value_heads") ?? (family == .mistral ? 8 : attentionHeads)
    let ownHeadSize: Int? = family == .qwen3 ? 128 : family == .gemma3 ? 256 : nil
    headSize = try reader.optionalPositive("head_dim") ?? ownHeadSize ?? hiddenSize / attentionHeads
    normEpsilon = Float(reader.number("rms_norm_eps") ?? 1e-6)
    initializerRange = Float(reader.number("initializer_range") ?? 0.02)
    tiesEmbeddings = object["tie_word_embeddings"] as? Bool ?? (family == .gemma3)
    guard attentionHeads % keyValueHeads == 0, headSize > 0, headSize % 2 == 0 else {
      throw fail(
        "num_key_value_heads \(keyValueHeads) must divide num_attention_heads \(attentionHeads), "
          + "and the head size \(headSize) must be even and above zero")
    }
    guard normEpsilon > 0, normEpsilon.isFinite, initializerRange > 0, initializerRange.isFinite else {
      throw fail("rms_norm_eps and initializer_range must be above zero")
    }
    // Written by newer versions even where a family has no such key.
    for (key, allowed) in [
      ("mlp_bias", 0.0), ("use_bidirectional_attention", 0), ("partial_rotary_factor", 1),
      ("final_logit_softcapping", 0),
      ("attn_logit_softcapping", 0),
    ] {
      if let value = reader.number(key), value != allowed { throw fail("\(key) \(object[key]!) is not supported") }
    }
    let asksForBias = object["attention_bias"] as? Bool ?? false
    hasQueryKeyValueBias = family.alwaysHasBias || (family != .mistral && asksForBias)
    hasOutputBias = !family.alwaysHasBias && hasQueryKeyValueBias
    hasQueryKeyNorms = family == .qwen3 || family == .gemma3

    let activationName =
      object[family == .gemma3 ? "hidden_activation" : "hidden_act"] as? String
      ?? (family == .gemma3 ? Activation.gelu : .silu).rawValue
    guard let activation = Activation(rawValue: activationName) else {
      throw fail("hidden_act \(activationName) is not supported (silu and gelu_pytorch_tanh are)")
    }
    self.activation = activation
    queryScale = 1 / Float(headSize).squareRoot()
    (rope, slidingRope) = try RotaryAngles.read(reader, family)
    layerTypes = []
    layerTypes = try readLayerTypes(reader)
    if family == .gemma3 {
      (normsAddOne, hasPostNorms) = (true, true)
      let scalar = reader.number("query_pre_attn_scalar") ?? 256
      guard scalar > 0, scalar.isFinite else { throw fail("query_pre_attn_scalar must be above zero") }
      queryScale = Float(1 / scalar.squareRoot())
      embeddingScale = Float(hiddenSize).squareRoot()
    }
    try readMixers(reader)
  }

  private static func family(_ reader: ConfigurationReader) throws -> ModelFamily {
    var type = try reader.string("model_type")
    if type == hybridType { type = try reader.string("base_model_type") }
    guard let family = ModelFamily(rawValue: type) else {
      throw ModelError(
        path: reader.path,
        reason:
          "model_type \(type) is not supported (\(ModelFamily.allCases.map(\.rawValue).joined(separator: ", ")) are)")
    }
    return family
  }

  private func readLayerTypes(_ reader: ConfigurationReader) throws -> [LayerType] {
    func fail(_ reason: String) -> ModelError { ModelError(path: reader.path, reason: reason) }
    let object = reader.object
    let layers = try reader.positive("num_hidden_layers")
    guard layers <= 10_000 else { throw fail("num_hidden_layers \(layers) is impossible") }
    let names: [String]
    if let given = object["layer_types"] as? [String] {
      names = given
    } else if family == .gemma3 {
      let pattern = try reader.optionalPositive("sliding_window_pattern") ?? 6
      names = (0..<layers).map { ($0 + 1) % pattern == 0 ? "attn" : "swa" }
    } else if family == .mistral {
      let isFull = object["sliding_window"] is NSNull
      names = [String](repeating: isFull ? "attn" : "swa", count: layers)
    } else {
      // Older files of qwen say it by a number: layers from `max_window_layers` on have a window.
      let first =
        object["use_sliding_window"] as? Bool == true ? try reader.optionalCount("max_window_layers") ?? layers : layers
      names = (0..<layers).map { $0 < first ? "attn" : "swa" }
    }
    guard names.count == layers else {
      throw fail("layer_types has \(names.count) entries, num_hidden_layers is \(layers)")
    }
    let spellings = ["full_attention": "attn", "sliding_attention": "swa"]
    return try names.map { name in
      guard let type = LayerType(rawValue: spellings[name] ?? name) else {
        throw fail(
          "layer_types: \(name) is unknown (\(LayerType.allCases.map(\.rawValue).joined(separator: ", ")) are known)")
      }
      return type
    }
  }

  /// Windows, and the shapes of linear mixers.
  private mutating func readMixers(_ reader: ConfigurationReader) throws {
    let efficient = reader.object["efficient_attention_config"] as? [String: Any] ?? [:]
    func settings(_ type: LayerType) -> ConfigurationReader {
      ConfigurationReader(
        object: efficient[type.rawValue] as? [String: Any] ?? [:],
        path: reader.path + ": efficient_attention_config." + type.rawValue)
    }
    let supernet = reader.object["supernet_mixer"]
    if layerTypes.contains(.slidingWindow) || (supernet != nil && efficient["swa"] != nil) {
      slidingWindow =
        try settings(.slidingWindow).optionalPositive("window_size")
        ?? reader.optionalPositive("sliding_window")
        ?? ([.gemma3, .mistral].contains(family) ? 4096 : reader.positive("sliding_window"))
    }
    if let supernet {
      guard let type = LayerType(rawValue: supernet as? String ?? ""), !type.isAttention,
        layerTypes.allSatisfy({ $0 == .attention })
      else {
        throw ModelError(
          path: reader.path, reason: "supernet_mixer must name a linear mixer, and all layers of a supernet are attn")
      }
      supernetMixer = type
    }
    let held = layerTypes + [supernetMixer].compactMap { $0 }
    // Shapes of mixers that the model does not have are there for a search to try, and may be incomplete.
    for type in LayerType.linear where held.contains(type) || efficient[type.rawValue] != nil {
      if held.contains(type) {
        linear[type] = try LinearConfiguration(type, settings(type))
      } else {
        linear[type] = try? LinearConfiguration(type, settings(type))
      }
    }
    if held.contains(.jet) {
      jet = try JetConfiguration(settings(.jet))
    } else if efficient["jet"] != nil {
      jet = try? JetConfiguration(settings(.jet))
    }
  }
}

extension RotaryAngles {
  /// The angles of full attention and, where a family has others there, of windows.
  fileprivate static func read(
    _ reader: ConfigurationReader, _ family: ModelFamily
  ) throws -> (full: RotaryAngles, sliding: RotaryAngles?) {
    // transformers 5 keeps them together, of Gemma by the type of layer.
    let parameters = reader.object["rope_parameters"] as? [String: Any]
    let byType = parameters?["full_attention"] as? [String: Any]
    let shared = byType ?? parameters ?? reader.object["rope_scaling"] as? [String: Any] ?? [:]
    let context = reader.number("max_position_embeddings")
    let full = try RotaryAngles(
      ConfigurationReader(object: shared, path: reader.path),
      theta: reader.number("rope_theta") ?? (family == .gemma3 ? 1e6 : 1e4), context: context)
    guard family == .gemma3 else { return (full, nil) }
    let sliding = parameters?["sliding_attention"] as? [String: Any] ?? [:]
    return (
      full,
      try RotaryAngles(
        ConfigurationReader(object: sliding, path: reader.path), theta: reader.number("rope_local_base_freq") ?? 1e4,
        context: context)
    )
  }

  private init(_ reader: ConfigurationReader, theta: Double, context: Double?) throws {
    func fail(_ reason: String) -> ModelError { ModelError(path: reader.path, reason: reason) }
    let theta = Float(reader.number("rope_theta") ?? theta)
    guard theta > 1, theta.isFinite else { throw fail("rope_theta must be above one") }
    func positive(_ key: String, _ fallback: Double? = nil) throws -> Double {
      guard let value = reader.number(key) ?? fallback, value > 0, value <= 0x1p32 else {
        throw fail("rope scaling: \(key) is missing, or not above zero")
      }
      return value
    }
    let kind = (reader.object["rope_type"] ?? reader.object["type"]) as? String ?? "default"
    switch kind {
    case "default": self.init(theta: theta)
    case "linear": self.init(theta: theta, scaling: .linear(factor: try positive("factor")))
    case "llama3":
      let (low, high) = (try positive("low_freq_factor"), try positive("high_freq_factor"))
      guard low < high else { throw fail("rope scaling: low_freq_factor must be below high_freq_factor") }
      self.init(
        theta: theta,
        scaling: .llama3(
          factor: try positive("factor"), lowFactor: low, highFactor: high,
          originalContext: try positive("original_max_position_embeddings", context)))
    case "yarn":
      let factor = try positive("factor")
      func magnitude(_ scale: Double) -> Double { factor <= 1 ? 1 : 0.1 * scale * log(factor) + 1 }
      var attention = reader.number("attention_factor")
      if attention == nil, let scale = reader.number("mscale"), let all = reader.number("mscale_all_dim"), scale != 0,
        all != 0
      {
        attention = magnitude(scale) / magnitude(all)
      }
      let value = attention ?? magnitude(1)
      guard value > 0, value.isFinite else { throw fail("rope scaling: attention_factor must be above zero") }
      self.init(
        theta: theta,
        scaling: .yarn(
          factor: factor, fast: try positive("beta_fast", 32), slow: try positive("beta_slow", 1),
          originalContext: try positive("original_max_position_embeddings", context), magnitude: value,
          truncates: reader.object["truncate"] as? Bool ?? true))
    default: throw fail("rope type \(kind) is not supported (default, linear, llama3 and yarn are)")
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
