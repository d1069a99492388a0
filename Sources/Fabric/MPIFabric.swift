import CPUBackend
import MPI
import Tensors

/// A fabric of nonblocking MPI collectives, for tensors in host memory. It is used by one thread at a time, beside another
/// that calls MPI (``Communicator/background``).
package final class MPIFabric: Fabric {
  private let rank: Int
  private let communicator: BackgroundCommunicator

  package init(_ world: Communicator) {
    rank = world.rank
    communicator = world.background
  }

  package func allToAll(
    _ send: Tensor, _ ranges: [Range<Int>], into received: Tensor, after ready: any Event
  ) throws -> any Transfer {
    ready.wait()
    let mine = ranges[rank].count
    // MPI counts in 32 bits: from where the ranges begin, not from where the tensor does.
    let start = ranges[0].lowerBound
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
    return buffer.dtype == .bfloat16
      ? try communicator.allGather(buffer.bfloats + start, ranges: parts, rank: rank)
      : try communicator.allGather(buffer.floats + start, ranges: parts, rank: rank)
  }

  package func any(_ flag: Flag) throws -> any Transfer { try communicator.maximum(flag.word) }
}

extension PendingExchange: Transfer {}
