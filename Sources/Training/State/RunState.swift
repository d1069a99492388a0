import Checkpointing
import MPI
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
    for parameter in resting {
      slices.append(
        StateSlice(
          ShardKey(.parameter, parameter.name), shape: parameter.shape, values: parameter.value, isTrained: false))
    }
    return slices
  }

  /// What this rank reads of a checkpoint: what it owns of the parameters and, where they belong to the phase at hand, of
  /// the moments. The coordinator also reads what rests now.
  ///
  /// - Parameter hasMoments: whether its moments belong to the phase at hand
  func wanted(hasMoments: Bool, isCoordinator: Bool) -> [ShardKey] {
    var keys: [ShardKey] = []
    for entry in runner.arena.entries {
      for (range, _) in runner.optimizer.parts(of: entry.range) {
        let elements = range.lowerBound - entry.offset..<range.upperBound - entry.offset
        for role in hasMoments ? [ShardKey.Role.parameter, .firstMoment, .secondMoment] : [.parameter] {
          keys.append(ShardKey(role, entry.parameter.name, elements))
        }
      }
    }
    if isCoordinator { keys += resting.map { ShardKey(.parameter, $0.name, 0..<$0.count) } }
    return keys
  }

  /// What only other phases train.
  private var resting: [Parameter] { student.store.parameters.filter { !$0.isTrained && trainsEver($0) } }

  /// Reads `wanted`, this rank's part of `checkpoint`, each element once. The others' parameters come by ``share(_:)``.
  func restore(_ wanted: [ShardKey], of checkpoint: Checkpoint, world: Communicator) throws {
    let (arena, optimizer) = (runner.arena, runner.optimizer)
    let offsets = Dictionary(uniqueKeysWithValues: arena.entries.map { ($0.parameter.name, $0.offset) })
    try checkpoint.read(wanted, share: .init(reader: world.rank, of: world.size)) { key, elements, values in
      guard let offset = offsets[key.name] else {
        student.store[key.name]?.set(elements, to: values)
        return
      }
      let range = offset + elements.lowerBound..<offset + elements.upperBound
      guard key.role != .parameter else { return optimizer.set(range, to: values) }
      let moment = key.role == .firstMoment ? optimizer.firstMoment : optimizer.secondMoment
      for (part, local) in optimizer.parts(of: range) {
        let source = part.lowerBound - range.lowerBound
        moment.rows(local).upload(UnsafeBufferPointer(rebasing: values[source..<source + part.count]))
      }
    }
  }

  /// Gives every rank what the others have read. All ranks call it, once all have read.
  func share(_ world: Communicator) throws {
    try runner.shareParameters()
    guard world.hasOthers else { return }
    for parameter in resting {
      var values = parameter.value.toArray()
      try values.withUnsafeMutableBytes { try world.broadcast($0) }
      values.withUnsafeBufferPointer { parameter.set(0..<parameter.count, to: $0) }
    }
  }
}
