import Files
import Foundation
import MPI

/// Saving and restoring a run over all its ranks.
package struct Checkpoint {
  package let path: String
  package let manifest: CheckpointManifest

  /// Opens the checkpoint at `path`; its shards are read later.
  package init(_ path: String) throws {
    self.path = path
    manifest = try CheckpointManifest(path: path)
  }

  /// Compares every shard with the manifest; throws the first fault.
  package func verify() throws {
    for shard in manifest.shards { try CheckpointShard.verify(shard, folder: path) }
  }

  /// The arrays of the checkpoint and the elements that each holds. Only headers are read.
  package func keys() throws -> [(key: ShardKey, count: Int)] {
    try manifest.shards.flatMap { try CheckpointShard.keys($0, folder: path) }
  }

  /// Reads the whole checkpoint, in stretches of bounded memory, and compares it with the manifest on the way.
  ///
  /// - Parameter body: given a stretch of an array: which elements of the parameter's flat order, and their values
  /// - Throws: Also after `body` was given everything, when a file turns out to be another than was written: what it was
  ///   given counts only once this returns
  package func read(
    _ body: (_ key: ShardKey, _ elements: Range<Int>, _ values: UnsafeBufferPointer<Float>) throws -> Void
  ) throws {
    for shard in manifest.shards { try CheckpointShard.read(shard, folder: path, body) }
  }

  /// All arrays put together, by role and name.
  package func assemble() throws -> [String: [Float]] {
    var pieces: [String: [(start: Int, values: [Float])]] = [:]
    try read { key, elements, values in
      pieces[ShardKey(key.role, key.name).description, default: []].append((elements.lowerBound, Array(values)))
    }
    // A place that a file names is believed only where it continues the array.
    return try Dictionary(
      uniqueKeysWithValues: pieces.map { key, pieces in
        let values = try pieces.sorted { $0.start < $1.start }.reduce(into: [Float]()) { all, piece in
          guard piece.start == all.count else {
            throw CheckpointError(path, "the pieces of \(key) do not fit together")
          }
          all += piece.values
        }
        return (key, values)
      })
  }

  /// The newest checkpoint of `run` whose files are all as they were written; the ranks share the reading. Newer ones,
  /// which are damaged, are set aside under another name, so that their steps can be saved again.
  ///
  /// - Parameters:
  ///   - before: only those of earlier steps
  ///   - sharing: how ranks that do not see the folder reach it; nil where all see it. Its
  ///     ``FolderSharing/dispose()`` must be called once the checkpoint was read
  /// - Returns: nil when the run has none at all.
  /// - Throws: When it has some, but none is good.
  package static func newestGood(
    in run: RunFolder, before: Int = .max, world: Communicator, sharing: FolderSharing? = nil, warn: (String) -> Void
  ) throws -> Checkpoint? {
    let sharing = sharing ?? FolderSharing(everywhere: run, world: world)
    // One rank's view of the folder counts; of network file systems the others may have another.
    let names = try world.broadcast(Array(run.steps.map(String.init).joined(separator: " ").utf8))
    let steps = String(decoding: names, as: UTF8.self).split(separator: " ").compactMap { Int($0) }.filter {
      $0 < before
    }
    let readers = (0..<world.size).filter { !sharing.ranksWithoutFolder.contains($0) }
    var damaged: [Int] = []
    for step in steps.reversed() {
      let path = run.checkpoint(step: step)
      var fault: String?
      var found: Checkpoint?
      if let place = readers.firstIndex(of: world.rank) {
        do {
          let checkpoint = try Checkpoint(path)
          for (index, shard) in checkpoint.manifest.shards.enumerated() where index % readers.count == place {
            try CheckpointShard.verify(shard, folder: path)
          }
          found = checkpoint
        } catch { fault = "\(error)" }
      }
      let faults = try world.allGather(Array((fault ?? "").utf8)).filter { !$0.isEmpty }
      if faults.isEmpty {
        if world.isCoordinator { for step in damaged { try run.setAside(step: step) } }
        try world.barrier()
        return try sharing.fetch(found)
      }
      damaged.append(step)
      warn("checkpoint \(path) is damaged and skipped: \(String(decoding: faults[0], as: UTF8.self))")
    }
    guard steps.isEmpty else {
      throw CheckpointError(
        run.path, "has \(steps.count) checkpoints, none of them whole; restore one, or start anew in another --run-dir")
    }
    return nil
  }
}

/// Runs `body` on this rank and fails on all ranks when it fails on one, with the first rank's reason.
package func agree(_ world: Communicator, _ body: () throws -> Void) throws {
  var fault: (any Error)?
  do { try body() } catch { fault = error }
  let reasons = try world.allGather(Array((fault.map { "\($0)" } ?? "").utf8))
  if let fault { throw fault }
  if let rank = reasons.firstIndex(where: { !$0.isEmpty }) {
    throw PeerError(rank: rank, reason: String(decoding: reasons[rank], as: UTF8.self))
  }
}

/// Another rank failed; it prints the reason.
package struct PeerError: Error, CustomStringConvertible {
  package let rank: Int
  package let reason: String
  package var description: String { "rank \(rank): \(reason)" }
}
