import CPUBackend
import Foundation
import MPI
import NN
import Tensors

/// Sums gradients over micro-batches and ranks in one fixed binary tree over the global micro-batch index, so that
/// the bits are the same at any number of ranks (docs/design.md, section 5), and shares the arena out (ZeRO stage 1).
///
/// The arena is cut into buckets, of each of which every rank owns a part. A thread of its own reduces a bucket as soon as
/// backward is done with it, and brings the updated parameters back while the next step has begun.
package final class GradientExchange {
  private let world: Communicator
  private let arena: Arena
  /// Blocks of every bucket.
  private let buckets: [Range<Int>]
  /// Indices of the buckets in the order in which backward completes them: that of all ranks.
  private let order: [Int]
  /// Sums of 2^level micro-batches that wait for their neighbour.
  private var levels: [Tensor?] = []

  /// Elements of each bucket that backward is not done with, and how many buckets were handed over.
  private var missing: [Int] = []
  private var handedOver = 0
  private var isComplete: [Range<Int>] = []

  private let thread: CollectiveThread
  /// Where sums arrive, of each bucket under way; of a backend of their own, since a backend serves one thread.
  private let received: [Tensor]
  /// When the parameters of each bucket will be there; empty before the first update.
  private var arrivals: [CollectiveThread.Ticket] = []
  /// Seconds that the main thread waited for gradients and for parameters.
  package private(set) var waited = (gradients: 0.0, parameters: 0.0)

  /// The most blocks of a bucket that one rank owns (4 MiB), and how many buckets there are at least, if the arena allows.
  private static let mostBlocks = 64
  private static let fewestBuckets = 16

  /// Shares `arena` out over the ranks of `world`.
  ///
  /// - Parameter ascends: whether backward reaches the layers from the first to the last, as it does where no gradient
  ///   crosses a layer
  package init(_ arena: Arena, world: Communicator, ascends: Bool = false) {
    self.world = world
    self.arena = arena
    let width = Self.bucketBlocks(arena, ranks: world.size)
    buckets = stride(from: 0, to: arena.blockCount, by: width).map { $0..<min($0 + width, arena.blockCount) }
    order = ascends ? Array(buckets.indices) : buckets.indices.reversed()
    thread = CollectiveThread()
    let summing = CPUBackend(threads: 1)
    received = (0..<(world.size > 1 ? CollectiveThread.depth : 0)).map { _ in summing.empty([width * Arena.blockSize]) }
    begin()
  }

  // The memory of the exchange goes on the main thread, after the last collective that reads it.
  deinit { thread.stop() }

  /// Bytes of the buffers in which sums arrive.
  package static func bufferBytes(_ arena: Arena, ranks: Int) -> Int {
    ranks > 1 ? CollectiveThread.depth * 4 * Arena.blockSize * bucketBlocks(arena, ranks: ranks) : 0
  }

  /// Blocks of a bucket.
  private static func bucketBlocks(_ arena: Arena, ranks: Int) -> Int {
    ranks * min(mostBlocks, max(1, arena.blockCount / (ranks * fewestBuckets)))
  }

  /// Blocks of `bucket` that `rank` owns.
  private func share(_ bucket: Int, of rank: Int) -> Range<Int> {
    let blocks = buckets[bucket]
    let start = blocks.lowerBound
    return start + blocks.count * rank / world.size..<start + blocks.count * (rank + 1) / world.size
  }

  private func elements(_ blocks: Range<Int>) -> Range<Int> {
    blocks.lowerBound * Arena.blockSize..<blocks.upperBound * Arena.blockSize
  }

  /// Elements that this rank owns of each bucket.
  package var slices: [Range<Int>] { buckets.indices.map { elements(share($0, of: world.rank)) } }

  private var backend: any Backend { arena.gradients.backend }

  /// Says what is being exchanged, from any thread, also after the exchange is gone.
  package var place: @Sendable () -> String? { { [weak thread] in thread?.place } }

  // MARK: - Gradients

  private func begin() {
    // The padding behind the last parameter is always complete.
    missing = buckets.map { elements($0).clamped(to: 0..<arena.count).count }
    handedOver = 0
    isComplete = []
  }

  /// Takes the gradients of a micro-batch of this rank that is not its last.
  package func add() {
    arena.endBackward()
    let level = levels.firstIndex { $0 == nil } ?? levels.count
    for lower in levels[..<level] { backend.add(lower!, scale: 1, into: arena.gradients) }
    let kept = backend.empty(arena.gradients.shape)
    backend.copy(arena.gradients, into: kept)
    for index in 0..<level { levels[index] = nil }
    if level == levels.count { levels.append(kept) } else { levels[level] = kept }
  }

  /// Backward of this rank's last micro-batch is done with the elements `range`: whole entries of the arena. What the
  /// other ranks have to give to the buckets that are complete now is added up meanwhile.
  package func complete(_ range: Range<Int>) {
    guard !range.isEmpty else { return }
    arena.endBackward(range)
    for level in levels {
      if let level { backend.add(level.rows(range), scale: 1, into: arena.gradients.rows(range)) }
    }
    isComplete.append(range)
    for (bucket, blocks) in buckets.enumerated() { missing[bucket] -= elements(blocks).clamped(to: range).count }
    guard world.size > 1 else { return }
    while handedOver < order.count, missing[order[handedOver]] == 0 {
      thread.run(reduction(of: order[handedOver], into: received[handedOver % received.count]))
      handedOver += 1
    }
  }

  /// Completes what is left, and waits for the sums: this rank's slices of the gradient arena then hold the sum over the
  /// global batch.
  package func reduce() throws {
    var start = 0
    for range in isComplete.sorted(by: { $0.lowerBound < $1.lowerBound }) {
      complete(start..<range.lowerBound)
      start = range.upperBound
    }
    complete(start..<arena.count)
    for index in levels.indices { levels[index] = nil }
    begin()
    waited.gradients += try thread.waitForAll()
  }

  /// Forgets the micro-batches that were taken: the step is left before its last one.
  package func abandon() {
    levels = []
    begin()
  }

  // MARK: - Votes

  /// What one rank says of leaving the step, to become what any rank says.
  package final class Vote {
    fileprivate let word: UnsafeMutablePointer<Int64>
    fileprivate var ticket: CollectiveThread.Ticket?

    fileprivate init(_ isFor: Bool) {
      word = .allocate(capacity: 1)
      word.initialize(to: isFor ? 1 : 0)
    }

    deinit { word.deallocate() }
  }

  /// Begins a vote, which travels while the rank computes; on all ranks at the same place.
  package func cast(_ isFor: Bool) -> Vote {
    let vote = Vote(isFor)
    guard world.size > 1 else { return vote }
    vote.ticket = thread.run(
      CollectiveThread.Collective(
        name: "vote on stopping", begin: { [world] in try world.background.maximum(vote.word) }, finish: {}))
    return vote
  }

  /// Waits for the votes of all ranks: whether any was for it.
  package func isCarried(_ vote: Vote) throws -> Bool {
    if let ticket = vote.ticket {
      waited.parameters += thread.wait(for: ticket)
      try thread.check()
    }
    return vote.word.pointee > 0
  }

  private func reduction(of bucket: Int, into received: Tensor) -> CollectiveThread.Collective {
    let ranks = world.size
    let shares = (0..<ranks).map { share(bucket, of: $0) }
    let start = buckets[bucket].lowerBound
    let own = elements(shares[world.rank])
    let mine = own.count
    let gradients = arena.gradients
    return CollectiveThread.Collective(
      name: "gradients of bucket \(bucket + 1) of \(buckets.count)",
      begin: { [world] in
        try world.background.allToAll(
          send: gradients.floats + start * Arena.blockSize, sendCounts: shares.map { $0.count * Arena.blockSize },
          sendDisplacements: shares.map { ($0.lowerBound - start) * Arena.blockSize },
          receive: received.floats, receiveCounts: [Int](repeating: mine, count: ranks),
          receiveDisplacements: (0..<ranks).map { $0 * mine })
      },
      finish: {
        guard mine > 0 else { return }
        let backend = received.backend
        var distance = 1
        while distance < ranks {
          for left in stride(from: 0, to: ranks - distance, by: 2 * distance) {
            backend.add(
              received.rows((left + distance) * mine..<(left + distance + 1) * mine), scale: 1,
              into: received.rows(left * mine..<(left + 1) * mine))
          }
          distance *= 2
        }
        backend.copy(received.rows(0..<mine), into: gradients.rows(own))
      })
  }

  /// The norm of the summed gradient, from the sums of squares of all blocks in their order.
  package func norm() throws -> Double {
    let sums = slices.flatMap { backend.sumsOfSquares(arena.gradients.rows($0), blockSize: Arena.blockSize) }
    let counts = (0..<world.size).map { rank in buckets.indices.reduce(0) { $0 + share($1, of: rank).count } }
    let width = counts.max()!
    let all = try world.allGather(sums + [Double](repeating: 0, count: width - sums.count))
    var next = (0..<world.size).map { $0 * width }
    var total = 0.0
    for bucket in buckets.indices {
      for rank in 0..<world.size {
        for _ in share(bucket, of: rank) {
          total += all[next[rank]]
          next[rank] += 1
        }
      }
    }
    return total.squareRoot()
  }

  // MARK: - Parameters

  /// Begins to give every rank the parameters that the others updated, of the next bucket: in ascending order.
  package func shareParameters(_ bucket: Int) {
    guard world.size > 1 else { return }
    if bucket == 0 { arrivals = [] }
    let start = buckets[bucket].lowerBound
    let shares = (0..<world.size).map { rank in
      let blocks = share(bucket, of: rank)
      return (blocks.lowerBound - start) * Arena.blockSize..<(blocks.upperBound - start) * Arena.blockSize
    }
    arrivals.append(
      thread.run(
        CollectiveThread.Collective(
          name: "parameters of bucket \(bucket + 1) of \(buckets.count)",
          begin: { [world, values = arena.values] in
            try world.background.allGather(
              values.floats + start * Arena.blockSize, ranges: shares, rank: world.rank)
          }, finish: {})))
  }

  /// Waits until the parameters of the elements `range` are there. A failure shows in the next ``reduce()`` or
  /// ``settle()``.
  package func waitForParameters(_ range: Range<Int>) {
    guard arrivals.count == buckets.count, !range.isEmpty else { return }
    // They arrive in ascending order.
    let last = (range.upperBound - 1) / (Arena.blockSize * buckets[0].count)
    waited.parameters += thread.wait(for: arrivals[last])
  }

  /// Waits until all parameters are there.
  package func settle() throws { waited.parameters += try thread.waitForAll() }
}
