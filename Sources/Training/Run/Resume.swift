import Checkpointing
import Files
import Foundation
import Reporting
import TokenStreams

/// What to do about checkpoints that a run folder holds.
package enum ResumePolicy: String, CaseIterable, Sendable {
  /// Go on from the newest good one; start anew only where there is none at all.
  case auto
  /// Go on or fail.
  case must
  /// Start anew; fail where there are checkpoints, which are never overwritten.
  case never
}

/// Going to where the run stands.
extension Trainer {
  /// Goes on from the newest good checkpoint, or begins.
  func resume(_ policy: ResumePolicy) throws {
    let (run, sharing) = (inputs.run, inputs.sharing)
    try agree(world) {
      guard world.isCoordinator || sharing.lacksFolder else { return }
      try createFolder(run.path)
      try run.removePartials()
      guard world.isCoordinator else { return }
      if policy == .never, let step = run.steps.last {
        throw JobError(
          .usage,
          "\(run.path) holds checkpoints up to step \(step), which are never overwritten: choose another --run-dir")
      }
    }
    guard policy != .never, let checkpoint = try goToNewestCheckpoint() else {
      guard policy != .must else { throw JobError(.data, "\(run.path): there is no checkpoint to go on from") }
      try agree(world) { if world.isCoordinator { try beginAnew(policy) } }
      return enterPhase()
    }
    say(
      "resuming \(run.path) from step \(position.step), saved by \(Format.counted(checkpoint.manifest.worldSize, "rank")), on \(world.size)"
    )
    if let kernels = checkpoint.manifest.job["matrix_kernels"], kernels != backend.kernelIdentity {
      say(
        "WARNING: the checkpoint was made with the kernels of \(kernels), the run goes on with those of "
          + "\(backend.kernelIdentity): not to the same bits (on CPUs OPENBLAS_CORETYPE chooses OpenBLAS's)")
    }
  }

  /// A folder without checkpoints may have had some: what speaks of them is neither ignored nor lost.
  private func beginAnew(_ policy: ResumePolicy) throws {
    let run = inputs.run
    if policy == .auto, let step = run.latest {
      throw JobError(
        .data,
        "\(run.path): \(RunFolder.name(step: step)) was its newest checkpoint, and there is none any more: put its checkpoints "
          + "back, or remove the file `latest` to begin anew")
    }
    let log = run.metrics
    guard let last = FileManager.default.contents(atPath: log)?.count(where: { $0 == UInt8(ascii: "\n") }), last > 0
    else { return }
    let kept = run.path + "/metrics-without-checkpoint.jsonl"
    try renameFile(log, to: kept)
    say(
      "WARNING: \(run.path) has a log of \(Format.counted(last, "line")) and no checkpoint: it begins anew, the old log is \(kept)"
    )
  }

  /// Goes to the newest checkpoint that can be read whole, of earlier steps than `before`.
  ///
  /// - Returns: nil when there is none at all
  func goToNewestCheckpoint(before: Int = .max) throws -> Checkpoint? {
    let checkpoint = try Checkpoint.newestGood(
      in: inputs.run, before: before, world: world, sharing: inputs.sharing, say: say, want: want
    ) { checkpoint, wanted in
      // Of the phase that `want` went to.
      try state.restore(wanted, of: checkpoint, world: world)
    }
    guard let checkpoint else { return nil }
    try inputs.sharing.dispose()
    try state.share(world)
    if let updates = checkpoint.manifest.updates, position.phaseStep > 0 {
      guard self.updates.restore(updates) else {
        throw CheckpointError(checkpoint.path, "counts the updates of another model")
      }
    }
    saver.resume(from: position.step)
    return checkpoint
  }

  /// Goes to where `checkpoint` was saved, once it is known to be of this run.
  ///
  /// - Returns: what this rank reads of it
  private func want(_ checkpoint: Checkpoint) throws -> [ShardKey] {
    let manifest = checkpoint.manifest
    let saved = Position(manifest)
    try compare(checkpoint, savedAt: saved)
    spikes = SpikeGuard(job.spikes, state: manifest.spikes ?? .init())
    if let fault = saved.fault(in: job.phases, spikes: spikes) { throw CheckpointError(checkpoint.path, fault) }
    position = saved
    let isPhaseDone = saved.phaseStep == job.phases[saved.phase].steps && saved.phase + 1 < job.phases.count
    if isPhaseDone {
      position.beginNextPhase()
      spikes.beginPhase()
    }
    enterPhase()
    return state.wanted(hasMoments: !isPhaseDone, isCoordinator: world.isCoordinator)
  }

  /// Refuses a checkpoint of another run; says what of the job was changed since.
  private func compare(_ checkpoint: Checkpoint, savedAt saved: Position) throws {
    let manifest = checkpoint.manifest
    if let text = manifest.job["settings"],
      let settings = try? JSONDecoder().decode([String: String].self, from: Data(text.utf8))
    {
      for change in try job.changes(since: settings, at: saved, checkpoint: checkpoint.path) {
        say("the job was changed: \(change)")
      }
    } else {
      say("\(checkpoint.path) does not hold the settings of its job: they are not compared")
    }
    let identity = inputs.identity
    for (what, then, now) in [
      ("kind of job", manifest.identity.kind, identity.kind),
      ("student configuration", manifest.identity.model, identity.model),
      ("frozen weights", manifest.identity.frozen, identity.frozen),
      ("teacher", manifest.identity.teacher, identity.teacher),
      (
        "data plan", manifest.identity.plans.prefix(saved.phase + 1).joined(),
        inputs.orders(at: saved).prefix(saved.phase + 1).joined()
      ),
    ] where then != now {
      throw CheckpointError(
        checkpoint.path,
        "belongs to another run: its \(what) \(what.hasSuffix("s") ? "differ" : "differs"); choose another --run-dir, or restore what changed"
      )
    }
  }
}
