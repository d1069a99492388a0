import NN
import Ops
import Tensors

/// One layer: x + mixer(norm x), then x + mlp(norm x); of some families with norms behind mixer and MLP too.
package struct DecoderLayer {
  package let type: LayerType
  package let mixer: any TokenMixer
  /// In a supernet: what may run in place of the mixer.
  package let alternatives: SupernetMixers?
  private let inputNorm: RMSNorm
  private let mixedNorm: RMSNorm?
  private let feedForwardNorm: RMSNorm
  private let outputNorm: RMSNorm?
  private let feedForward: GatedFeedForward

  init(_ scope: ParameterScope, _ type: LayerType, _ configuration: Architecture) {
    self.type = type
    let hidden = configuration.hiddenSize
    func norm(_ name: String) -> RMSNorm {
      RMSNorm(
        scope.scope(name, group: .norms), hidden, epsilon: configuration.normEpsilon, addsOne: configuration.normsAddOne
      )
    }
    inputNorm = norm("input_layernorm")
    let mixer = makeMixer(
      type, configuration, scope.scope("self_attn", group: type.isAttention ? .attention : .mixers))
    self.mixer = mixer
    alternatives = SupernetMixers(beside: mixer, scope, configuration)
    // Hugging Face's name for the norm behind the mixer, where there is one, and else for that before the MLP.
    let afterMixer = norm("post_attention_layernorm")
    mixedNorm = configuration.hasPostNorms ? afterMixer : nil
    feedForwardNorm = configuration.hasPostNorms ? norm("pre_feedforward_layernorm") : afterMixer
    outputNorm = configuration.hasPostNorms ? norm("post_feedforward_layernorm") : nil
    feedForward = GatedFeedForward(
      scope.scope("mlp", group: .mlp), hidden: hidden, intermediate: configuration.intermediateSize,
      activation: configuration.activation == .silu ? .silu : .gelu)
  }

  /// What the mixer reads.
  package func mixerInput(_ x: Tensor) -> Tensor { inputNorm(x) }

  /// The layer's output, given its input and what the mixer made of it.
  package func complete(_ x: Tensor, mixed: Tensor) -> Tensor { fedForward(add(x, mixedNorm?(mixed) ?? mixed)) }

  /// The residual stream behind the mixer: x and what it makes of x.
  func mixed(_ x: Tensor, by mixer: any TokenMixer, _ batch: Batch, cache: (any MixerCache)?) -> Tensor {
    guard let mixedNorm else { return mixer(mixerInput(x), batch, cache: cache, onto: x) }
    return add(x, mixedNorm(mixer(mixerInput(x), batch, cache: cache)))
  }

  /// The residual stream behind the MLP.
  func fedForward(_ x: Tensor) -> Tensor {
    guard let outputNorm else { return feedForward(feedForwardNorm(x), onto: x) }
    return add(x, outputNorm(feedForward(feedForwardNorm(x))))
  }
}

/// A decoder-only language model whose layers mix tokens by attention, sliding-window attention or JetBlocks.
package final class HybridLM {
  package let configuration: ModelConfiguration
  package let store = ParameterStore()
  package let layers: [DecoderLayer]
  /// In a supernet: what the layers run; nil for their full attention.
  package var path: SupernetPath?
  private let embeddings: Parameter
  private let norm: RMSNorm
  private let headParameter: Parameter?

  /// Declares the parameters; they have no values yet.
  package init(_ configuration: ModelConfiguration) {
    self.configuration = configuration
    let root = ParameterScope(store, deviation: configuration.initializerRange)
    let scope = root.scope("model")
    let table = [configuration.vocabularySize, configuration.hiddenSize]
    embeddings = scope.scope("embed_tokens", part: .embeddings).parameter(
      "weight", table, .normal(root.deviation), kind: .matrix)
    layers = configuration.layerTypes.enumerated().map { index, type in
      DecoderLayer(
        scope.scope("layers").scope(String(index), part: .layer(index)), type, configuration.architecture)
    }
    norm = RMSNorm(
      scope.scope("norm", group: .norms), configuration.hiddenSize, epsilon: configuration.normEpsilon,
      addsOne: configuration.normsAddOne)
    headParameter =
      configuration.tiesEmbeddings
      ? nil : root.scope("lm_head").parameter("weight", table, .normal(root.deviation), kind: .matrix)
  }

  /// The mixer that layer `index` runs.
  package func activeMixer(_ index: Int) -> any TokenMixer {
    layers[index].mixer(as: path?.role(of: index) ?? .full)
  }

  /// The output matrix `[V, hidden]`: the embeddings, where they are tied.
  package var head: Tensor { (headParameter ?? embeddings).value }

  /// `[N, hidden]`, the input of the first layer.
  package func embed(_ batch: Batch) -> Tensor {
    scaled(embedding(embeddings.value, batch.tokens), by: configuration.embeddingScale)
  }

  /// The output of layer `index` for the input x, `[N, hidden]` each.
  ///
  /// - Parameter afterMixer: is called between the layer's halves, unless they are computed again together
  package func run(
    layer index: Int, _ x: Tensor, _ batch: Batch, cache: (any MixerCache)? = nil,
    recompute: LayerRecomputation = .none,
    afterMixer: () -> Void = {}
  ) -> Tensor {
    let (layer, mixer) = (layers[index], activeMixer(index))
    func mixed(_ x: Tensor) -> Tensor { layer.mixed(x, by: mixer, batch, cache: cache) }
    if recompute == LayerRecomputation(.layer) { return checkpointed(x) { layer.fedForward(mixed($0)) } }
    let x = recomputing(recompute.mixer, x, mixed)
    afterMixer()
    return recomputing(recompute.mlp, x, layer.fedForward)
  }

  /// `[N, hidden]`, the last hidden states after the final norm.
  package func finish(_ x: Tensor) -> Tensor { norm(x) }

  /// The last hidden states of `batch`, `[N, hidden]`.
  ///
  /// - Parameters:
  ///   - caches: one a layer, for sequences that continue
  ///   - recompute: what the backward pass computes again
  package func callAsFunction(
    _ batch: Batch, caches: [any MixerCache]? = nil, recompute: LayerRecomputation = .none
  ) -> Tensor {
    self(batch, caches: caches, recompute: recompute) { _, _ in }
  }

  /// The last hidden states of `batch`, `[N, hidden]`.
  ///
  /// - Parameters:
  ///   - willRun: is told of every part before its parameters are read
  ///   - observe: sees the output of every layer, with its index, on the way
  package func callAsFunction(
    _ batch: Batch, caches: [any MixerCache]? = nil, recompute: LayerRecomputation = .none,
    willRun: (ModelPart) -> Void = { _ in },
    observe: (Int, Tensor) throws -> Void
  ) rethrows -> Tensor {
    willRun(.embeddings)
    var x = embed(batch)
    for index in layers.indices {
      willRun(.layer(index))
      x = run(layer: index, x, batch, cache: caches?[index], recompute: recompute)
      try observe(index, x)
    }
    willRun(.head)
    return finish(x)
  }

  /// `[N, V]`, for callers that need them whole.
  package func logits(_ hidden: Tensor) -> Tensor { linear(hidden, head) }

  /// What the caches of one sequence hold at this context.
  package func cacheElements(context: Int) -> CacheElements {
    layers.indices.reduce(into: CacheElements()) { sum, index in
      let more = activeMixer(index).cacheElements(context: context)
      sum.activations += more.activations
      sum.states += more.states
    }
  }

  /// Bytes of the caches of one sequence at this context, float32.
  package func cacheBytes(context: Int) -> Int {
    cacheElements(context: context).bytes(activations: .float32, states: .float32)
  }

  /// Empty caches, one a layer.
  package func makeCaches(_ backend: any Backend, _ room: CacheRoom) -> [any MixerCache] {
    layers.indices.map { activeMixer($0).makeCache(backend, room) }
  }
}
