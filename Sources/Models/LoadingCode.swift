import Foundation
import Safetensors

/// The programs that can load a model folder.
package enum LoadingCode: Sendable, Equatable {
  /// transformers by itself.
  case transformers
  /// transformers with the modelling files of NVlabs' release beside the weights.
  case jetNemotron
  /// None but this one, since the model has what no other code knows.
  case jettrain(has: String)

  /// For a person: what loads the model, and what it takes.
  package var description: String {
    switch self {
    case .transformers: "loads in transformers (AutoModelForCausalLM) and in jettrain"
    case .jetNemotron:
      "loads in transformers with NVlabs' configuration_jet_nemotron.py and modeling_jet_nemotron.py beside it "
        + "(trust_remote_code=True), and in jettrain"
    case .jettrain(let parts):
      "loads in jettrain alone: it has \(parts), which neither transformers nor NVlabs' modelling code knows, so "
        + "config.json names no architecture and no auto_map"
    }
  }
}

extension ModelConfiguration {
  /// The programs that can load this model as ``ModelWriter`` writes it.
  package var loadingCode: LoadingCode {
    if let supernetMixer { return .jettrain(has: "a supernet's second paths (\(supernetMixer.rawValue))") }
    let known: [LayerType] = modelType == "qwen2" ? [.attention, .slidingWindow] : [.attention, .slidingWindow, .jet]
    let others = LayerType.allCases.filter { layerTypes.contains($0) && !known.contains($0) }.map(\.rawValue)
    guard others.isEmpty else {
      return .jettrain(
        has: "layers of type \(others.joined(separator: ", "))" + (modelType == "qwen2" ? " in a qwen2" : ""))
    }
    return modelType == "qwen2" ? .transformers : .jetNemotron
  }

  /// The object of a `config.json` for weights of this type: the keys of the source, and what transformers needs to find
  /// the code of the model, where there is any.
  func exported(as type: SafetensorsType) -> [String: Any] {
    var object = rawObject
    object["dtype"] = nil
    object["torch_dtype"] = type == .bfloat16 ? "bfloat16" : "float32"
    object["architectures"] = nil
    object["auto_map"] = nil
    switch loadingCode {
    case .transformers:
      object["architectures"] = ["Qwen2ForCausalLM"]
      // transformers knows the layers by names of its own.
      if object["layer_types"] != nil {
        object["layer_types"] = layerTypes.map { $0 == .attention ? "full_attention" : "sliding_attention" }
        if layerTypes.contains(.slidingWindow) {
          object["sliding_window"] = slidingWindow
          object["use_sliding_window"] = true
        }
      }
    case .jetNemotron:
      object["architectures"] = ["JetNemotronForCausalLM"]
      object["auto_map"] = [
        "AutoConfig": "configuration_jet_nemotron.JetNemotronConfig",
        "AutoModelForCausalLM": "modeling_jet_nemotron.JetNemotronForCausalLM",
      ]
    case .jettrain: break
    }
    return object
  }
}
