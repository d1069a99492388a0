import Foundation
import MPI
import Synchronization

/// What the watchdog threads of a host's ranks tell each other: a page of memory that they share, with a row for each.
/// Beside it one file a host tells the other hosts.
final class LifeSigns: @unchecked Sendable {
  /// What a rank's watchdog says of it.
  struct Row: Equatable {
    /// Grows with every look of the watchdog: a rank whose ticks stand still is stopped or gone.
    var ticks = 0
    var step = 0
    var phase = 0
    /// Whether the file of its host cannot be written.
    var isMute = false
  }

  /// The ranks of every host, by their first rank.
  let hosts: [[Int]]
  /// Names of the hosts of all ranks.
  let names: [String]
  /// The ranks of this host.
  let local: [Int]
  private let rank: Int
  private let size: Int
  private let words: UnsafeMutablePointer<Atomic<Int>>
  private let memory: UnsafeMutableRawBufferPointer
  private let isMapped: Bool
  private static let width = 8

  /// Every rank must call it.
  init(_ world: Communicator, session: String) throws {
    (rank, size) = (world.rank, world.size)
    let name = ProcessInfo.processInfo.hostName
    names = try world.allGather(Array(name.utf8)).map { String(decoding: $0, as: UTF8.self) }
    var hosts = Dictionary(grouping: 0..<world.size) { [names] in names[$0] }.values.map(Array.init).sorted {
      $0[0] < $1[0]
    }
    let bytes = world.size * Self.width * MemoryLayout<Int>.size
    let path = "/dev/shm/jettrain-\(session)"
    let first = hosts.first { $0.contains(world.rank) }![0]
    var shared: UnsafeMutableRawPointer?
    if first == world.rank { shared = Self.map(path, bytes, creating: true) }
    try world.barrier()
    if first != world.rank { shared = Self.map(path, bytes, creating: false) }
    // Of a host whose ranks share no memory, every rank is one by itself.
    let all = try world.allGather([shared == nil ? 0.0 : 1.0])
    if first == world.rank { unlink(path) }
    hosts = hosts.flatMap { ranks in ranks.allSatisfy { all[$0] > 0 } ? [ranks] : ranks.map { [$0] } }
    hosts.sort { $0[0] < $1[0] }
    self.hosts = hosts
    local = hosts.first { $0.contains(world.rank) }!
    let start = shared ?? UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 64)
    if shared == nil { start.initializeMemory(as: UInt8.self, repeating: 0, count: bytes) }
    memory = UnsafeMutableRawBufferPointer(start: start, count: bytes)
    isMapped = shared != nil
    words = start.assumingMemoryBound(to: Atomic<Int>.self)
  }

  deinit {
    if isMapped { munmap(memory.baseAddress!, memory.count) } else { memory.deallocate() }
  }

  private static func map(_ path: String, _ bytes: Int, creating: Bool) -> UnsafeMutableRawPointer? {
    let flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (creating ? O_CREAT | O_EXCL : 0)
    let descriptor = open(path, flags, 0o600)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    guard !creating || ftruncate(descriptor, off_t(bytes)) == 0 else { return nil }
    let memory = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
    return memory == MAP_FAILED ? nil : memory
  }

  /// Whether this rank speaks for its host, in one file and one look at the run folder.
  var speaksForHost: Bool { local[0] == rank }

  /// The first rank of the next host that there is; nil where all ranks are on one.
  var nextHost: [Int]? {
    guard hosts.count > 1, let index = hosts.firstIndex(of: local) else { return nil }
    return hosts[(index + 1) % hosts.count]
  }

  /// The next rank of this host; nil for a rank that is alone there.
  var nextLocal: Int? {
    guard local.count > 1, let index = local.firstIndex(of: rank) else { return nil }
    return local[(index + 1) % local.count]
  }

  /// Says how this rank is.
  func set(_ row: Row) {
    for (index, value) in [row.ticks, row.step, row.phase, row.isMute ? 1 : 0].enumerated() {
      words[rank * Self.width + index].store(value, ordering: .relaxed)
    }
  }

  /// How a rank of this host is.
  func row(_ rank: Int) -> Row {
    let values = (0..<4).map { words[rank * Self.width + $0].load(ordering: .relaxed) }
    return Row(ticks: values[0], step: values[1], phase: values[2], isMute: values[3] != 0)
  }

  /// This host's ranks, a line each, for the other hosts.
  var text: String {
    local.map { rank in
      let row = row(rank)
      return "\(rank) \(row.ticks) \(row.step) \(row.phase)\n"
    }.joined()
  }

  /// Reads what ``text`` wrote.
  static func parse(_ text: String) -> [Int: Row] {
    var rows: [Int: Row] = [:]
    for line in text.split(separator: "\n") {
      let words = line.split(separator: " ").compactMap { Int($0) }
      if words.count == 4 { rows[words[0]] = Row(ticks: words[1], step: words[2], phase: words[3]) }
    }
    return rows
  }
}
