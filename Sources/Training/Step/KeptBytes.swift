import Models
import NN
import Ops
import Tensors

/// What the forward pass of a phase's student keeps for its backward pass, found on a backend that computes shapes only.
package struct KeptBytes {
  /// One kind of part of the model, and the bytes a token that all of that kind keep together.
  package struct Part {
    package let name: String
    package var bytes: Double
  }

  package private(set) var parts: [Part] = []
  package var total: Double { parts.reduce(0) { $0 + $1.bytes } }

  /// Counts one micro-batch of `phase`, in which gradients cross layers.
  package init(_ phase: Phase, student configuration: ModelConfiguration, on device: ShapeBackend.Counted = .cpu) {
    let backend = ShapeBackend(device)
    backend.activationType = phase.compute == .bfloat16 ? .bfloat16 : .float32
    let model = HybridLM(configuration)
    model.allocate(on: backend)
    if configuration.supernetMixer != nil { model.path = SupernetPath() }
    let arena = Arena(gathering: model.store, precision: phase.compute, backend: backend) {
      phase.trains($0, of: model)
    }
    arena.begin()
    let tokens = phase.microBatch * phase.context
    let batch = Batch(
      tokens: backend.tensor([Int32](repeating: 0, count: tokens)),
      segments: Segments(count: phase.microBatch, length: phase.context))
    var last = backend.liveBytes
    func count(_ name: String) {
      let bytes = Double(backend.liveBytes - last) / Double(tokens)
      last = backend.liveBytes
      if let place = parts.firstIndex(where: { $0.name == name }) {
        parts[place].bytes += bytes
      } else {
        parts.append(Part(name: name, bytes: bytes))
      }
    }
    let (_, tape) = backend.recording {
      var x = model.embed(batch)
      count("embeddings")
      for index in model.layers.indices {
        let mixer = "mixers " + model.layers[index].type.rawValue
        x = model.run(layer: index, x, batch, recompute: phase.recompute) { count(mixer) }
        count(phase.recompute == LayerRecomputation(.layer) ? "layers" : "mlp")
      }
      let hidden = model.finish(x)
      count("head")
      return hidden
    }
    withExtendedLifetime((tape, arena)) {}
  }
}
