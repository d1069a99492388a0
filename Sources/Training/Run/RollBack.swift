import Checkpointing
import TokenStreams

/// Going back after updates that were left out.
extension Trainer {
  /// Goes back to the newest checkpoint before the updates that were left out, and skips the window of their data from
  /// there on.
  func rollBack() throws {
    let phase = phase
    let (skipped, last) = (spikes, position)
    let (first, end) = (skipped.state.firstStep, position.sequences)
    let run = inputs.run
    try saver.finish()
    try runner.waitForParameters()
    guard skipped.state.returns < 3,
      let checkpoint = try goToNewestCheckpoint(before: first), checkpoint.manifest.phase == last.phase,
      checkpoint.manifest.phaseStep < phase.steps
    else {
      throw JobError(
        .diverged,
        "steps \(first) to \(last.step) of phase \(phase.name) gave no update, and there is no checkpoint of that phase "
          + "before them, or rolling back did not help; lower train.lr, or look at the data")
    }
    try agree(world) {
      guard world.isCoordinator else { return }
      for newer in run.steps where newer > checkpoint.manifest.step { try run.setAside(step: newer, as: "rolled-back") }
    }
    spikes = skipped
    spikes.rollBack(to: checkpoint.manifest.spikes ?? .init(), end: end)
    let sequences = spikes.state.skippedWindows.reduce(0) { $0 + $1[1] - $1[0] }
    try inputs.plans[position.phase].checkSupply(sequences: phase.sequences(before: phase.steps) + sequences)
    say(
      "steps \(first) to \(last.step) gave no update: rolled back to step \(position.step), skipping sequences "
        + "\(skipped.state.firstSequence) to \(end) of phase \(phase.name)")
  }
}
