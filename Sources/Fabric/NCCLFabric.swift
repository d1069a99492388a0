import CUDA
import CUDABackend
import MPI
import Tensors

/// A fabric between cards: NCCL carries what lies on them, MPI the flags.
package final class NCCLFabric: Fabric {
  private let communicator: BackgroundCommunicator
  private let exchange: CardExchange
  private let rank: Int
  private let card: CUDABackend
  /// In whose stream the exchanges are.
  package var backend: any Backend { card }

  /// Every rank must call it, each with a card of its own.
  init(_ world: Communicator, _ card: CUDABackend) throws {
    communicator = world.background
    (rank, self.card) = (world.rank, card)
    let identity = try world.broadcast(world.isCoordinator ? CardExchange.makeIdentity().bytes : [])
    exchange = try CardExchange(card.device, CardExchange.Identity(identity), rank: world.rank, of: world.size)
  }

  package var description: String { "NCCL \(exchange.version / 10_000).\(exchange.version / 100 % 100)" }

  package func allToAll(
    _ send: Tensor, _ ranges: [Range<Int>], into received: Tensor, after ready: any Tensors.Event
  ) throws -> any Transfer {
    card.hold(until: ready)
    let mine = ranges[rank].count
    try exchange.exchange(
      sending: ranges.indices.map { part(of: send, ranges[$0], peer: $0) },
      receiving: ranges.indices.map { part(of: received, $0 * mine..<($0 + 1) * mine, peer: $0) })
    return CardTransfer(exchange, card.mark())
  }

  package func allGather(_ buffer: Tensor, _ ranges: [Range<Int>], after ready: any Tensors.Event) throws
    -> any Transfer
  {
    card.hold(until: ready)
    let others = ranges.indices.filter { $0 != rank }
    try exchange.exchange(
      sending: others.map { part(of: buffer, ranges[rank], peer: $0) },
      receiving: others.map { part(of: buffer, ranges[$0], peer: $0) })
    return CardTransfer(exchange, card.mark())
  }

  package func any(_ flag: Flag) throws -> any Transfer { try communicator.maximum(flag.word) }

  private func part(of x: Tensor, _ elements: Range<Int>, peer: Int) -> CardExchange.Part {
    CardExchange.Part(
      peer: peer, address: card.address(of: x) + UInt64(elements.lowerBound * x.dtype.size),
      byteCount: elements.count * x.dtype.size)
  }
}

/// An exchange in a card's stream.
private final class CardTransfer: Transfer {
  private let exchange: CardExchange
  private let end: any Tensors.Event

  init(_ exchange: CardExchange, _ end: any Tensors.Event) { (self.exchange, self.end) = (exchange, end) }

  func isDone() throws -> Bool {
    if end.isDone { return true }
    try exchange.check()
    return false
  }
}
