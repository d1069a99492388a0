import Fabric
import Models
import NN
import Tensors
import TestSupport
import Testing
import TokenStreams
import Training

/// The losses of micro-batches, and steps, on a backend whose tensors nobody else can address and whose copies are late.
@Suite struct BackendTests {
  /// Three documents.
  private static func batch(tokens: Int) -> SequenceBatch {
    var batch = SequenceBatch()
    batch.tokens = (0..<tokens).map { Int32($0 * 37 % 320) }
    batch.labels = (0..<tokens).map { $0 % 9 == 4 ? -100 : Int32($0 * 53 % 320) }
    batch.segments = [0..<1, 1..<tokens / 3, tokens / 3..<tokens]
    batch.sequenceCount = 3
    return batch
  }

  /// Losses of all kinds, of several micro-batches and layers, and the squares of the gradient come down together; so do the
  /// losses of a validation.
  @Test func aStepReadsBackOnce() throws {
    let backend = ReferenceBackend()
    let teacher = try HybridLM.load(goldenFolder + "/qwen2", backend: backend)
    let student = try HybridLM.load(goldenFolder + "/jet", backend: backend)
    var phase = try Job(.distill, path: "\(repository)/Jobs/distill.yaml", overrides: [], ranks: 1).phases[0]
    phase.losses = LossWeights(mixerOutput: 1, hidden: 0.5, logits: 1, crossEntropy: 0.25)
    phase.frozen = []
    let batches = [10, 7, 12].map { Self.batch(tokens: $0) }
    let runner = StepRunner(
      student: student, teacher: teacher, phase: phase, world: .alone,
      fabric: MPIFabric(.alone, backend.companion()), backend: backend)
    let losses = MicroBatchLosses(
      student: student, teacher: teacher, weights: phase.losses, backend: backend)
    var before = backend.downloads
    let alone = losses.sums(of: batches)
    #expect(backend.downloads == before + 1)

    before = backend.downloads
    let result = try #require(try runner.run(batches, updates: [1], learningRate: 1e-3))
    #expect(backend.downloads == before + 1)

    // What came down is what the micro-batches say alone, and the norm of what lies in the arena.
    let total = alone.reduce([0, 0, 0, 0]) { zip($0, $1.values).map(+) }
    let labels = batches.reduce(0) { $0 + $1.countedLabels }
    #expect(result.losses == LossSums(values: total).means(TokenCounts(labels: labels, tokens: 29)))
    #expect(total.allSatisfy { $0 > 0 })
    let squares = backend.doubles(runner.arena.gradients).reduce(0) { $0 + $1 * $1 }
    #expect(abs(result.gradientNorm - squares.squareRoot()) < 1e-12 * result.gradientNorm && squares > 0)
  }

  /// Losses and gradients of both kinds of distillation on CPUBackend, and on the reference in float32, beside the
  /// reference; with matrices in float32 and in bfloat16.
  @Test(
    arguments: [
      (TestBackend.cpu(threads: 2), Recomputation.none), (.cpu(threads: 2), .cheap), (.cpu(threads: 2), .layer),
      (.singleReference, .none), (.singleReference, .cheap),
    ],
    ComputePrecision.allCases)
  func distillationMatchesTheReference(way: (TestBackend, Recomputation), precision: ComputePrecision) throws {
    let (backend, recomputation) = way
    func run(_ kind: TestBackend) throws -> [(name: String, values: [Float])] {
      let backend = kind.make()
      let teacher = try HybridLM.load(goldenFolder + "/qwen2", backend: backend)
      let student = try HybridLM.load(goldenFolder + "/jet", backend: backend)
      let losses = MicroBatchLosses(
        student: student, teacher: teacher,
        weights: LossWeights(mixerOutput: 1, hidden: 0.5, logits: 1, crossEntropy: 0.25),
        recompute: LayerRecomputation(recomputation), backend: backend)
      let arena = Arena(gathering: student.store, precision: precision, backend: backend) { _ in true }
      arena.begin()
      let batch = Self.batch(tokens: 70)
      arena.beginBackward()
      let sums = StepSums(microBatches: 1, on: backend)
      losses(
        batch, gradientsOver: TokenCounts(labels: batch.countedLabels, tokens: 70), into: sums.losses(of: 0))
      arena.endBackward()
      return [("losses", sums.readBack().losses[0].values.map(Float.init))]
        + arena.entries.map { ($0.parameter.name, arena.gradients.rows($0.range).toArray()) }
    }
    for (found, expected) in zip(try run(backend), try run(.reference)) {
      let error = relativeError(found.values, expected.values)
      #expect(error < (found.name == "losses" ? 2e-5 : 1e-4), "\(found.name): \(error)")
    }
  }
}
