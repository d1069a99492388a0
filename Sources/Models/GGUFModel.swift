import Files
import Foundation
import GGUF
import NN
import Tensors

/// Models in GGUF files, whose metadata say what a `config.json` would, and whose arrays have names and orders of llama.cpp's.
struct GGUFModel {
  let file: GGUFFile
  let family: ModelFamily
  /// How the file names the keys of its architecture.
  private let prefix: String

  init(_ file: GGUFFile) throws {
    self.file = file
    let name = file.metadata["general.architecture"]?.text ?? "none"
    let families: [String: ModelFamily] = ["llama": .llama, "qwen2": .qwen2, "qwen3": .qwen3, "gemma3": .gemma3]
    guard let family = families[name] else {
      throw ModelError(
        path: file.path,
        reason: "general.architecture \(name) is not supported (\(families.keys.sorted().joined(separator: ", ")) are)")
    }
    self.family = family
    prefix = name + "."
  }

  private func fail(_ reason: String) -> ModelError { ModelError(path: file.path, reason: reason) }

  // MARK: - The configuration

  /// What its `config.json` would be.
  func configuration() throws -> ModelConfiguration {
    var base: [String: Any] = ["torch_dtype": "float32"]
    for (key, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
      base[key] = file.metadata["tokenizer.ggml.\(name)_token_id"]?.integer
    }
    base["max_position_embeddings"] = file.metadata[prefix + "context_length"]?.integer
    return try ModelConfiguration(architecture(), over: base, path: file.path)
  }

  private func number(_ key: String, _ fallback: Double? = nil) throws -> Double {
    guard let value = file.metadata[prefix + key]?.number ?? fallback, value.isFinite else {
      throw fail("\(prefix)\(key) is missing or no number")
    }
    return value
  }

  private func positive(_ key: String, _ fallback: Int? = nil) throws -> Int {
    let value = try number(key, fallback.map(Double.init))
    guard value >= 1, value <= 0x1p24, let whole = Int(exactly: value) else {
      throw fail("\(prefix)\(key) must be a whole number from 1 to 16777216, not \(value)")
    }
    return whole
  }

  private func above(_ least: Double, _ key: String, _ fallback: Double? = nil) throws -> Double {
    let value = try number(key, fallback)
    guard value > least, value <= 0x1p32 else { throw fail("\(prefix)\(key) must be above \(least), not \(value)") }
    return value
  }

  private func architecture() throws -> Architecture {
    let heads = try positive("attention.head_count")
    let hidden = try positive("embedding_length")
    let size = try positive("attention.key_length", hidden / max(1, heads))
    guard try positive("attention.value_length", size) == size, try positive("rope.dimension_count", size) == size
    else {
      throw fail("heads whose values, or rotated channels, are not as many as their keys are not supported")
    }
    let layers = try positive("block_count")
    guard layers <= 10_000 else { throw fail("\(prefix)block_count \(layers) is impossible") }
    guard let embeddings = file.entries["token_embd.weight"], embeddings.shape.count == 2 else {
      throw fail("has no matrix token_embd.weight")
    }
    var result = Architecture(
      family: family, vocabularySize: embeddings.shape[0], hiddenSize: hidden,
      intermediateSize: try positive("feed_forward_length"), attentionHeads: heads,
      keyValueHeads: try positive("attention.head_count_kv", heads), headSize: size,
      layerTypes: [LayerType](repeating: .attention, count: layers), rope: try rope(size: size),
      queryScale: 1 / Float(size).squareRoot(),
      normEpsilon: Float(try number("attention.layer_norm_rms_epsilon", 1e-6)),
      initializerRange: 0.02, tiesEmbeddings: file.entries["output.weight"] == nil)
    result.hasQueryKeyValueBias = file.entries["blk.0.attn_q.bias"] != nil
    result.hasOutputBias = file.entries["blk.0.attn_output.bias"] != nil
    result.hasQueryKeyNorms = family == .qwen3 || family == .gemma3
    if family == .gemma3 {
      let pattern = try positive("attention.sliding_window_pattern", 6)
      result.layerTypes = (0..<layers).map { ($0 + 1) % pattern == 0 ? .attention : .slidingWindow }
      result.slidingWindow = try positive("attention.sliding_window")
      result.slidingRope = RotaryAngles(theta: Float(try number("rope.freq_base_swa", 10_000)))
      (result.normsAddOne, result.hasPostNorms, result.activation) = (true, true, .gelu)
      result.embeddingScale = Float(hidden).squareRoot()
      // The 27B model alone has another scale, which the file does not say; llama.cpp knows it by its layers.
      if layers == 62 { result.queryScale = 1 / Float(hidden / heads).squareRoot() }
    }
    return result
  }

  private func rope(size: Int) throws -> RotaryAngles {
    let theta = Float(try number("rope.freq_base", 10_000))
    let kind = file.metadata[prefix + "rope.scaling.type"]?.text ?? "none"
    if let factors = file.entries["rope_freqs.weight"] {
      guard factors.count == size / 2 else {
        throw fail("rope_freqs.weight is not one number for each pair of channels")
      }
      return try stretched(theta: theta, by: file.floats("rope_freqs.weight"))
    }
    switch kind {
    case "none": return RotaryAngles(theta: theta)
    case "linear": return RotaryAngles(theta: theta, scaling: .linear(factor: try above(0, "rope.scaling.factor")))
    case "yarn": return RotaryAngles(theta: theta, scaling: try yarn())
    default: throw fail("\(prefix)rope.scaling.type \(kind) is not supported (none, linear and yarn are)")
    }
  }

  /// As llama.cpp reads it: queries and keys are multiplied by what the factor says, and by two factors of the file's own.
  private func yarn() throws -> RotaryAngles.Scaling {
    let factor = try above(0, "rope.scaling.factor")
    for (key, usual) in [("yarn_ext_factor", 1.0), ("yarn_log_multiplier", 0)] {
      let value = try number("rope.scaling." + key, usual)
      guard value == usual else { throw fail("\(prefix)rope.scaling.\(key) \(value) is not supported") }
    }
    let own = try above(0, "rope.scaling.attn_factor", 1) * above(0, "rope.scaling.yarn_attn_factor", 1)
    let magnitude = own * (factor <= 1 ? 1 : 0.1 * log(factor) + 1)
    return .yarn(
      factor: factor, fast: try above(0, "rope.scaling.yarn_beta_fast", 32),
      slow: try above(0, "rope.scaling.yarn_beta_slow", 1),
      originalContext: try above(
        0, "rope.scaling.original_context_length", Double(positive("context_length"))), magnitude: magnitude,
      truncates: true)
  }

  /// The angles that Llama 3 stretches by `divisors`: the file has the numbers, not the rule that made them, of which all
  /// releases share the bounds.
  private func stretched(theta: Float, by divisors: [Float]) throws -> RotaryAngles {
    let angles = RotaryAngles(
      theta: theta,
      scaling: .llama3(factor: Double(divisors.max() ?? 1), lowFactor: 1, highFactor: 4, originalContext: 8192))
    for (i, divisor) in divisors.enumerated() {
      let frequency = pow(Double(theta), -Double(i) / Double(divisors.count))
      guard abs(frequency / angles.stretched(frequency, i, of: divisors.count) / Double(divisor) - 1) < 1e-4 else {
        throw fail("rope_freqs.weight is not what Llama 3's scaling makes of 8192 positions; it is not supported")
      }
    }
    return angles
  }

  // MARK: - The arrays

  /// The file's name for the array that Hugging Face calls `name`; nil for one that it has no place for.
  func name(of name: String) -> String? {
    let whole = [
      "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
      "lm_head.weight": "output.weight",
    ]
    if let known = whole[name] { return known }
    let parts = name.split(separator: ".", maxSplits: 3).map(String.init)
    guard parts.count == 4, parts[0] == "model", parts[1] == "layers", let dot = parts[3].lastIndex(of: ".") else {
      return nil
    }
    let isGemma = family == .gemma3
    let inLayer = [
      "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
      "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
      "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": isGemma ? "post_attention_norm" : "ffn_norm",
      "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
      "mlp.gate_proj": "ffn_gate",
      "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    ]
    return inLayer[String(parts[3][..<dot])].map { "blk.\(parts[2]).\($0)\(parts[3][dot...])" }
  }

  /// Names of all arrays that a model reads.
  var arrayNames: [String] { file.entries.keys.filter { $0 != "rope_freqs.weight" } }

  func shape(of parameter: Parameter) -> [Int]? { name(of: parameter.name).flatMap { file.entries[$0]?.shape } }

  /// The values of `parameter` in Hugging Face's order, float32.
  func value(of parameter: Parameter, _ architecture: Architecture, on backend: any Backend) throws -> Tensor {
    guard let name = name(of: parameter.name) else { throw fail("has no \(parameter.name)") }
    let isQuery = parameter.name.contains(".q_proj.")
    if family == .llama, isQuery || parameter.name.contains(".k_proj.") {
      let heads = isQuery ? architecture.attentionHeads : architecture.keyValueHeads
      return backend.tensor(unpaired(try file.floats(name), heads: heads, size: architecture.headSize), parameter.shape)
    }
    let tensor = backend.empty(parameter.shape)
    let piece = 1 << 20
    for first in stride(from: 0, to: parameter.count, by: piece) {
      let range = first..<min(first + piece, parameter.count)
      var values = [Float](repeating: 0, count: range.count)
      try values.withUnsafeMutableBufferPointer { try file.read(name, range, into: $0.baseAddress!) }
      // Gemma's norms multiply by 1 + w, which the file holds.
      if architecture.normsAddOne, !parameter.isMatrix { for i in values.indices { values[i] -= 1 } }
      tensor.elements(range).upload(values)
    }
    return tensor
  }

  /// Rows of every head in halves: llama.cpp rotates neighbours, Hugging Face row i with row i + D/2.
  private func unpaired(_ values: [Float], heads: Int, size: Int) -> [Float] {
    let width = values.count / (heads * size)
    var out: [Float] = []
    out.reserveCapacity(values.count)
    for head in 0..<heads {
      for half in 0..<2 {
        for pair in 0..<size / 2 {
          let row = head * size + 2 * pair + half
          out += values[row * width..<(row + 1) * width]
        }
      }
    }
    return out
  }
}
