import MPI
import Models
import NN
import Tensors
import TokenStreams

/// Memory and operations of a training step, found by running one on a backend that computes shapes only.
package struct StepEstimate {
  /// Matrix operations of the forward and backward pass of one micro-batch.
  package let operationsPerMicroBatch: Double
  /// Bytes of weights, gradients and optimizer state of one rank.
  package let stateBytes: Int
  /// The most bytes that one rank's tensors take at once.
  package let peakBytes: Int
  /// Parameters of the student, and those that train.
  package let parameters: Int
  package let trained: Int

  /// - Parameter ranks: That share the optimizer state and the micro-batches.
  package init(
    student: ModelConfiguration, teacher: ModelConfiguration?, phase: Phase, ranks: Int = 1
  ) {
    let backend = ShapeBackend()
    let teacherModel = teacher.map { configuration in
      let model = HybridLM(configuration)
      model.initialize(seed: 0, backend: backend)
      return model
    }
    let model = HybridLM(student)
    // A student shares what it inherits with its teacher; a shape that differs is reported elsewhere.
    if let teacherModel { try? model.inherit(from: teacherModel) }
    model.initialize(seed: 0, backend: backend)
    // Of a supernet the path that trains most: a step's is drawn, and a phase that aligns mixers trains linear ones alone.
    if student.supernetMixer != nil { model.path = SupernetPath() }
    let runner = StepRunner(
      student: model, teacher: teacherModel, phase: phase, world: .alone, backend: backend)
    parameters = model.store.count
    trained = runner.arena.count
    // The moments above are those of a single rank; several own a share each.
    let moments = runner.optimizer.moment1.count * 4 * 2
    let shared = moments - moments / ranks
    stateBytes = backend.liveBytes - shared
    var batch = SequenceBatch()
    let tokens = phase.microBatch * phase.context
    batch.tokens = [Int32](repeating: 0, count: tokens)
    batch.labels = batch.tokens
    batch.segments = (0..<phase.microBatch).map { $0 * phase.context..<($0 + 1) * phase.context }
    batch.sequenceCount = phase.microBatch
    let before = backend.operations
    backend.resetPeak()
    let microBatches = max(1, phase.microBatches / ranks)
    // Two passes show the peak with a partial sum alive; deeper levels of the tree are added below.
    _ = runner.accumulate(
      [SequenceBatch](repeating: batch, count: min(2, microBatches)),
      over: TokenCounts(labels: tokens, tokens: tokens))
    operationsPerMicroBatch = (backend.operations - before) / Double(min(2, microBatches))
    let levels = microBatches > 2 ? Int.bitWidth - 1 - (microBatches - 1).leadingZeroBitCount : 0
    let exchangeBytes = GradientExchange.bufferBytes(runner.arena, ranks: ranks)
    peakBytes = backend.peakBytes - shared + levels * runner.arena.gradients.count * 4 + exchangeBytes
  }
}
