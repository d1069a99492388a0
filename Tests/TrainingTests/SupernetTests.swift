import CPUBackend
import Fabric
import Foundation
import Models
import NN
import Tensors
import TestSupport
import Testing
import TokenStreams
import Training

/// Supernets whose mixers are aligned.
extension TrainingTests {
  private func model(_ settings: String, type: String, seed: UInt64, _ backend: CPUBackend, of teacher: HybridLM? = nil)
    throws -> HybridLM
  {
    let json = """
      {"model_type": "\(type)", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
       "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true \(settings)}
      """
    let model = HybridLM(try ModelConfiguration(json: Data(json.utf8), path: "config.json"))
    if let teacher { try model.inherit(from: teacher) }
    model.initialize(seed: seed, backend: backend)
    return model
  }

  func supernetOfATeacher(_ backend: CPUBackend) throws -> (student: HybridLM, teacher: HybridLM) {
    let teacher = try model("", type: "qwen2", seed: 1, backend)
    // Attention that says something.
    for parameter in teacher.store.parameters where parameter.name.contains("self_attn") && parameter.isMatrix {
      parameter.value = backend.tensor(
        randomFloats(parameter.count, seed: UInt64(parameter.count)).map { $0 * 0.3 }, parameter.shape)
    }
    let student = try model(
      """
      , "layer_types": ["attn", "attn", "attn", "attn"], "supernet_mixer": "gla",
      "efficient_attention_config": {"gla": {"num_heads": 2, "head_dim": 16}, "swa": {"window_size": 6}}
      """, type: "jet_nemotron", seed: 2, backend, of: teacher)
    return (student, teacher)
  }

  static func batch(_ seed: UInt64, sequences: Int = 2, length: Int = 24) -> SequenceBatch {
    var random = RandomStream(seed: seed, name: "tokens")
    var batch = SequenceBatch()
    batch.tokens = (0..<sequences * length).map { _ in Int32(random.next() % 64) }
    batch.labels = batch.tokens.map { _ in -1 }
    batch.segments = (0..<sequences).map { $0 * length..<($0 + 1) * length }
    batch.sequenceCount = sequences
    return batch
  }

  /// Of a supernet the layers that the drawn path makes linear are compared with the teacher's attention: their linear paths
  /// have gradients, nothing else has.
  @Test func supernetsAlignTheLayersThatAreDrawnLinear() throws {
    let backend = CPUBackend(threads: 1)
    let (student, teacher) = try supernetOfATeacher(backend)
    let arena = Arena(student.store, backend: backend) { $0.name.contains("attn") }
    let losses = MicroBatchLosses(
      student: student, teacher: teacher, weights: LossWeights(mixerOutput: 1), backend: backend)
    let data = Self.batch(1)
    for (path, aligned) in [
      (SupernetPath(full: [1], sliding: [3]), [0, 2]), (SupernetPath(), [0, 1, 2, 3]),
      (SupernetPath(full: [0, 1, 2, 3]), []),
    ] {
      student.path = path
      arena.beginBackward()
      var told: [ModelPart] = []
      let stepSums = StepSums(microBatches: 1, on: backend)
      losses(
        data, gradientsOver: TokenCounts(labels: 0, tokens: data.tokens.count), into: stepSums.losses(of: 0),
        hasGradients: { told.append($0) })
      arena.endBackward()
      let sums = stepSums.readBack().losses[0]
      #expect((sums.mixerOutput > 0) == !aligned.isEmpty && told == aligned.map { .layer($0) })
      for entry in arena.entries {
        let gradient = arena.gradients.rows(entry.range).toArray()
        let layer = Int(entry.parameter.name.split(separator: ".")[2])!
        let isAligned = aligned.contains(layer) && entry.parameter.name.contains("linear_attn")
        #expect(gradient.contains { $0 != 0 } == isAligned, "\(path): \(entry.parameter.name)")
      }
      // The mean over aligned layers of each layer's own error.
      let alone = aligned.map { layer in
        student.path = SupernetPath(full: (0..<4).filter { $0 != layer })
        return losses.sums(of: [data])[0].mixerOutput
      }
      let mean = alone.isEmpty ? 0 : alone.reduce(0, +) / Double(alone.count)
      #expect(abs(sums.mixerOutput - mean) <= 1e-6 * mean)
    }
  }

  /// Steps on drawn paths bring every linear path nearer to the teacher's attention, and leave the rest alone.
  @Test func alignedSupernetsLearn() throws {
    let backend = CPUBackend(threads: 1)
    let (student, teacher) = try supernetOfATeacher(backend)
    let read = try job(
      Self.good,
      set: [
        "train.losses.mixer_output=1", "train.freeze=[mlp, embeddings, norms, attention]", "train.context=24",
        "train.global_batch=4", "train.lr=1e-2", "train.schedule=constant",
      ])
    let sampling = PathSampling(fullLayers: 1, slidingLayers: 1, budgetShare: 0.75)
    func aligned() -> [Double] {
      let losses = MicroBatchLosses(
        student: student, teacher: teacher, weights: read.phases[0].losses, backend: backend)
      return (0..<4).map { layer in
        student.path = SupernetPath(full: (0..<4).filter { $0 != layer })
        return losses.sums(of: [Self.batch(99)])[0].mixerOutput
      }
    }
    let frozen = student.store.parameters.filter { !$0.name.contains("linear_attn") }.map { $0.value.toArray() }
    let before = aligned()
    let runner = StepRunner(
      student: student, teacher: teacher, phase: read.phases[0], world: .alone,
      fabric: MPIFabric(.alone, backend.companion()), backend: backend)
    var updates = PathUpdates(of: student, sampling, seed: 1)
    for step in 0..<800 {
      student.path = sampling.path(step: step, layers: 4, seed: 1)
      let data = (0..<2).map { Self.batch(UInt64(step * 2 + $0)) }
      // To zero in the end: where a constant rate stops is a matter of rounding (0.68 to 0.74 of layer 1 after 400 steps, by
      // the kernels that OpenBLAS chooses).
      let rate = 1e-2 * min(1, 2 * (1 - Double(step) / 800))
      _ = try runner.run(data, updates: updates.count(step), learningRate: rate)
    }
    try runner.waitForParameters()
    let after = aligned()
    print("aligned: \(zip(before, after).map { $1 / $0 })")
    #expect(zip(before, after).allSatisfy { $1 < 0.7 * $0 }, "\(before) \(after)")
    #expect(student.store.parameters.filter { !$0.name.contains("linear_attn") }.map { $0.value.toArray() } == frozen)
  }
}
