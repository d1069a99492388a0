import Checkpointing
import Models
import NN
import Tensors

/// What a checkpoint holds of a run: all that any phase trains, as the float32 values that updates go to, and the moments of
/// the phase at hand. One function each way.
struct RunState {
  let student: HybridLM
  let runner: StepRunner
  let phases: [Phase]

  private func trainsEver(_ parameter: Parameter) -> Bool {
    phases.contains { $0.trains(parameter, of: student) }
  }

  /// What this rank saves: its part of the arena and the moments; the coordinator also what trains in another phase and
  /// rests now.
  func slices(isCoordinator: Bool) -> [StateSlice] {
    let (arena, optimizer) = (runner.arena, runner.optimizer)
    var slices: [StateSlice] = []
    for role in [ShardKey.Role.parameter, .firstMoment, .secondMoment] {
      for entry in arena.entries {
        for (range, local) in optimizer.parts(of: entry.range) {
          let elements = range.lowerBound - entry.offset..<range.upperBound - entry.offset
          let values =
            switch role {
            case .parameter: optimizer.master(range, local)
            case .firstMoment: optimizer.firstMoment.rows(local)
            case .secondMoment: optimizer.secondMoment.rows(local)
            }
          let isWhole = elements.count == entry.parameter.count
          slices.append(
            StateSlice(
              ShardKey(role, entry.parameter.name, isWhole ? nil : elements), shape: entry.parameter.shape,
              values: values,
              isTrained: true))
        }
      }
    }
    guard isCoordinator else { return slices }
    for parameter in student.store.parameters where !parameter.isTrained && trainsEver(parameter) {
      slices.append(
        StateSlice(
          ShardKey(.parameter, parameter.name), shape: parameter.shape, values: parameter.value, isTrained: false))
    }
    return slices
  }

  /// Reads `checkpoint` into the parameters and, where its moments belong to the phase at hand, into this rank's part of
  /// them.
  func restore(_ checkpoint: Checkpoint, hasMoments: Bool) throws {
    let offsets = Dictionary(uniqueKeysWithValues: runner.arena.entries.map { ($0.parameter.name, $0.offset) })
    var restored = 0
    try checkpoint.read { key, elements, values in
      guard let parameter = student.store[key.name], elements.upperBound <= parameter.count, trainsEver(parameter)
      else {
        throw CheckpointError(checkpoint.path, "holds \(key.name), which the model does not have or no phase trains")
      }
      let range = offsets[key.name].map { $0 + elements.lowerBound..<$0 + elements.upperBound }
      if key.role == .parameter {
        if let range { runner.optimizer.set(range, to: values) } else { parameter.set(elements, to: values) }
        restored += elements.count
      } else if hasMoments, let range {
        let moment = key.role == .firstMoment ? runner.optimizer.firstMoment : runner.optimizer.secondMoment
        for (part, local) in runner.optimizer.parts(of: range) {
          let source = part.lowerBound - range.lowerBound
          moment.rows(local).upload(UnsafeBufferPointer(rebasing: values[source..<source + part.count]))
        }
      }
    }
    let trained = student.store.parameters.reduce(0) { $0 + (trainsEver($1) ? $1.count : 0) }
    guard restored == trained else {
      throw CheckpointError(checkpoint.path, "holds \(restored) trained weights, the job has \(trained)")
    }
  }
}
