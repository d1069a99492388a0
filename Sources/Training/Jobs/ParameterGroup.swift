import Models
import NN

/// Sets of parameters that a phase may freeze.
package enum ParameterGroup: String, CaseIterable, Sendable {
  case mlp
  case embeddings
  case norms
  /// Mixers of attn and swa layers.
  case attention
  /// Mixers of the other layers.
  case mixers
}

extension ParameterGroup {
  /// The group that a parameter belongs to, by its name.
  package static func of(_ parameter: Parameter, in model: HybridLM) -> ParameterGroup {
    let parts = parameter.name.split(separator: ".")
    guard parts.count > 3, parts[1] == "layers", let layer = Int(parts[2]) else {
      return parts.contains("norm") ? .norms : .embeddings
    }
    switch parts[3] {
    case "mlp": return .mlp
    case "linear_attn": return .mixers
    case "self_attn": return [.attention, .slidingWindow].contains(model.layers[layer].type) ? .attention : .mixers
    default: return .norms
    }
  }
}
