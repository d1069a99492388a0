import NN
import Ops
import Tensors

/// One layer: x + mixer(norm x), then x + mlp(norm x).
package struct DecoderLayer {
  package let type: LayerType
  package let mixer: any TokenMixer
  /// A supernet's other path, under `linear_attn`.
  package let linearPath: (any TokenMixer)?
  private let inputNorm: RMSNorm
  private let postNorm: RMSNorm
  private let mlp: SwiGLU

  init(_ scope: ParameterScope, _ type: LayerType, _ configuration: ModelConfiguration) {
    self.type = type
    let (hidden, epsilon) = (configuration.hiddenSize, configuration.normEpsilon)
    inputNorm = RMSNorm(scope.scope("input_layernorm"), hidden, epsilon: epsilon)
    mixer = makeMixer(type, configuration, scope.scope("self_attn"))
    linearPath = configuration.supernetMixer.map { makeMixer($0, configuration, scope.scope("linear_attn")) }
    postNorm = RMSNorm(scope.scope("post_attention_layernorm"), hidden, epsilon: epsilon)
    mlp = SwiGLU(scope.scope("mlp"), hidden: hidden, intermediate: configuration.intermediateSize)
  }

  /// What the mixer reads.
  package func mixerInput(_ x: Tensor) -> Tensor { inputNorm(x) }

  /// The layer's output, given its input and what the mixer made of it.
  package func complete(_ x: Tensor, mixed: Tensor) -> Tensor {
    let x = add(x, mixed)
    return add(x, mlp(postNorm(x)))
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?, isLinear: Bool = false) -> Tensor {
    precondition(!isLinear || cache == nil, "a supernet has no caches: extract the path first")
    let mixer = isLinear ? linearPath ?? mixer : mixer
    return complete(x, mixed: mixer(mixerInput(x), batch, cache: cache))
  }
}

/// A decoder-only language model whose layers mix tokens by attention, sliding-window attention or JetBlocks.
package final class HybridLM {
  package let configuration: ModelConfiguration
  package let store = ParameterStore()
  package let layers: [DecoderLayer]
  /// In a supernet: the layers that run their attention, the others their linear path; nil for all.
  package var fullLayers: Set<Int>?
  private let embeddings: Parameter
  private let norm: RMSNorm
  private let headParameter: Parameter?

  /// Declares the parameters; they have no values yet.
  package init(_ configuration: ModelConfiguration) {
    self.configuration = configuration
    let root = ParameterScope(store)
    let scope = root.scope("model")
    let table = [configuration.vocabularySize, configuration.hiddenSize]
    embeddings = scope.scope("embed_tokens").parameter("weight", table, .normal(0.02))
    layers = configuration.layerTypes.enumerated().map { index, type in
      DecoderLayer(scope.scope("layers").scope(String(index)), type, configuration)
    }
    norm = RMSNorm(scope.scope("norm"), configuration.hiddenSize, epsilon: configuration.normEpsilon)
    headParameter =
      configuration.tiesEmbeddings ? nil : root.scope("lm_head").parameter("weight", table, .normal(0.02))
  }

  /// The output matrix `[V, hidden]`: the embeddings, where they are tied.
  package var head: Tensor { (headParameter ?? embeddings).value }

  /// `[N, hidden]`, the input of the first layer.
  package func embed(_ batch: Batch) -> Tensor { embedding(embeddings.value, batch.tokens) }

  /// `[N, hidden]`, the last hidden states after the final norm.
  package func finish(_ x: Tensor) -> Tensor { norm(x) }

  /// The last hidden states of `batch`, `[N, hidden]`.
  ///
  /// - Parameters:
  ///   - caches: one a layer, for sequences that continue
  ///   - checkpointing: keep only the input of each layer for backward
  package func callAsFunction(
    _ batch: Batch, caches: [any MixerCache]? = nil, checkpointing: Bool = false
  ) -> Tensor {
    self(batch, caches: caches, checkpointing: checkpointing) { _, _ in }
  }

  /// The last hidden states of `batch`, `[N, hidden]`; `observe` sees the output of every layer, with its index, on the
  /// way.
  package func callAsFunction(
    _ batch: Batch, caches: [any MixerCache]? = nil, checkpointing: Bool = false,
    observe: (Int, Tensor) throws -> Void
  ) rethrows -> Tensor {
    var x = embed(batch)
    for (index, layer) in layers.enumerated() {
      let isLinear = fullLayers.map { !$0.contains(index) } ?? false
      if checkpointing {
        x = checkpointed(x) { layer($0, batch, cache: nil, isLinear: isLinear) }
      } else {
        x = layer(x, batch, cache: caches?[index], isLinear: isLinear)
      }
      try observe(index, x)
    }
    return finish(x)
  }

  /// `[N, V]`, for callers that need them whole.
  package func logits(_ hidden: Tensor) -> Tensor { linear(hidden, head) }

  /// Bytes of the caches of one sequence at this context, float32.
  package func cacheBytes(context: Int) -> Int {
    layers.reduce(0) { $0 + 4 * $1.mixer.cacheElements(context: context) }
  }

  /// Empty caches, one a layer, for `sequences` sequences with room for `capacity` tokens each.
  package func makeCaches(_ backend: any Backend, sequences: Int = 1, capacity: Int = 0) -> [any MixerCache] {
    layers.map { $0.mixer.makeCache(backend, sequences: sequences, capacity: capacity) }
  }
}
