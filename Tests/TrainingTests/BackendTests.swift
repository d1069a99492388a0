import Models
import NN
import Tensors
import TestSupport
import Testing
import TokenStreams
import Training

/// The losses of a micro-batch on a backend whose tensors nobody else can address and whose copies are late.
@Suite struct BackendTests {
  /// Losses and gradients of both kinds of distillation on CPUBackend, and on the reference in float32, beside the
  /// reference; with matrices in float32 and in bfloat16.
  @Test(
    arguments: [
      (TestBackend.cpu(threads: 2), false), (.cpu(threads: 2), true), (.singleReference, false),
      (.singleReference, true),
    ],
    ComputePrecision.allCases)
  func distillationMatchesTheReference(way: (TestBackend, Bool), precision: ComputePrecision) throws {
    let (backend, checkpointing) = way
    func run(_ kind: TestBackend) throws -> [(name: String, values: [Float])] {
      let backend = kind.make()
      let teacher = try HybridLM.load(goldenFolder + "/qwen2", backend: backend)
      let student = try HybridLM.load(goldenFolder + "/jet", backend: backend)
      let losses = MicroBatchLosses(
        student: student, teacher: teacher,
        weights: LossWeights(mixerOutput: 1, hidden: 0.5, logits: 1, crossEntropy: 0.25), checkpointing: checkpointing,
        backend: backend)
      let arena = Arena(gathering: student.store, precision: precision, backend: backend) { _ in true }
      arena.begin()
      var batch = SequenceBatch()
      batch.tokens = (0..<70).map { Int32($0 * 37 % 320) }
      batch.labels = (0..<70).map { $0 % 9 == 4 ? -100 : Int32($0 * 53 % 320) }
      batch.segments = [0..<1, 1..<23, 23..<70]
      batch.sequenceCount = 3
      arena.beginBackward()
      let sums = losses(batch, gradientsOver: TokenCounts(labels: batch.countedLabels, tokens: 70))
      arena.endBackward()
      return [("losses", sums.values.map(Float.init))]
        + arena.entries.map { ($0.parameter.name, arena.gradients.rows($0.range).toArray()) }
    }
    for (found, expected) in zip(try run(backend), try run(.reference)) {
      let error = relativeError(found.values, expected.values)
      #expect(error < (found.name == "losses" ? 2e-5 : 1e-4), "\(found.name): \(error)")
    }
  }
}
