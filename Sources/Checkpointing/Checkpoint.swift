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

  private init(_ path: String, manifest: Data) throws {
    self.path = path
    self.manifest = try CheckpointManifest(manifest, path: path)
  }

  /// The same checkpoint where another host has it.
  func moved(to path: String) -> Checkpoint { Checkpoint(path, manifest) }

  private init(_ path: String, _ manifest: CheckpointManifest) { (self.path, self.manifest) = (path, manifest) }

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

  /// Of so many readers which one this is: each also looks at the headers of some shards, so that all of them have compared
  /// every byte.
  package struct Share: Sendable {
    let reader: Int
    let count: Int

    package init(reader: Int, of count: Int) { (self.reader, self.count) = (reader, count) }

    fileprivate func checksHeader(of shard: Int) -> Bool { shard % count == reader }
  }

  /// Reads what `wanted` names, parts of arrays that do not overlap, each element once. Of shards with an index only the
  /// frames that hold some of it are read.
  ///
  /// - Throws: `CheckpointError` where the checkpoint does not hold all of it, or is damaged; also after `body` was given
  ///   something, which counts only once this returns
  package func read(
    _ wanted: [ShardKey], share: Share = Share(reader: 0, of: 1),
    _ body: (_ key: ShardKey, _ elements: Range<Int>, _ values: UnsafeBufferPointer<Float>) throws -> Void
  ) throws {
    let ranges = Self.ranges(wanted)
    var given: [String: [Range<Int>]] = [:]
    for (number, shard) in manifest.shards.enumerated() {
      if let index = shard.index {
        try CheckpointShard.read(
          shard, index, folder: path, wanted: ranges, checksHeader: share.checksHeader(of: number)
        ) { key, elements, values in
          given[ShardKey(key.role, key.name).description, default: []].append(elements)
          try body(key, elements, values)
        }
      } else {
        var found: [String: [Range<Int>]] = [:]
        try readingAgain(path + "/" + shard.file) { _ in
          found = [:]
          try CheckpointShard.read(shard, folder: path) { key, elements, values in
            let name = ShardKey(key.role, key.name).description
            for range in ranges[name] ?? [] where range.overlaps(elements) {
              let part = range.clamped(to: elements)
              found[name, default: []].append(part)
              let local = part.lowerBound - elements.lowerBound..<part.upperBound - elements.lowerBound
              try body(key, part, UnsafeBufferPointer(rebasing: values[local]))
            }
          }
        }
        given.merge(found) { $0 + $1 }
      }
    }
    for (name, ranges) in ranges where Self.joined(ranges) != Self.joined(given[name] ?? []) {
      throw CheckpointError(path, "does not hold all of \(name), or some of it twice")
    }
  }

  /// Numbers of the shards that such a reading opens.
  func shards(holding wanted: [ShardKey], share: Share) -> [Int] {
    let ranges = Self.ranges(wanted)
    return manifest.shards.indices.filter { number in
      guard let index = manifest.shards[number].index, !share.checksHeader(of: number) else { return true }
      return index.slices.contains { slice in
        let start = slice.key.range?.lowerBound ?? 0
        let parts = ranges[ShardKey(slice.key.role, slice.key.name).description] ?? []
        return parts.contains { !$0.clamped(to: start..<start + slice.count).isEmpty }
      }
    }
  }

  /// What is wanted of each array, by role and name.
  private static func ranges(_ wanted: [ShardKey]) -> [String: [Range<Int>]] {
    var ranges: [String: [Range<Int>]] = [:]
    for key in wanted { ranges[ShardKey(key.role, key.name).description, default: []].append(key.range ?? 0..<0) }
    return ranges
  }

  /// Ranges in order, those that follow each other as one; what overlaps stays apart.
  private static func joined(_ ranges: [Range<Int>]) -> [Range<Int>] {
    ranges.filter { !$0.isEmpty }.sorted { $0.lowerBound < $1.lowerBound }.reduce(into: []) { all, range in
      if let last = all.last, last.upperBound == range.lowerBound {
        all[all.count - 1] = last.lowerBound..<range.upperBound
      } else {
        all.append(range)
      }
    }
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

  /// Goes through the checkpoints of `run`, the newest first, until one is read whole by all ranks. Those that are damaged,
  /// on a second look too, are then set aside under another name, so that their steps can be saved again. What the system
  /// refuses is no damage: it ends the search.
  ///
  /// - Parameters:
  ///   - before: only those of earlier steps
  ///   - sharing: how ranks that do not see the folder reach it. Its ``FolderSharing/dispose()`` must be called afterwards
  ///   - want: what this rank reads of a checkpoint, once it is known to be of this run
  ///   - take: reads it; begins anew at each call
  /// - Returns: nil when the run has none at all.
  /// - Throws: When it has some, but none is good.
  package static func newestGood(
    in run: RunFolder, before: Int = .max, world: Communicator, sharing: FolderSharing, say: (String) -> Void,
    want: (Checkpoint) throws -> [ShardKey], take: (Checkpoint, [ShardKey]) throws -> Void
  ) throws -> Checkpoint? {
    // One rank's view of the folder counts; of network file systems the others may have another.
    let names = try world.broadcast(Array(run.steps.map(String.init).joined(separator: " ").utf8))
    let steps = String(decoding: names, as: UTF8.self).split(separator: " ").compactMap { Int($0) }.filter {
      $0 < before
    }
    var damaged: [Int] = []
    for step in steps.reversed() {
      let path = run.checkpoint(step: step)
      var found: Checkpoint?
      var damage: String?
      do {
        // The coordinator reads the manifest for all.
        var content = Data()
        try agree(world) {
          guard world.isCoordinator else { return }
          content = try readingAgain(path) { _ in
            let content = try CheckpointManifest.content(of: path)
            _ = try CheckpointManifest(content, path: path)
            return content
          }
        }
        let checkpoint = try Checkpoint(path, manifest: Data(world.broadcast(Array(content))))
        var wanted: [ShardKey] = []
        try agree(world) { wanted = try want(checkpoint) }
        let share = Share(reader: world.rank, of: world.size)
        let near = try sharing.fetch(checkpoint.shards(holding: wanted, share: share), of: checkpoint, say: say)
        try agree(world) { try take(near, wanted) }
        found = near
      } catch {
        guard let text = damageText(error) else { throw error }
        damage = text
      }
      if let found {
        if world.isCoordinator { for step in damaged { try run.setAside(step: step) } }
        try world.barrier()
        return found
      }
      damaged.append(step)
      say("checkpoint \(path) is damaged and skipped: \(damage ?? "")")
    }
    guard steps.isEmpty else {
      throw CheckpointError(
        run.path,
        "has \(steps.count == 1 ? "1 checkpoint, which is not whole" : "\(steps.count) checkpoints, none of them whole"); restore one, or start anew in another --run-dir"
      )
    }
    return nil
  }

  /// What is damaged, where an error of this rank or another says so.
  private static func damageText(_ error: any Error) -> String? {
    switch error {
    case let error as CheckpointError: error.isDamage ? error.description : nil
    case let error as FileError: error.kind == .content ? error.description : nil
    case let error as PeerError: error.isDamage ? error.reason : nil
    default: nil
    }
  }

  fileprivate static func isDamage(_ error: any Error) -> Bool { damageText(error) != nil }
}

/// Runs `body` on this rank and fails on all ranks when it fails on one: with its own error where that is not about damage,
/// else with the first rank's reason that is not, else with that of the first rank that failed.
package func agree(_ world: Communicator, _ body: () throws -> Void) throws {
  var fault: (any Error)?
  do { try body() } catch { fault = error }
  let mark = fault.map { (Checkpoint.isDamage($0) ? "D" : "E") + "\($0)" } ?? ""
  let reasons = try world.allGather(Array(mark.utf8)).map { String(decoding: $0, as: UTF8.self) }
  let failed = reasons.indices.filter { !reasons[$0].isEmpty }
  guard let first = failed.first(where: { reasons[$0].hasPrefix("E") }) ?? failed.first else { return }
  // All ranks must take the same way: where one met more than damage, nobody goes on.
  if let fault, mark.first == reasons[first].first { throw fault }
  throw PeerError(
    rank: first, reason: String(reasons[first].dropFirst()), isDamage: reasons[first].hasPrefix("D"))
}

/// Another rank failed; it prints the reason.
package struct PeerError: Error, CustomStringConvertible {
  package let rank: Int
  package let reason: String
  /// Whether what it read was not as it had been written.
  package let isDamage: Bool
  package var description: String { "rank \(rank): \(reason)" }
}
