import Files
import Foundation
import MPI
import Parallel
import Synchronization

/// A checkpoint on its way to disk: the state was copied, a thread of its own compresses, hashes and writes it, and brings it
/// to the coordinator where the hosts share no folder, and the ranks give it its name together once all of that is done.
package final class CheckpointSave {
  /// The most bytes that wait for compression, hashing and the disk.
  package static var waitingBytes: Int { DurableFile.waitingPieces * CheckpointShard.frameBytes }

  package let step: Int
  /// Seconds that the caller waited for the copy.
  package private(set) var stall: Double
  /// What is copied, which must stay until it is; nil then.
  private var sources: [StateSlice]?
  private let run: RunFolder
  private let world: Communicator
  private let sharing: FolderSharing
  private let makeManifest: ([CheckpointManifest.Shard]) -> CheckpointManifest
  private let work: Work

  /// What the writing thread and its owner share.
  private final class Work: @unchecked Sendable {
    let copy: SnapshotBuffer.Copy
    /// What the copy lies in: its owner may let go of it.
    let buffer: SnapshotBuffer
    let sharing: FolderSharing
    let step: Int
    let path: String
    let level: Int32
    let staleDigest: UInt64?
    let isDone = Atomic(false)
    let finished = DispatchSemaphore(value: 0)
    /// Written by the thread before `isDone`.
    var result: Result<CheckpointManifest.Shard, any Error>?
    /// What arrived of other ranks' parts.
    var arrived: Result<[Int: String], any Error> = .success([:])
    var seconds = 0.0

    init(
      _ copy: SnapshotBuffer.Copy, of buffer: SnapshotBuffer, sharing: FolderSharing, step: Int, path: String,
      level: Int32, staleDigest: UInt64?
    ) {
      (self.copy, self.buffer, self.path, self.level, self.staleDigest) = (copy, buffer, path, level, staleDigest)
      (self.sharing, self.step) = (sharing, step)
    }

    func write() {
      let start = ContinuousClock.now
      result = Result {
        try FailPoint.reach(.beforeShard, path: path)
        copy.wait()
        let trained = copy.trainedDigest
        guard trained == nil || trained != staleDigest else {
          throw CheckpointError(path, "the state is that of the save before, though there were updates since")
        }
        // What goes to disk is what the run held when the save began.
        guard SnapshotBuffer.digest(copy.slices) == copy.digest else {
          throw CheckpointError(path, "the copy of the state changed while it was written; the save is given up")
        }
        return try CheckpointShard.write(
          copy.slices, to: path, level: level, pool: ThreadPool(threads: 1), digest: copy.digest)
      }
      let part = try? result?.get().file
      arrived = Result { try sharing.ship(part, step: step) }
      seconds = CheckpointSave.seconds(since: start)
      isDone.store(true, ordering: .releasing)
      finished.signal()
    }
  }

  /// Begins to copy the slices of this rank and to write them. They must not change before ``waitForCopy()`` has returned. Every
  /// rank must call it.
  ///
  /// - Parameters:
  ///   - sharing: how ranks that do not see the folder reach it; nil where all see it
  ///   - staleDigest: ``trainedDigest`` of the save before, where there were updates since: the state must be another
  ///   - buffer: not in use by another save
  ///   - makeManifest: given the shards of all ranks; called when all are written
  /// - Throws: On all ranks when it cannot begin on one
  package init(
    _ slices: [StateSlice], step: Int, in run: RunFolder, world: Communicator, sharing: FolderSharing? = nil,
    level: Int32, staleDigest: UInt64? = nil, buffer: SnapshotBuffer,
    makeManifest: @escaping ([CheckpointManifest.Shard]) -> CheckpointManifest
  ) throws {
    let start = ContinuousClock.now
    self.step = step
    self.run = run
    self.world = world
    self.makeManifest = makeManifest
    self.sharing = sharing ?? FolderSharing(everywhere: run, world: world)
    let place = self.sharing.place(step: step)
    let partial = run.partial(step: step)
    try agree(world) {
      guard world.isCoordinator else { return }
      guard !FileManager.default.fileExists(atPath: run.checkpoint(step: step)) else {
        throw CheckpointError(run.checkpoint(step: step), "exists already; a checkpoint is never overwritten")
      }
      try? FileManager.default.removeItem(atPath: partial)
      try createFolder(partial)
    }
    if place != partial { try? createFolder(place) }
    work = Work(
      buffer.copy(slices), of: buffer, sharing: self.sharing, step: step,
      path: place + "/" + CheckpointShard.fileName(of: world.rank), level: level, staleDigest: staleDigest)
    sources = slices
    let thread = Thread { [work] in work.write() }
    thread.stackSize = 8 << 20
    thread.start()
    stall = Self.seconds(since: start)
  }

  private static func seconds(since start: ContinuousClock.Instant) -> Double {
    let elapsed = (ContinuousClock.now - start).components
    return Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
  }

  /// Returns when the slices are copied, and so may change again.
  ///
  /// - Returns: the seconds that this took, which ``stall`` counts too
  @discardableResult package func waitForCopy() -> Double {
    guard sources != nil else { return 0 }
    let start = ContinuousClock.now
    work.copy.wait()
    sources = nil
    let seconds = Self.seconds(since: start)
    stall += seconds
    return seconds
  }

  /// Digest of what this rank saves and updates change, once that is copied; nil where it owns nothing of that.
  package var trainedDigest: UInt64? {
    waitForCopy()
    return work.copy.trainedDigest
  }

  /// Whether this rank has written its part, or failed to.
  package var isWritten: Bool { work.isDone.load(ordering: .acquiring) }

  /// Seconds that this rank's part took to write, once it is.
  package var writeSeconds: Double { isWritten ? work.seconds : 0 }

  /// Waits until this rank's part is written, and gives the checkpoint its name. Every rank must call it.
  ///
  /// - Returns: on the coordinator, what failed when the checkpoint was there already: nothing is to be deleted then
  /// - Throws: On all ranks when it failed on one; there is no checkpoint then.
  @discardableResult package func complete() throws -> (any Error)? {
    if !isWritten { work.finished.wait() }
    var record = Data()
    var flaw: (any Error)?
    do {
      var arrived: [Int: String] = [:]
      try agree(world) {
        record = try JSONEncoder().encode(work.result!.get())
        arrived = try work.arrived.get()
      }
      let shards = try world.allGather(Array(record)).map {
        try JSONDecoder().decode(CheckpointManifest.Shard.self, from: Data($0))
      }
      try agree(world) {
        guard world.isCoordinator else { return }
        let partial = run.partial(step: step)
        for rank in sharing.ranksWithoutFolder where arrived[rank] != shards[rank].sha256 {
          throw CheckpointError(partial + "/" + shards[rank].file, "is not what rank \(rank) has sent")
        }
        try FailPoint.reach(.beforeManifest, path: partial)
        try writeDurably(makeManifest(shards).encoded(), to: partial + "/" + CheckpointManifest.fileName)
        try FailPoint.reach(.beforeRename, path: partial)
        flaw = try run.commit(step: step)
      }
    } catch {
      if world.isCoordinator { try? FileManager.default.removeItem(atPath: run.partial(step: step)) }
      throw error
    }
    return flaw
  }
}
