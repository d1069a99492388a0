import Files
import Foundation
import MPI
import Parallel
import Synchronization

/// Memory for the state of one moment, kept from save to save.
package final class SnapshotBuffer {
  private var memory: UnsafeMutableRawBufferPointer?

  package init() {}
  deinit { memory?.deallocate() }

  /// Copies the pieces, and gives pieces that read the copy and a digest of it.
  func take(_ pieces: [Piece]) -> (pieces: [Piece], digest: UInt64) {
    let bytes = pieces.reduce(0) { $0 + ($1.range.count * 4 + 7) / 8 * 8 }
    if memory?.count ?? 0 < bytes {
      memory?.deallocate()
      memory = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes, alignment: 64)
    }
    var digests: [UInt64] = []
    var offset = 0
    let copies = pieces.map { piece in
      let target = (memory!.baseAddress! + offset).bindMemory(to: Float.self, capacity: piece.range.count)
      digests.append(digest(piece.values, piece.range.count, copyingTo: target))
      offset += (piece.range.count * 4 + 7) / 8 * 8
      return Piece(role: piece.role, name: piece.name, shape: piece.shape, range: piece.range, values: target)
    }
    return (copies, combined(digests))
  }
}

/// A digest of the bytes of a tensor, of any type.
package func digest(_ bytes: UnsafeRawBufferPointer) -> UInt64 {
  guard let address = bytes.baseAddress else { return 0 }
  return digest(address.assumingMemoryBound(to: Float.self), bytes.count / 4)
}

/// A digest of floats, which are copied on the way where there is a target: one pass over memory.
package func digest(
  _ source: UnsafePointer<Float>, _ count: Int, copyingTo target: UnsafeMutablePointer<Float>? = nil
) -> UInt64 {
  // Sums of products with odd numbers that change along the way: four words at a time.
  let step = 0x9E37_79B9_7F4A_7C15 as UInt64
  var sums = SIMD4<UInt64>(repeating: 0)
  var factors = SIMD4<UInt64>(step, step &* 3, step &* 5, step &* 7)
  let words = count / 8
  let from = UnsafeRawPointer(source)
  let to = UnsafeMutableRawPointer(target)
  for index in 0..<words {
    let value = from.loadUnaligned(fromByteOffset: index * 32, as: SIMD4<UInt64>.self)
    to?.storeBytes(of: value, toByteOffset: index * 32, as: SIMD4<UInt64>.self)
    sums &+= (value ^ (value &>> 29)) &* factors
    factors &+= SIMD4(repeating: 2 &* step &+ 2)
  }
  var sum = sums[0] &+ sums[1] &* 3 &+ sums[2] &* 5 &+ sums[3] &* 7
  for index in words * 8..<count {
    target?[index] = source[index]
    sum = sum &* 31 &+ UInt64(source[index].bitPattern)
  }
  return sum
}

private func combined(_ digests: [UInt64]) -> UInt64 { digests.reduce(0) { $0 &* 31 &+ $1 } }

/// A checkpoint on its way to disk: the state was copied, a thread of its own compresses, hashes and writes it without
/// any MPI, and the ranks give it its name together once all of them have written.
package final class CheckpointSave {
  package let step: Int
  /// Seconds that the caller waited for the copy.
  package let stall: Double
  /// Digest of what this rank saves; nil where it owns nothing.
  package var digest: UInt64? { work.pieces.isEmpty ? nil : work.digest }
  private let run: RunFolder
  private let world: Communicator
  private let sharing: FolderSharing
  private let makeManifest: ([CheckpointManifest.Shard]) -> CheckpointManifest
  private let work: Work

  /// What the writing thread and its owner share.
  private final class Work: @unchecked Sendable {
    let pieces: [Piece]
    let path: String
    let level: Int32
    let digest: UInt64
    let staleDigest: UInt64?
    let isDone = Atomic(false)
    let finished = DispatchSemaphore(value: 0)
    /// Written by the thread before `isDone`.
    var result: Result<CheckpointManifest.Shard, any Error>?
    var seconds = 0.0

    init(pieces: [Piece], path: String, level: Int32, digest: UInt64, staleDigest: UInt64?) {
      (self.pieces, self.path, self.level, self.digest) = (pieces, path, level, digest)
      self.staleDigest = staleDigest
    }

    func write() {
      let start = ContinuousClock.now
      result = Result {
        try FailPoint.reach(.beforeShard, path: path)
        guard pieces.isEmpty || digest != staleDigest else {
          throw CheckpointError(path, "the state is that of the save before, though there were updates since")
        }
        // What goes to disk is what the run held when the save began.
        guard combined(pieces.map { piece in Checkpointing.digest(piece.values, piece.range.count) }) == digest else {
          throw CheckpointError(path, "the copy of the state changed while it was written; the save is given up")
        }
        return try CheckpointShard.write(pieces, to: path, level: level, pool: ThreadPool(threads: 1), digest: digest)
      }
      let elapsed = (ContinuousClock.now - start).components
      seconds = Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
      isDone.store(true, ordering: .releasing)
      finished.signal()
    }
  }

  /// Copies the pieces of this rank and begins to write them. Every rank must call it.
  ///
  /// - Parameters:
  ///   - sharing: how ranks that do not see the folder reach it; nil where all see it
  ///   - staleDigest: of the save before, where there were updates since: the state must be another
  ///   - buffer: not in use by another save
  ///   - makeManifest: given the shards of all ranks; called when all are written
  /// - Throws: On all ranks when it cannot begin on one
  package init(
    _ pieces: [Piece], step: Int, in run: RunFolder, world: Communicator, sharing: FolderSharing? = nil,
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
    let digits = String(world.rank)
    let name = "shard-" + String(repeating: "0", count: max(0, 5 - digits.count)) + digits + ".safetensors.zst"
    let copy = buffer.take(pieces)
    work = Work(
      pieces: copy.pieces, path: place + "/" + name, level: level, digest: copy.digest, staleDigest: staleDigest)
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
  /// - Throws: On all ranks when it failed on one; there is no checkpoint then.
  package func complete() throws {
    if !isWritten { work.finished.wait() }
    var record = Data()
    do {
      try agree(world) { record = try JSONEncoder().encode(work.result!.get()) }
      let shards = try world.allGather(Array(record)).map {
        try JSONDecoder().decode(CheckpointManifest.Shard.self, from: Data($0))
      }
      try sharing.gather(shards.map(\.file), step: step)
      try agree(world) {
        guard world.isCoordinator else { return }
        for rank in sharing.strangers { try CheckpointShard.verify(shards[rank], folder: run.partial(step: step)) }
        let partial = run.partial(step: step)
        try FailPoint.reach(.beforeManifest, path: partial)
        try writeDurably(makeManifest(shards).encoded(), to: partial + "/" + CheckpointManifest.fileName)
        try FailPoint.reach(.beforeRename, path: partial)
        try run.commit(step: step)
      }
    } catch {
      if world.isCoordinator { try? FileManager.default.removeItem(atPath: run.partial(step: step)) }
      throw error
    }
  }
}
