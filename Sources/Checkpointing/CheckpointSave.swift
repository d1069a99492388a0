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
  package let stall: Double
  /// Digest of what this rank saves and updates change; nil where it owns nothing of that.
  package let trainedDigest: UInt64?
  private let run: RunFolder
  private let world: Communicator
  private let sharing: FolderSharing
  private let makeManifest: ([CheckpointManifest.Shard]) -> CheckpointManifest
  private let work: Work

  /// What the writing thread and its owner share.
  private final class Work: @unchecked Sendable {
    let slices: [SnapshotBuffer.Slice]
    /// What the slices read: its owner may let go of it.
    let buffer: SnapshotBuffer
    let sharing: FolderSharing
    let step: Int
    let path: String
    let level: Int32
    let digest: UInt64
    let isStale: Bool
    let isDone = Atomic(false)
    let finished = DispatchSemaphore(value: 0)
    /// Written by the thread before `isDone`.
    var result: Result<CheckpointManifest.Shard, any Error>?
    /// What arrived of other ranks' parts.
    var arrived: Result<[Int: String], any Error> = .success([:])
    var seconds = 0.0

    init(
      slices: [SnapshotBuffer.Slice], of buffer: SnapshotBuffer, sharing: FolderSharing, step: Int, path: String,
      level: Int32, digest: UInt64,
      isStale: Bool
    ) {
      (self.slices, self.buffer, self.path, self.level, self.digest) = (slices, buffer, path, level, digest)
      self.isStale = isStale
      (self.sharing, self.step) = (sharing, step)
    }

    func write() {
      let start = ContinuousClock.now
      result = Result {
        try FailPoint.reach(.beforeShard, path: path)
        guard !isStale else {
          throw CheckpointError(path, "the state is that of the save before, though there were updates since")
        }
        // What goes to disk is what the run held when the save began.
        guard SnapshotBuffer.digest(slices) == digest else {
          throw CheckpointError(path, "the copy of the state changed while it was written; the save is given up")
        }
        return try CheckpointShard.write(slices, to: path, level: level, pool: ThreadPool(threads: 1), digest: digest)
      }
      let part = try? result?.get().file
      arrived = Result { try sharing.ship(part, step: step) }
      let elapsed = (ContinuousClock.now - start).components
      seconds = Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
      isDone.store(true, ordering: .releasing)
      finished.signal()
    }
  }

  /// Copies the slices of this rank and begins to write them. Every rank must call it.
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
    let copy = buffer.take(slices)
    work = Work(
      slices: copy.slices, of: buffer, sharing: self.sharing, step: step,
      path: place + "/" + CheckpointShard.fileName(of: world.rank), level: level, digest: copy.digest,
      isStale: copy.trained != nil && copy.trained == staleDigest)
    trainedDigest = copy.trained
    let thread = Thread { [work] in work.write() }
    thread.stackSize = 8 << 20
    thread.start()
    let elapsed = (ContinuousClock.now - start).components
    stall = Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
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
