import Foundation
import Tensors

/// Writing an architecture as a `config.json`, in the words of transformers 4, which 5 reads as well.
extension Architecture {
  /// The `model_type` of hybrids that no other code knows; `base_model_type` says the family.
  package static let hybridType = "jettrain_hybrid"

  /// The keys of a `config.json` that say this architecture, over those of `base` that say something else.
  package func written(over base: [String: Any] = [:]) -> [String: Any] {
    var object = base
    object["model_type"] = object["model_type"] as? String == Self.hybridType ? Self.hybridType : family.rawValue
    if object["model_type"] as? String == Self.hybridType { object["base_model_type"] = family.rawValue }
    object["vocab_size"] = vocabularySize
    object["hidden_size"] = hiddenSize
    object["intermediate_size"] = intermediateSize
    object["num_hidden_layers"] = layerCount
    object["num_attention_heads"] = attentionHeads
    object["num_key_value_heads"] = keyValueHeads
    object["head_dim"] = headSize
    object["rms_norm_eps"] = Self.decimal(normEpsilon)
    object["initializer_range"] = Self.decimal(initializerRange)
    object["tie_word_embeddings"] = tiesEmbeddings
    object[family == .gemma3 ? "hidden_activation" : "hidden_act"] = activation.rawValue
    if !family.alwaysHasBias && family != .mistral { object["attention_bias"] = hasQueryKeyValueBias }
    object["rope_parameters"] = nil
    object["rope_theta"] = Self.decimal(rope.theta)
    object["rope_scaling"] = rope.scaling.written ?? NSNull()
    if family == .gemma3 {
      object["rope_local_base_freq"] = Self.decimal((slidingRope ?? rope).theta)
      object["query_pre_attn_scalar"] = (1 / (Double(queryScale) * Double(queryScale))).rounded()
    }
    writeLayers(&object)
    return object
  }

  private func writeLayers(_ object: inout [String: Any]) {
    for key in ["sliding_window_pattern", "max_window_layers", "use_sliding_window"] { object[key] = nil }
    // transformers knows the layers of its own models by names of its own.
    let names: [LayerType: String] = isPure ? [.attention: "full_attention", .slidingWindow: "sliding_attention"] : [:]
    object["layer_types"] = layerTypes.map { names[$0] ?? $0.rawValue }
    if isPure, family == .llama || family == .mistral { object["layer_types"] = nil }
    object["sliding_window"] = slidingWindow ?? NSNull()
    if family == .qwen2 || family == .qwen3 { object["use_sliding_window"] = slidingWindow != nil }
    if family == .llama, slidingWindow == nil { object["sliding_window"] = nil }
    object["supernet_mixer"] = supernetMixer?.rawValue
    var efficient = object["efficient_attention_config"] as? [String: Any] ?? [:]
    func merge(_ type: LayerType, _ settings: [String: Any]) {
      efficient[type.rawValue] = (efficient[type.rawValue] as? [String: Any] ?? [:]).merging(settings) { $1 }
    }
    if let slidingWindow, !isPure { merge(.slidingWindow, ["window_size": slidingWindow]) }
    if let jet {
      merge(
        .jet,
        [
          "num_heads": jet.heads, "head_dim": jet.keySize, "expand_v": Double(jet.valueSize) / Double(jet.keySize),
          "conv_size": jet.convolutionSize, "dconv_generator_reduction": jet.reduction,
          "norm_eps": Self.decimal(jet.epsilon),
        ])
    }
    for (type, shape) in linear { merge(type, shape.written(type)) }
    object["efficient_attention_config"] = efficient.isEmpty ? nil : efficient
  }

  /// The decimal number that a person would write for `value`.
  static func decimal(_ value: Float) -> Double { Double("\(value)") ?? Double(value) }
}

extension RotaryAngles.Scaling {
  fileprivate var written: [String: Any]? {
    switch self {
    case .none: nil
    case .linear(let factor): ["rope_type": "linear", "factor": factor]
    case .llama3(let factor, let low, let high, let context):
      [
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": Int(context),
      ]
    case .yarn(let factor, let fast, let slow, let context, let magnitude, let truncates):
      [
        "rope_type": "yarn", "factor": factor, "beta_fast": fast, "beta_slow": slow, "attention_factor": magnitude,
        "original_max_position_embeddings": Int(context), "truncate": truncates,
      ]
    }
  }
}

extension LinearConfiguration {
  fileprivate func written(_ type: LayerType) -> [String: Any] {
    var object: [String: Any] = ["num_heads": heads, "norm_eps": Architecture.decimal(epsilon)]
    switch type {
    case .mamba2: object.merge(["head_dim": valueSize, "state_size": keySize, "n_groups": groups]) { $1 }
    case .rwkv7:
      object.merge(
        [
          "head_dim": keySize, "gate_low_rank_dim": gateRank, "decay_low_rank_dim": decayRank,
          "a_low_rank_dim": rateRank,
        ]
      ) { $1 }
    default: object.merge(["head_dim": keySize, "expand_v": Double(valueSize) / Double(keySize)]) { $1 }
    }
    if type == .gatedLinearAttention { object["gate_low_rank_dim"] = gateRank }
    return object
  }
}
