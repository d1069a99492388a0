import Foundation
import Safetensors

/// The programs that can load a model folder.
package enum LoadingCode: Sendable, Equatable {
  /// transformers by itself.
  case transformers
  /// transformers with the modelling files of NVlabs' release beside the weights.
  case jetNemotron
  /// transformers with the modelling files that are written beside the weights.
  case hybrid
  /// None but this one, since the model has what no other code knows.
  case jettrain(has: String)

  /// For a person: what loads the model, and what it takes.
  package var description: String {
    switch self {
    case .transformers: "loads in transformers (AutoModelForCausalLM) and in jettrain"
    case .jetNemotron:
      "loads in transformers with NVlabs' configuration_jet_nemotron.py and modeling_jet_nemotron.py beside it "
        + "(trust_remote_code=True), and in jettrain"
    case .hybrid:
      "loads in transformers with the modeling_jettrain_hybrid.py that lies beside it (trust_remote_code=True), and in "
        + "jettrain"
    case .jettrain(let parts):
      "loads in jettrain alone: it has \(parts), which no code of transformers knows, so config.json names no "
        + "architecture and no auto_map"
    }
  }
}

extension ModelFamily {
  /// The class of transformers that computes it.
  fileprivate var className: String {
    switch self {
    case .llama: "LlamaForCausalLM"
    case .mistral: "MistralForCausalLM"
    case .qwen2: "Qwen2ForCausalLM"
    case .qwen3: "Qwen3ForCausalLM"
    case .gemma3: "Gemma3ForCausalLM"
    case .jetNemotron: "JetNemotronForCausalLM"
    }
  }
}

extension ModelConfiguration {
  /// The programs that can load this model as ``ModelWriter`` writes it.
  package var loadingCode: LoadingCode {
    if let mixer = self.supernetMixer { return .jettrain(has: "a supernet's second paths (\(mixer.rawValue))") }
    if architecture.isPure { return .transformers }
    let known: [LayerType] = [.attention, .slidingWindow, .jet]
    return self.family == .jetNemotron && self.layerTypes.allSatisfy(known.contains) ? .jetNemotron : .hybrid
  }

  /// The object of a `config.json` for weights of this type: the keys of the source, and what transformers needs to find
  /// the code of the model, where there is any.
  func exported(as type: SafetensorsType) -> [String: Any] {
    var object = rawObject
    let code = loadingCode
    if code == .hybrid { object["model_type"] = Architecture.hybridType }
    // transformers knows the layers of its own models by names of its own, and hybrids say everything.
    let names = object["layer_types"] as? [String] ?? []
    if code == .hybrid || (code == .transformers && names.contains { LayerType(rawValue: $0) != nil }) {
      object = architecture.written(over: object)
    }
    object["dtype"] = nil
    object["torch_dtype"] = type == .bfloat16 ? "bfloat16" : "float32"
    object["architectures"] = nil
    object["auto_map"] = nil
    switch code {
    case .transformers: object["architectures"] = [self.family.className]
    case .jetNemotron:
      object["architectures"] = [self.family.className]
      object["auto_map"] = [
        "AutoConfig": "configuration_jet_nemotron.JetNemotronConfig",
        "AutoModelForCausalLM": "modeling_jet_nemotron.JetNemotronForCausalLM",
      ]
    case .hybrid:
      object["architectures"] = ["JettrainHybridForCausalLM"]
      object["auto_map"] = [
        "AutoConfig": "modeling_jettrain_hybrid.JettrainHybridConfig",
        "AutoModelForCausalLM": "modeling_jettrain_hybrid.JettrainHybridForCausalLM",
      ]
    case .jettrain: break
    }
    return object
  }
}
