import Files
import Foundation
import MPI

/// Which ranks see the coordinator's run folder, and how files get to and from those that do not.
///
/// A rank that does not see the folder writes its part of a checkpoint to its own disk, from where it travels to the
/// coordinator beside the training; of a checkpoint that is resumed, what the ranks of a host read travels the other way.
package struct FolderSharing {
  private let run: RunFolder
  private let world: Communicator
  /// Ranks that do not see it.
  package let ranksWithoutFolder: [Int]
  /// Of those, the first of every host.
  private let leaders: [Int]
  /// Hosts of all ranks.
  private let hosts: [String]

  /// Looks whether a file that the coordinator writes appears on all ranks. Every rank must call it.
  ///
  /// - Parameter patience: seconds after which it will not; network file systems show a new file late
  package init(_ run: RunFolder, world: Communicator, patience: Double) throws {
    self.run = run
    self.world = world
    let token = run.token
    try agree(world) {
      guard world.isCoordinator else { return }
      try createFolder(run.path)
      try writeDurably(Data(), to: token)
    }
    var sees = access(token, F_OK) == 0
    for _ in 0..<Int(patience * 10) where !sees {
      usleep(100_000)
      sees = access(token, F_OK) == 0
    }
    let host = ProcessInfo.processInfo.hostName
    let all = try world.allGather(Array("\(sees ? "+" : "-")\(host)".utf8)).map { String(decoding: $0, as: UTF8.self) }
    hosts = all.map { String($0.dropFirst()) }
    ranksWithoutFolder = all.indices.filter { all[$0].hasPrefix("-") }
    var leaders: [Int] = []
    for rank in ranksWithoutFolder where !leaders.contains(where: { [hosts] in hosts[$0] == hosts[rank] }) {
      leaders.append(rank)
    }
    self.leaders = leaders
    if world.isCoordinator { unlink(token) }
  }

  /// A sharing of a folder that every rank sees.
  init(everywhere run: RunFolder, world: Communicator) {
    (self.run, self.world, ranksWithoutFolder, leaders, hosts) = (run, world, [], [], [])
  }

  /// Whether this rank does not see it.
  package var lacksFolder: Bool { ranksWithoutFolder.contains(world.rank) }

  /// The ranks that do not see it, with their hosts, for messages.
  package var description: String { ranksWithoutFolder.map { "rank \($0) on \(hosts[$0])" }.joined(separator: ", ") }

  /// Where this rank writes its part of the checkpoint of `step`.
  func place(step: Int) -> String { lacksFolder ? run.outbox : run.partial(step: step) }

  /// Brings the parts of the ranks without the folder to the coordinator, host after host. Every rank calls it on a thread
  /// of its own, beside the training, once it has written its part or failed to.
  ///
  /// - Parameter part: this rank's file
  /// - Returns: on the coordinator, the SHA-256 of what arrived, by rank
  func ship(_ part: String?, step: Int) throws -> [Int: String] {
    var hashes: [Int: String] = [:]
    var fault: (any Error)?
    if lacksFolder {
      let path = part.map { place(step: step) + "/" + $0 }
      do { try Self.send(path, to: 0, world.files.send) } catch { fault = error }
      try? FileManager.default.removeItem(atPath: place(step: step))
    } else if world.isCoordinator {
      for rank in ranksWithoutFolder {
        let path = run.partial(step: step) + "/" + CheckpointShard.fileName(of: rank)
        do { hashes[rank] = try Self.receive(as: path) { try world.files.receive(from: rank) } } catch { fault = error }
      }
    }
    if let fault { throw fault }
    return hashes
  }

  /// Where this rank finds the shards that it reads of the checkpoint, which the coordinator has: to hosts that do not see
  /// it travels what their ranks read of it. Every rank must call it, and ``dispose()`` once it has read them.
  ///
  /// - Parameter shards: numbers of those that this rank reads
  func fetch(_ shards: [Int], of checkpoint: Checkpoint, say: (String) -> Void) throws -> Checkpoint {
    guard !ranksWithoutFolder.isEmpty else { return checkpoint }
    let wanted = try world.allGather(Array(shards.map(String.init).joined(separator: " ").utf8)).map {
      String(decoding: $0, as: UTF8.self).split(separator: " ").compactMap { Int($0) }
    }
    try agree(world) { if leaders.contains(world.rank) { try createFolder(run.inbox) } }
    for leader in leaders {
      let ranks = ranksWithoutFolder.filter { hosts[$0] == hosts[leader] }
      let sent = Set(ranks.flatMap { wanted[$0] }).sorted()
      say(
        "\(hosts[leader]) does not see \(checkpoint.path): \(sent.count) of its \(checkpoint.manifest.shards.count) shards are sent"
      )
      for file in sent.map({ checkpoint.manifest.shards[$0].file }) {
        try copy(checkpoint.path + "/" + file, from: 0, to: leader, as: run.inbox + "/" + file)
      }
    }
    return lacksFolder ? checkpoint.moved(to: run.inbox) : checkpoint
  }

  /// Removes what ``fetch(_:of:say:)`` brought.
  package func dispose() throws {
    guard !ranksWithoutFolder.isEmpty else { return }
    try world.barrier()
    if leaders.contains(world.rank) { try? FileManager.default.removeItem(atPath: run.inbox) }
  }

  /// Copies a file of rank `source` to rank `target`. Every rank must call it.
  ///
  /// - Throws: On all ranks when it fails on one
  private func copy(_ path: String, from source: Int, to target: Int, as other: String) throws {
    try agree(world) {
      if world.rank == source {
        try Self.send(path, to: target, world.send)
      } else if world.rank == target {
        _ = try Self.receive(as: other) { try world.receive(from: source) }
      }
    }
  }

  /// In pieces, of which an empty one is the last; nothing else where there is no file.
  private static func send(_ path: String?, to target: Int, _ send: ([UInt8], Int) throws -> Void) throws {
    var fault: (any Error)?
    if let path {
      do {
        let file = FileHandle(forReadingAtPath: path)
        guard let file else { throw FileError.system(path, "cannot be read") }
        while let data = try file.read(upToCount: 8 << 20), !data.isEmpty { try send(Array(data), target) }
      } catch { fault = error }
    }
    // The other side waits for it whatever happened here.
    try send([], target)
    if let fault { throw fault }
  }

  /// - Returns: SHA-256 of what arrived
  private static func receive(as path: String, _ next: () throws -> [UInt8]) throws -> String {
    var fault: (any Error)?
    var file: DurableFile?
    do { file = try DurableFile(path) } catch { fault = error }
    while case let bytes = try next(), !bytes.isEmpty {
      do { if fault == nil { try file?.write(bytes) } } catch { fault = error }
    }
    if let fault { throw fault }
    return try file?.finish(flushesFolder: false) ?? ""
  }
}
