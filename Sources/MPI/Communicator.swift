import CMPI
import Foundation
import Synchronization

/// A failed MPI call: which one, and what the library says of it.
package struct MPIError: Error, CustomStringConvertible {
  package let operation: String
  package let code: Int32

  package var description: String {
    var text = [CChar](repeating: 0, count: Int(MPI_MAX_ERROR_STRING))
    var length: Int32 = 0
    _ = MPI_Error_string(code, &text, &length)
    let reason = String(decoding: text.prefix(Int(length)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    return "\(operation) failed: \(reason)"
  }
}

/// The processes of one job. A process that no launcher started is a world of one, and calls no MPI at all.
///
/// Every collective returns when it is done and must be entered by all ranks in the same order, by one thread. A second
/// thread may exchange large arrays over ``background`` meanwhile; MPI itself is only ever entered by one of the two, and
/// neither waits inside it.
package final class Communicator {
  package let rank: Int
  package let size: Int
  /// Ranks on this host, this one included.
  package let localSize: Int

  /// Open MPI's handle; of a world of one there is none.
  let handle: MPI_Comm?
  /// The same ranks again, for a second thread, whose exchanges are not mistaken for those of the first.
  package let background: BackgroundCommunicator
  /// The same once more, for the thread that brings files to another host.
  package let files: BackgroundCommunicator

  private init(rank: Int, size: Int, localSize: Int, handle: MPI_Comm?) throws {
    self.rank = rank
    self.size = size
    self.localSize = localSize
    self.handle = handle
    background = try BackgroundCommunicator(duplicating: handle)
    files = try BackgroundCommunicator(duplicating: handle)
  }

  private init(size: Int) {
    (rank, self.size, localSize, handle) = (0, size, size, nil)
    background = BackgroundCommunicator()
    files = BackgroundCommunicator()
  }

  /// A world of this process alone.
  package static var alone: Communicator { Communicator(size: 1) }

  /// The coordinator of a world that exists on paper, to count what it would hold. It cannot speak to the others.
  package static func counted(size: Int) -> Communicator { Communicator(size: size) }

  package var isCoordinator: Bool { rank == 0 }

  /// Whether there are other ranks to speak to: not in a world of one, nor in one that exists on paper.
  package var hasOthers: Bool { handle != nil && size > 1 }

  fileprivate static var wasLaunched: Bool {
    let environment = ProcessInfo.processInfo.environment
    return ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"].contains { environment[$0] != nil }
  }

  fileprivate static func initialize() throws -> Communicator {
    var provided: Int32 = 0
    try check("MPI_Init_thread", MPI_Init_thread(nil, nil, Int32(MPI_THREAD_SERIALIZED), &provided))
    guard provided >= MPI_THREAD_SERIALIZED else {
      throw MPIError(operation: "MPI_Init_thread (this MPI allows no second thread)", code: MPI_ERR_OTHER)
    }
    MPI_Comm_set_errhandler(jettrain_comm_world(), jettrain_errors_return())
    var rank: Int32 = 0
    var size: Int32 = 0
    try check("MPI_Comm_rank", MPI_Comm_rank(jettrain_comm_world(), &rank))
    try check("MPI_Comm_size", MPI_Comm_size(jettrain_comm_world(), &size))
    // Launchers other than mpirun do not say how many ranks share a host.
    var neighbours: MPI_Comm?
    var local: Int32 = 1
    try check(
      "MPI_Comm_split_type",
      MPI_Comm_split_type(
        jettrain_comm_world(), jettrain_type_shared(), rank, jettrain_info_null(), &neighbours))
    try check("MPI_Comm_size", MPI_Comm_size(neighbours, &local))
    try check("MPI_Comm_free", MPI_Comm_free(&neighbours))
    return try Communicator(rank: Int(rank), size: Int(size), localSize: Int(local), handle: jettrain_comm_world())
  }

  /// One thread at a time is inside MPI.
  static let turn = Mutex(())

  fileprivate static func check(_ operation: String, _ call: @autoclosure () -> Int32) throws {
    let code = turn.withLock { _ in call() }
    guard code == MPI_SUCCESS else { throw MPIError(operation: operation, code: code) }
  }

  /// The ranks that give the same `color`, in their order here. Every rank must call it.
  package func split(_ color: Int) throws -> Communicator {
    guard size > 1 else { return self }
    var handle: MPI_Comm?
    try Self.check("MPI_Comm_split", MPI_Comm_split(self.handle, Int32(color), Int32(self.rank), &handle))
    MPI_Comm_set_errhandler(handle, jettrain_errors_return())
    var rank: Int32 = 0
    var size: Int32 = 0
    try Self.check("MPI_Comm_rank", MPI_Comm_rank(handle, &rank))
    try Self.check("MPI_Comm_size", MPI_Comm_size(handle, &size))
    return try Communicator(rank: Int(rank), size: Int(size), localSize: localSize, handle: handle)
  }

  /// Messages that this process gave to MPI, collectives counting as one each, and their bytes.
  package static var traffic: (messages: Int, bytes: Int) {
    (messages.load(ordering: .relaxed), bytes.load(ordering: .relaxed))
  }

  private static let messages = Atomic(0)
  private static let bytes = Atomic(0)

  fileprivate static func count(_ bytes: Int) {
    messages.add(1, ordering: .relaxed)
    Self.bytes.add(bytes, ordering: .relaxed)
  }

  /// Looks at an operation before the waiting thread sleeps between looks, and how long it sleeps, in microseconds.
  private static let eagerLooks = 50
  private static let pause: UInt32 = 50

  /// Runs a collective, or a message, to its end. Between looks the other thread may enter MPI: what it has to begin would
  /// otherwise wait for the slowest rank's arrival here.
  fileprivate static func complete(
    _ operation: String, bytes: Int, _ start: (inout MPI_Request?) -> Int32
  ) throws {
    count(bytes)
    var request: MPI_Request?
    try check(operation, start(&request))
    var looks = 0
    while true {
      var isDone: Int32 = 0
      try check(operation, MPI_Test(&request, &isDone, jettrain_status_ignore()))
      if isDone != 0 { return }
      looks += 1
      if looks < eagerLooks { sched_yield() } else { usleep(pause) }
    }
  }

  /// Sums `values` element by element over all ranks, in place.
  package func sum(_ values: inout [Int64]) throws {
    guard size > 1 else { return }
    try values.withUnsafeMutableBufferPointer { values in
      try Self.complete("MPI_Iallreduce", bytes: 8 * values.count) {
        MPI_Iallreduce(
          jettrain_in_place(), values.baseAddress, Int32(values.count), jettrain_int64(), jettrain_sum(), handle, &$0)
      }
    }
  }

  /// Every rank's `values`, in rank order; each rank must give the same number of them.
  package func allGather(_ values: [Double]) throws -> [Double] {
    guard size > 1 else { return values }
    var gathered = [Double](repeating: 0, count: values.count * size)
    try gathered.withUnsafeMutableBufferPointer { gathered in
      try values.withUnsafeBufferPointer { values in
        try Self.complete("MPI_Iallgather", bytes: 8 * values.count) {
          MPI_Iallgather(
            values.baseAddress, Int32(values.count), jettrain_double(), gathered.baseAddress, Int32(values.count),
            jettrain_double(), handle, &$0)
        }
      }
    }
    return gathered
  }

  /// Concatenates the ranks' byte strings, of any lengths, in rank order.
  package func allGather(_ bytes: [UInt8]) throws -> [[UInt8]] {
    guard size > 1 else { return [bytes] }
    var counts = [Int64](repeating: 0, count: size)
    counts[rank] = Int64(bytes.count)
    try sum(&counts)
    let lengths = counts.map { Int32($0) }
    var displacements = [Int32](repeating: 0, count: size)
    for r in 1..<size { displacements[r] = displacements[r - 1] + lengths[r - 1] }
    var gathered = [UInt8](repeating: 0, count: Int(counts.reduce(0, +)))
    try gathered.withUnsafeMutableBufferPointer { gathered in
      try lengths.withUnsafeBufferPointer { lengths in
        try displacements.withUnsafeBufferPointer { displacements in
          try bytes.withUnsafeBufferPointer { bytes in
            try Self.complete("MPI_Iallgatherv", bytes: bytes.count) {
              MPI_Iallgatherv(
                bytes.baseAddress, lengths[rank], jettrain_byte(), gathered.baseAddress, lengths.baseAddress,
                displacements.baseAddress, jettrain_byte(), handle, &$0)
            }
          }
        }
      }
    }
    return (0..<size).map { Array(gathered[Int(displacements[$0])..<Int(displacements[$0] + lengths[$0])]) }
  }

  /// The bytes that `root` holds, on every rank.
  package func broadcast(_ bytes: [UInt8], from root: Int = 0) throws -> [UInt8] {
    guard size > 1 else { return bytes }
    var count = [Int64(rank == root ? bytes.count : 0)]
    try sum(&count)
    var buffer = rank == root ? bytes : [UInt8](repeating: 0, count: Int(count[0]))
    try buffer.withUnsafeMutableBytes { try broadcast($0, from: root) }
    return buffer
  }

  /// Fills `buffer`, of the same size on every rank, with what `root` holds in it.
  package func broadcast(_ buffer: UnsafeMutableRawBufferPointer, from root: Int = 0) throws {
    guard size > 1 else { return }
    // MPI counts in 32 bits.
    for first in stride(from: 0, to: buffer.count, by: 1 << 30) {
      let count = min(1 << 30, buffer.count - first)
      try Self.complete("MPI_Ibcast", bytes: rank == root ? count : 0) {
        MPI_Ibcast(buffer.baseAddress! + first, Int32(count), jettrain_byte(), Int32(root), handle, &$0)
      }
    }
  }

  /// Gives `bytes` to another rank, which must call ``receive(from:)``.
  package func send(_ bytes: [UInt8], to rank: Int) throws { try Self.send(bytes, to: rank, handle) }

  /// What another rank sends by ``send(_:to:)``.
  package func receive(from rank: Int) throws -> [UInt8] { try Self.receive(from: rank, handle) }

  fileprivate static func send(_ bytes: [UInt8], to rank: Int, _ handle: MPI_Comm?) throws {
    var count = Int64(bytes.count)
    try withUnsafeMutablePointer(to: &count) { count in
      try complete("MPI_Isend", bytes: 8) { MPI_Isend(count, 1, jettrain_int64(), Int32(rank), 0, handle, &$0) }
    }
    try bytes.withUnsafeBufferPointer { bytes in
      try complete("MPI_Isend", bytes: bytes.count) {
        MPI_Isend(bytes.baseAddress, Int32(bytes.count), jettrain_byte(), Int32(rank), 0, handle, &$0)
      }
    }
  }

  fileprivate static func receive(from rank: Int, _ handle: MPI_Comm?) throws -> [UInt8] {
    var count: Int64 = 0
    try withUnsafeMutablePointer(to: &count) { count in
      try complete("MPI_Irecv", bytes: 0) { MPI_Irecv(count, 1, jettrain_int64(), Int32(rank), 0, handle, &$0) }
    }
    var bytes = [UInt8](repeating: 0, count: Int(count))
    try bytes.withUnsafeMutableBufferPointer { bytes in
      try complete("MPI_Irecv", bytes: 0) {
        MPI_Irecv(bytes.baseAddress, Int32(bytes.count), jettrain_byte(), Int32(rank), 0, handle, &$0)
      }
    }
    return bytes
  }

  /// Waits until every rank is here.
  package func barrier() throws {
    guard size > 1 else { return }
    try Self.complete("MPI_Ibarrier", bytes: 0) { MPI_Ibarrier(handle, &$0) }
  }
}

/// Exchanges of large arrays by a thread that is not the main one. They only begin here; between looks at how far they are
/// (``PendingExchange``) the thread may sleep, so that it takes no core from those that compute: Open MPI goes on only while
/// some thread is inside it.
package final class BackgroundCommunicator: @unchecked Sendable {
  let handle: MPI_Comm?

  fileprivate init() { handle = nil }

  fileprivate init(duplicating original: MPI_Comm?) throws {
    var handle: MPI_Comm?
    try Communicator.check("MPI_Comm_dup", MPI_Comm_dup(original, &handle))
    MPI_Comm_set_errhandler(handle, jettrain_errors_return())
    self.handle = handle
  }

  /// Begins to send `sendCounts[r]` elements at `sendDisplacements[r]` of `send` to rank r, and to receive the same from
  /// each.
  package func allToAll<Element: ExchangedElement>(
    send: UnsafePointer<Element>, sendCounts: [Int], sendDisplacements: [Int],
    receive: UnsafeMutablePointer<Element>, receiveCounts: [Int], receiveDisplacements: [Int]
  ) throws -> PendingExchange {
    Communicator.count(sendCounts.reduce(0, +) * MemoryLayout<Element>.size)
    return try PendingExchange("MPI_Ialltoallv", [sendCounts, sendDisplacements, receiveCounts, receiveDisplacements]) {
      MPI_Ialltoallv(
        send, $0[0], $0[1], Element.mpiType, receive, $0[2], $0[3], Element.mpiType, handle, &$1)
    }
  }

  /// Gives `bytes` to another rank, which must call ``receive(from:)``; returns when they have left.
  package func send(_ bytes: [UInt8], to rank: Int) throws { try Communicator.send(bytes, to: rank, handle) }

  /// What another rank sends by ``send(_:to:)``; returns when it is there.
  package func receive(from rank: Int) throws -> [UInt8] { try Communicator.receive(from: rank, handle) }

  /// Begins to find the largest of the ranks' `word`s, which takes its place.
  package func maximum(_ word: UnsafeMutablePointer<Int64>) throws -> PendingExchange {
    Communicator.count(8)
    return try PendingExchange("MPI_Iallreduce", []) {
      MPI_Iallreduce(jettrain_in_place(), word, 1, jettrain_int64(), jettrain_max(), handle, &$1)
    }
  }

  /// Begins to give every rank what the others hold, in place: rank r owns `ranges[r]` of `buffer`.
  ///
  /// An exchange of all with all, since Open MPI 4.1's MPI_Iallgatherv used two thirds of a link (Cluster/testbed, 1 Gbit/s).
  package func allGather<Element: ExchangedElement>(
    _ buffer: UnsafeMutablePointer<Element>, ranges: [Range<Int>], rank: Int
  ) throws -> PendingExchange {
    func others(_ value: (Int) -> Int) -> [Int] { ranges.indices.map { $0 == rank ? 0 : value($0) } }
    // Open MPI takes equal addresses for MPI_IN_PLACE and would send what it is to receive: they must differ.
    return try allToAll(
      send: buffer + 1, sendCounts: others { _ in ranges[rank].count },
      sendDisplacements: others { _ in ranges[rank].lowerBound - 1 },
      receive: buffer, receiveCounts: others { ranges[$0].count },
      receiveDisplacements: others { ranges[$0].lowerBound })
  }
}

/// An element of the arrays that ranks exchange.
package protocol ExchangedElement {
  /// Open MPI's name of it.
  static var mpiType: MPI_Datatype { get }
}

extension Float: ExchangedElement {
  package static var mpiType: MPI_Datatype { jettrain_float() }
}

/// The bits of a bfloat16, which are carried and never added.
extension UInt16: ExchangedElement {
  package static var mpiType: MPI_Datatype { jettrain_uint16() }
}

/// An exchange that has begun. What it sends and receives must stay where it is until it is done.
package final class PendingExchange {
  private let operation: String
  private var request: MPI_Request?
  /// MPI reads the counts until the exchange ends.
  private let counts: [UnsafeMutablePointer<Int32>]
  private var isOver = false

  init(
    _ operation: String, _ counts: [[Int]], start: ([UnsafeMutablePointer<Int32>], inout MPI_Request?) -> Int32
  ) throws {
    self.operation = operation
    self.counts = counts.map { values in
      let copy = UnsafeMutablePointer<Int32>.allocate(capacity: values.count)
      for (index, value) in values.enumerated() { copy[index] = Int32(value) }
      return copy
    }
    try Communicator.check(operation, start(self.counts, &request))
  }

  // What an error left under way MPI may still read: its counts are never given back.
  deinit { if isOver { for copy in counts { copy.deallocate() } } }

  /// Whether it has ended; lets MPI go on with it.
  package func isDone() throws -> Bool {
    var isDone: Int32 = 0
    try Communicator.check(operation, MPI_Test(&request, &isDone, jettrain_status_ignore()))
    if isDone != 0 { isOver = true }
    return isOver
  }
}

/// The life of MPI as a scope: initialised before `body`, finalised after it. When `body` throws, MPI stays up,
/// so that the caller can still agree with the other ranks or abort.
package func withMPI<Result>(_ body: (Communicator) throws -> Result) throws -> Result {
  guard Communicator.wasLaunched else { return try body(.alone) }
  let world = try Communicator.initialize()
  let result = try body(world)
  try Communicator.check("MPI_Finalize", MPI_Finalize())
  return result
}
