import Checkpointing
import Files
import Foundation
import MPI

/// Saves a run while it goes on: one save at a time, retried or given up as the job says, and none lost at its end.
///
/// All ranks call it at the same places, and it fails on all alike.
final class Saver {
  private let job: Job
  private let run: RunFolder
  private let world: Communicator
  private let sharing: FolderSharing
  private let watchdog: Watchdog
  private let say: (String) -> Void

  /// The newest step that is on disk, or on its way there.
  private(set) var lastSaved: Int?
  private var lastGood: Int?
  /// The checkpoint that this start of the run went on from.
  private var resumedFrom: Int?
  /// The save on its way to disk, and the memory that it reads.
  private var pending: CheckpointSave?
  private let snapshot = SnapshotBuffer()
  /// What the last save held.
  private var savedDigest: UInt64?
  /// Whether there was an update since the last save.
  var hasUpdated = false
  private var failures = 0
  /// Whether the next step tries again to save.
  private(set) var isRetryDue = false
  /// When the last save began, or this start of the run.
  private var lastBegun = ContinuousClock.now
  /// Seconds that training waited for copies since this was last taken: where they begin, and before the update that follows.
  private var stall = 0.0
  /// The first of the updates that were left out in a row; nil when the last one was not.
  var firstSkippedStep: Int?
  private let deletions = DispatchQueue(label: "jettrain.deletions", qos: .utility)
  /// The most seconds that a save has taken, from the copy to the disk.
  private(set) var longest = 0.0

  private static let attempts = 3

  init(
    _ job: Job, run: RunFolder, world: Communicator, sharing: FolderSharing, watchdog: Watchdog,
    say: @escaping (String) -> Void
  ) {
    (self.job, self.run, self.world, self.sharing) = (job, run, world, sharing)
    (self.watchdog, self.say) = (watchdog, say)
  }

  /// The run goes on from the checkpoint of `step`.
  func resume(from step: Int) { (lastSaved, lastGood, resumedFrom) = (step, step, step) }

  /// Whether this rank has written its part of the save under way.
  var hasWritten: Bool { pending?.isWritten ?? false }

  /// Whether this rank's clock says that a save is due.
  var isDueByClock: Bool {
    job.checkpointMinutes > 0 && ContinuousClock.now - lastBegun >= .seconds(60 * job.checkpointMinutes)
  }

  /// Seconds that training waited for copies since the last call.
  func takeStall() -> Double {
    defer { stall = 0 }
    return stall
  }

  /// Begins to save what `slices` read now. A save under way must have been finished.
  func begin(
    _ slices: [StateSlice], step: Int, manifest: @escaping ([CheckpointManifest.Shard]) -> CheckpointManifest
  ) throws {
    precondition(pending == nil, "a save of step \(step) begins while one is under way")
    isRetryDue = false
    lastSaved = step
    lastBegun = .now
    do {
      let save = try CheckpointSave(
        slices, step: step, in: run, world: world, sharing: sharing, level: job.compressionLevel,
        staleDigest: hasUpdated ? savedDigest : nil, buffer: snapshot, makeManifest: manifest)
      stall += save.stall
      pending = save
      hasUpdated = false
    } catch { try handle(error, step: step) }
  }

  /// Waits until what the save under way writes is copied: before anything of it changes.
  func waitForCopy() {
    if let pending { stall += pending.waitForCopy() }
  }

  /// Ends the save that is under way, if there is one: waits for the disk, and gives it its name.
  func finish() throws {
    guard let save = pending else { return }
    stall += save.waitForCopy()
    savedDigest = save.trainedDigest
    pending = nil
    // A phase of its own, since a copy takes a moment, and a disk or the way to it what it takes.
    watchdog.enter(.write)
    do {
      let flaw = try save.complete()
      watchdog.learn(.write, seconds: save.writeSeconds)
      longest = max(longest, save.stall + save.writeSeconds)
      failures = 0
      lastGood = save.step
      if let flaw { say("WARNING: the checkpoint of step \(save.step) is whole, but \(flaw); older ones are kept") }
      if world.isCoordinator, flaw == nil { retain() }
    } catch { try handle(error, step: save.step) }
  }

  /// Deletes what is too many, beside the training.
  private func retain() {
    // While updates are left out, the run may have to go back to the newest checkpoint before them.
    let target = firstSkippedStep.flatMap { first in run.steps.last { $0 < first } }
    let doomed = run.retain(
      keepLast: job.keepLast, keepEvery: job.keepEvery, needed: [resumedFrom, target].compactMap { $0 })
    deletions.async { for folder in doomed { try? FileManager.default.removeItem(atPath: folder) } }
  }

  /// At the end of a run the state of `step` must be on disk, or the run fails.
  ///
  /// - Parameter save: begins a save of that state
  func saveFinalState(step: Int, _ save: () throws -> Void) throws {
    try finish()
    var attempts = 0
    while lastGood != step {
      guard attempts < Self.attempts else {
        throw FileError(
          run.path,
          "the state of step \(step) could not be saved; "
            + (lastGood.map { "step \($0) is the last good checkpoint" } ?? "there is no checkpoint"), kind: .system)
      }
      sleep(UInt32(1 << attempts))
      attempts += 1
      try save()
      try finish()
    }
    deletions.sync {}
  }

  /// A save failed, on all ranks alike: what the job says happens.
  private func handle(_ error: any Error, step: Int) throws {
    failures += 1
    lastSaved = lastGood
    let good = lastGood.map { "the last good checkpoint is that of step \($0)" } ?? "there is no checkpoint yet"
    let mayRetry = job.onSaveFailure == .retry && failures < Self.attempts
    say(
      "SAVE FAILED at step \(step): \(error); \(good); "
        + (job.onSaveFailure == .fail ? "the run ends" : mayRetry ? "trying again" : "the run goes on without it"))
    guard job.onSaveFailure != .fail else { throw error }
    isRetryDue = mayRetry
    // The next save that is due has as many attempts again.
    if !mayRetry { failures = 0 }
  }
}
