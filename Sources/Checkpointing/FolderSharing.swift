import Files
import Foundation
import MPI

/// Which ranks see the coordinator's run folder, and how files get to and from those that do not.
///
/// A rank that does not see the folder writes its part of a checkpoint to its own disk, from where it travels to the
/// coordinator; a checkpoint that is resumed travels the other way, once to every host.
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

  /// Brings the parts of the ranks without the folder, by rank, to the coordinator. Every rank must call it.
  func gather(_ files: [String], step: Int) throws {
    for rank in ranksWithoutFolder {
      try copy(
        place(step: step) + "/" + files[rank], from: rank, to: 0, as: run.partial(step: step) + "/" + files[rank])
    }
    if lacksFolder { try? FileManager.default.removeItem(atPath: place(step: step)) }
  }

  /// Where this rank finds the checkpoint, which the coordinator has: its files travel to hosts that do not see it. Every
  /// rank must call it, and ``dispose()`` once it has read them.
  func fetch(_ checkpoint: Checkpoint) throws -> Checkpoint {
    guard !ranksWithoutFolder.isEmpty else { return checkpoint }
    let files = checkpoint.manifest.shards.map(\.file)
    try agree(world) { if leaders.contains(world.rank) { try createFolder(run.inbox) } }
    for leader in leaders {
      for file in files {
        try copy(checkpoint.path + "/" + file, from: 0, to: leader, as: run.inbox + "/" + file)
      }
    }
    return lacksFolder ? checkpoint.moved(to: run.inbox) : checkpoint
  }

  /// Removes what ``fetch(_:)`` brought.
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
        try send(path, to: target)
      } else if world.rank == target {
        try receive(from: source, as: other)
      }
    }
  }

  /// In pieces, of which an empty one is the last.
  private func send(_ path: String, to target: Int) throws {
    var fault: (any Error)?
    do {
      let file = FileHandle(forReadingAtPath: path)
      guard let file else { throw FileError.system(path, "cannot be read") }
      while let data = try file.read(upToCount: 8 << 20), !data.isEmpty { try world.send(Array(data), to: target) }
    } catch { fault = error }
    // The other side waits for it whatever happened here.
    try world.send([], to: target)
    if let fault { throw fault }
  }

  private func receive(from source: Int, as path: String) throws {
    var fault: (any Error)?
    var file: DurableFile?
    do { file = try DurableFile(path) } catch { fault = error }
    while case let bytes = try world.receive(from: source), !bytes.isEmpty {
      do { if fault == nil { try file?.write(bytes) } } catch { fault = error }
    }
    if let fault { throw fault }
    _ = try file?.finish()
  }
}
