import CPUBackend
import MPI
import Tensors

/// A fabric of nonblocking MPI collectives. Tensors of a device with memory of its own pass through host memory. It is used
/// by one thread at a time, beside another that calls MPI (``Communicator/background``).
package final class MPIFabric: Fabric {
  private let rank: Int
  private let communicator: BackgroundCommunicator
  package let backend: any Backend

  /// - Parameter backend: of the device whose tensors travel, for the thread that exchanges
  package init(_ world: Communicator, _ backend: any Backend) {
    rank = world.rank
    communicator = world.background
    self.backend = backend
  }

  package var description: String { "MPI" }

  package func allToAll(
    _ send: Tensor, _ ranges: [Range<Int>], into received: Tensor, after ready: any Event
  ) throws -> any Transfer {
    ready.wait()
    let mine = ranges[rank].count
    // MPI counts in 32 bits: from where the ranges begin, not from where the tensor does.
    let start = ranges[0].lowerBound
    if !(backend is CPUBackend) {
      let all = ranges[0].lowerBound..<ranges[ranges.count - 1].upperBound
      let (outgoing, incoming) = (HostCopy(all.count * 4), HostCopy(ranges.count * mine * 4))
      if !all.isEmpty { backend.download(send.rows(all), into: outgoing.bytes).wait() }
      let exchange = try communicator.allToAll(
        send: outgoing.floats, sendCounts: ranges.map(\.count),
        sendDisplacements: ranges.map { $0.lowerBound - start }, receive: incoming.floats,
        receiveCounts: [Int](repeating: mine, count: ranges.count),
        receiveDisplacements: ranges.indices.map { $0 * mine })
      return StagedTransfer(exchange, keeping: outgoing) { [backend] in
        incoming.upload(to: received.rows(0..<ranges.count * mine), by: backend)
      }
    }
    return try communicator.allToAll(
      send: send.floats + start, sendCounts: ranges.map(\.count),
      sendDisplacements: ranges.map { $0.lowerBound - start },
      receive: received.floats, receiveCounts: [Int](repeating: mine, count: ranges.count),
      receiveDisplacements: ranges.indices.map { $0 * mine })
  }

  package func allGather(_ buffer: Tensor, _ ranges: [Range<Int>], after ready: any Event) throws -> any Transfer {
    ready.wait()
    let start = ranges[0].lowerBound
    let parts = ranges.map { $0.lowerBound - start..<$0.upperBound - start }
    if !(backend is CPUBackend) {
      let all = start..<ranges[ranges.count - 1].upperBound
      let host = HostCopy(all.count * buffer.dtype.size)
      let own = UnsafeMutableRawBufferPointer(
        rebasing: host.bytes[parts[rank].lowerBound * buffer.dtype.size..<parts[rank].upperBound * buffer.dtype.size])
      if !ranges[rank].isEmpty { backend.download(buffer.rows(ranges[rank]), into: own).wait() }
      let exchange =
        buffer.dtype == .bfloat16
        ? try communicator.allGather(host.words, ranges: parts, rank: rank)
        : try communicator.allGather(host.floats, ranges: parts, rank: rank)
      return StagedTransfer(exchange, keeping: host) { [backend] in host.upload(to: buffer.rows(all), by: backend) }
    }
    return buffer.dtype == .bfloat16
      ? try communicator.allGather(buffer.bfloats + start, ranges: parts, rank: rank)
      : try communicator.allGather(buffer.floats + start, ranges: parts, rank: rank)
  }

  package func any(_ flag: Flag) throws -> any Transfer { try communicator.maximum(flag.word) }
}

extension PendingExchange: Transfer {}

/// Host memory that the elements of a device pass through.
private final class HostCopy {
  let bytes: UnsafeMutableRawBufferPointer

  init(_ count: Int) { bytes = .allocate(byteCount: max(count, 8), alignment: 64) }
  deinit { bytes.deallocate() }

  var floats: UnsafeMutablePointer<Float> { bytes.baseAddress!.assumingMemoryBound(to: Float.self) }
  var words: UnsafeMutablePointer<UInt16> { bytes.baseAddress!.assumingMemoryBound(to: UInt16.self) }

  /// Returns when the elements are there: whoever waits for the transfer knows nothing of this backend.
  func upload(to x: Tensor, by backend: any Backend) {
    guard x.count > 0 else { return }
    backend.upload(UnsafeRawBufferPointer(rebasing: bytes[..<(x.count * x.dtype.size)]), into: x).wait()
    backend.mark().wait()
  }
}

/// An exchange of copies in host memory, which are brought to their device when it has ended.
private final class StagedTransfer: Transfer {
  private let exchange: PendingExchange
  private let kept: HostCopy
  private var arrive: (() -> Void)?

  init(_ exchange: PendingExchange, keeping kept: HostCopy, arrive: @escaping () -> Void) {
    (self.exchange, self.kept, self.arrive) = (exchange, kept, arrive)
  }

  func isDone() throws -> Bool {
    guard let arrive else { return true }
    guard try exchange.isDone() else { return false }
    arrive()
    self.arrive = nil
    return true
  }
}
