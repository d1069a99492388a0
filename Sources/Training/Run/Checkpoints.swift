import Checkpointing

/// Saving the run as it stands.
extension Trainer {
  /// What a checkpoint holds of the models and the optimizer.
  var state: RunState { RunState(student: models.student, runner: runner, phases: job.phases) }

  /// Begins to save the state as it is now. A save that is still under way ends first.
  func save() throws {
    guard position.step != saver.lastSaved else { return }
    try saver.finish()
    watchdog.enter(.save, step: position.step)
    try runner.waitForParameters()
    var identity = inputs.identity
    identity.plans = inputs.orders(at: position)
    let (position, size, spikes) = (position, world.size, spikes.state)
    let fields = try job.manifestFields(student: models.student.configuration, kernels: backend.kernelIdentity)
    try saver.begin(state.slices(isCoordinator: world.isCoordinator), step: position.step) {
      [identity, updates = updates.counts] shards in
      CheckpointManifest(
        step: position.step, tokens: position.tokens, phase: position.phase, phaseStep: position.phaseStep,
        sequences: position.sequences, worldSize: size, spikes: spikes, updates: updates,
        identity: identity, job: fields, shards: shards)
    }
  }
}
