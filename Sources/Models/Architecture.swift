import Tensors

/// The families of models whose `config.json` is read, by their `model_type`.
package enum ModelFamily: String, Sendable, CaseIterable {
  case llama, mistral, qwen2, qwen3
  case gemma3 = "gemma3_text"
  /// NVlabs' hybrids of Qwen2.5.
  case jetNemotron = "jet_nemotron"

  /// Whether its attention layers add biases to queries, keys and values whatever the file says.
  var alwaysHasBias: Bool { self == .qwen2 || self == .jetNemotron }
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
  package var convolutionSize = 4
  /// Channels of the kernel generator: value channels ÷ this.
  package var reduction = 8
  package var epsilon: Float = 1e-5

  package init(heads: Int, keySize: Int, valueSize: Int) {
    (self.heads, self.keySize, self.valueSize) = (heads, keySize, valueSize)
  }
}

/// The nonlinearity of the gated feed-forward block.
package enum Activation: String, Sendable {
  case silu
  /// GELU by its approximation with tanh.
  case gelu = "gelu_pytorch_tanh"
}

/// Everything that decides what a model computes and which parameters it has.
package struct Architecture: Sendable, Equatable {
  package var family: ModelFamily
  package var vocabularySize: Int
  package var hiddenSize: Int
  package var intermediateSize: Int
  package var attentionHeads: Int
  package var keyValueHeads: Int
  package var headSize: Int
  package var layerTypes: [LayerType]
  package var slidingWindow: Int?
  /// Biases of queries, keys and values, and of the output of attention.
  package var hasQueryKeyValueBias = false
  package var hasOutputBias = false
  /// An RMSNorm over the channels of every head of queries and keys, before they are rotated.
  package var hasQueryKeyNorms = false
  /// Norms multiply by 1 + w instead of w.
  package var normsAddOne = false
  /// Norms also behind mixer and MLP, before their outputs are added.
  package var hasPostNorms = false
  package var activation = Activation.silu
  package var rope: RotaryAngles
  /// The angles of layers with a sliding window, where they are others.
  package var slidingRope: RotaryAngles?
  /// Scores of attention are multiplied by it.
  package var queryScale: Float
  /// Embeddings are multiplied by it.
  package var embeddingScale: Float = 1
  package var jet: JetConfiguration?
  /// Shapes of the other linear mixers that the file describes.
  package var linear: [LayerType: LinearConfiguration] = [:]
  /// In a once-for-all supernet: the linear mixer that every layer holds beside its attention.
  package var supernetMixer: LayerType?
  package var normEpsilon: Float
  /// Standard deviation of matrices that begin at random.
  package var initializerRange: Float
  package var tiesEmbeddings: Bool

  package var layerCount: Int { layerTypes.count }

  /// The angles of attention of this type.
  package func rope(of type: LayerType) -> RotaryAngles { type == .slidingWindow ? slidingRope ?? rope : rope }

  /// Layer types as the family's own code has them: what transformers can load by itself.
  package var isPure: Bool {
    guard supernetMixer == nil else { return false }
    switch family {
    case .llama: return layerTypes.allSatisfy { $0 == .attention }
    case .mistral: return Set(layerTypes).isSubset(of: [.attention]) || Set(layerTypes) == [.slidingWindow]
    case .qwen2, .qwen3, .gemma3: return layerTypes.allSatisfy(\.isAttention)
    case .jetNemotron: return false
    }
  }
}
