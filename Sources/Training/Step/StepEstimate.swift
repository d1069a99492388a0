import Checkpointing
import Fabric
import MPI
import Models
import NN
import Tensors
import TokenStreams

/// Memory and operations of one phase of a job on one rank, found by running its steps on a backend that computes shapes
/// only.
package struct StepEstimate {
  /// Matrix operations of the forward and backward pass of one micro-batch.
  package let operationsPerMicroBatch: Double
  /// Bytes of weights, gradients and optimizer state.
  package let stateBytes: Int
  /// The most bytes that tensors take at once: in a step, or while the phase takes the place of the one before. A resume and
  /// a return to a checkpoint take no more, since what is read goes where it belongs piece by piece.
  package let tensorBytes: Int
  /// Bytes of host memory of the copy that a save makes, kept from the first one on, and of what waits for the disk.
  package let saveBytes: Int
  /// Parameters of the student, and those that train.
  package let parameters: Int
  package let trained: Int

  /// The most bytes that one rank takes at once where tensors lie in the host's memory, besides what the process holds
  /// anyway.
  package var peakBytes: Int { tensorBytes + saveBytes }

  /// Estimates the phases of a job as they follow each other.
  ///
  /// - Parameter ranks: that share the optimizer state and the micro-batches; the estimate is of the coordinator, which
  ///   holds the most
  /// - Parameter device: whose kernels run
  package static func phases(
    _ phases: [Phase], student: ModelConfiguration, teacher: ModelConfiguration?, ranks: Int,
    on device: ShapeBackend.Counted = .cpu
  ) -> [StepEstimate] {
    let backend = ShapeBackend(device)
    let teacherModel = teacher.map { configuration in
      let model = HybridLM(configuration)
      model.allocate(on: backend)
      return model
    }
    let model = HybridLM(student)
    // A student shares what it inherits with its teacher; a shape that differs is reported elsewhere.
    if let teacherModel { try? model.inherit(from: teacherModel) }
    model.allocate(on: backend)
    // Of a supernet the path that trains most: a step's is drawn, and a phase that aligns mixers trains linear ones alone.
    if student.supernetMixer != nil { model.path = SupernetPath() }
    let world = Communicator.counted(size: ranks)
    let fabric = MPIFabric(world, backend.companion())
    var runner: StepRunner?
    var saveBytes = 0
    return phases.map { phase in
      backend.resetPeak()
      // Nobody is asked on paper, so that nothing can fail.
      try? runner?.raise()
      StepRunner.replace(
        &runner, for: phase, of: phases, student: model, teacher: teacherModel, world: world, fabric: fabric,
        backend: backend)
      guard let runner else { preconditionFailure("phase \(phase.name) has no runner") }
      let stateBytes = backend.liveBytes
      let slices = RunState(student: model, runner: runner, phases: phases).slices(isCoordinator: true)
      let copied = slices.reduce(0) { $0 + $1.values.count * 4 }
      saveBytes = max(saveBytes, copied + min(copied, CheckpointSave.waitingBytes))
      // Nothing leaves this rank.
      runner.overlaps = false
      let microBatches = max(1, phase.microBatches / ranks)
      let batch = SequenceBatch(counting: phase.microBatch, of: phase.context)
      let before = backend.operations
      // A micro-batch in every lane shows the peak: more of them add up in place.
      let passes = min(microBatches, phase.lanes / ranks)
      _ = try? runner.accumulate(
        [SequenceBatch](repeating: batch, count: passes),
        over: TokenCounts(labels: batch.tokens.count, tokens: batch.tokens.count))
      return StepEstimate(
        operationsPerMicroBatch: (backend.operations - before) / Double(passes), stateBytes: stateBytes,
        tensorBytes: backend.peakBytes, saveBytes: saveBytes, parameters: model.store.count,
        trained: runner.arena.count)
    }
  }
}

extension SequenceBatch {
  /// A batch for counting: `sequences` of `context` tokens, all the same.
  fileprivate init(counting sequences: Int, of context: Int) {
    self.init()
    tokens = [Int32](repeating: 0, count: sequences * context)
    labels = tokens
    segments = (0..<sequences).map { $0 * context..<($0 + 1) * context }
    sequenceCount = sequences
  }
}
