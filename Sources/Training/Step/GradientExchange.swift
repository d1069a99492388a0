import Fabric
import Foundation
import MPI
import NN
import Tensors

/// Sums gradients over micro-batches and ranks in an order that does not depend on the number of ranks, so that the bits do
/// not either (docs/design.md, section 5), and shares the arena out (ZeRO stage 1).
///
/// The micro-batches of a step are cut into lanes, contiguous and fixed by the job. A lane adds up in the gradient arena,
/// micro-batch by micro-batch; lanes, of which every rank has as many, join in one binary tree.
///
/// The sections of the arena are cut into buckets, of each of which every rank owns a part. A thread of its own reduces a
/// bucket as soon as backward is done with it, and brings the updated parameters back while the next step has begun.
package final class GradientExchange {
  private let world: Communicator
  private let fabric: any Fabric
  private let arena: Arena
  /// Blocks of every bucket.
  private let buckets: [Range<Int>]
  /// Indices of the buckets in the order in which backward completes them: that of all ranks.
  private let order: [Int]
  /// Indices of the buckets in the order in which the next step reads their parameters: that in which they are updated and
  /// shared.
  package let updateOrder: [Int]
  /// Of this rank's lanes that are done: sums of 2^level of them that wait for their neighbour.
  private var levels: [Tensor?] = []
  private var lanesDone = 0

  /// Elements of each bucket that backward is not done with, and how many buckets were handed over.
  private var missing: [Int] = []
  private var handedOver = 0
  private var isComplete: [Range<Int>] = []

  private let thread: CollectiveThread
  /// Where sums arrive, of each bucket under way; of a backend of their own, since a backend serves one thread.
  private let received: [Tensor]
  /// When the parameters of each bucket will be there; nil before the first update.
  private var arrivals: [CollectiveThread.Ticket?]
  /// Seconds that the main thread waited for gradients and for parameters.
  package private(set) var waited = (gradients: 0.0, parameters: 0.0)

  /// The most blocks of a bucket that one rank owns (4 MiB), and how many buckets there are at least, if the arena allows.
  private static let mostBlocks = 64
  private static let fewestBuckets = 16

  /// Shares `arena` out over the ranks of `world`.
  ///
  /// - Parameter ascends: whether backward reaches the layers from the first to the last, as it does where no gradient
  ///   crosses a layer
  package init(_ arena: Arena, world: Communicator, fabric: any Fabric, ascends: Bool = false) {
    self.world = world
    self.arena = arena
    self.fabric = fabric
    let width = Self.bucketBlocks(arena, ranks: world.size)
    buckets = arena.sections.flatMap { section in
      let end = section.blocks.upperBound
      return stride(from: section.blocks.lowerBound, to: end, by: width).map { $0..<min($0 + width, end) }
    }
    // Where sections follow each other, layers do not: a bucket is done with its last parameter, and needed with its first.
    let ordinals = buckets.map { bucket in
      let touched = arena.entries.filter { $0.range.overlaps(Self.elements(bucket)) }.map(\.ordinal)
      return (first: touched.min() ?? 0, last: touched.max() ?? 0)
    }
    updateOrder = buckets.indices.sorted { (ordinals[$0].first, $0) < (ordinals[$1].first, $1) }
    order =
      ascends
      ? buckets.indices.sorted { (ordinals[$0].last, $0) < (ordinals[$1].last, $1) } : updateOrder.reversed()
    arrivals = buckets.map { _ in nil }
    thread = CollectiveThread()
    received = (0..<(world.size > 1 ? CollectiveThread.depth : 0)).map { _ in
      fabric.backend.empty([width * Arena.blockSize])
    }
    begin()
  }

  // The memory of the exchange goes on the main thread, after the last collective that reads it.
  deinit { thread.stop() }

  /// Blocks of a bucket.
  private static func bucketBlocks(_ arena: Arena, ranks: Int) -> Int {
    let blocks = max(1, arena.blockCount / (ranks * fewestBuckets))
    // A rank alone sends nothing: its buckets only say in how many pieces it updates.
    return ranks == 1 ? blocks : ranks * min(mostBlocks, blocks)
  }

  /// Blocks of `bucket` that `rank` owns.
  private func share(_ bucket: Int, of rank: Int) -> Range<Int> {
    let blocks = buckets[bucket]
    let start = blocks.lowerBound
    return start + blocks.count * rank / world.size..<start + blocks.count * (rank + 1) / world.size
  }

  private func elements(_ blocks: Range<Int>) -> Range<Int> { Self.elements(blocks) }

  private static func elements(_ blocks: Range<Int>) -> Range<Int> {
    blocks.lowerBound * Arena.blockSize..<blocks.upperBound * Arena.blockSize
  }

  /// Elements that this rank owns of each bucket.
  package var slices: [Range<Int>] { buckets.indices.map { elements(share($0, of: world.rank)) } }

  private var backend: any Backend { arena.backend }

  /// Says what is being exchanged, from any thread, also after the exchange is gone.
  package var place: @Sendable () -> String? { { [weak thread] in thread?.place } }

  // MARK: - Gradients

  private func begin() {
    // The padding behind the last parameter of a section is always complete.
    missing = buckets.map { bucket in
      arena.sections.reduce(0) { $0 + elements(bucket).clamped(to: $1.elements).count }
    }
    handedOver = 0
    isComplete = arena.sections.map { $0.elements.upperBound..<$0.range.upperBound }.filter { !$0.isEmpty }
    levels = []
    lanesDone = 0
  }

  /// A lane of this rank begins: its micro-batches add up in the arena from here on.
  package func beginLane() { arena.beginBackward() }

  /// A lane of this rank that is not its last is done; `isEmpty` when it had no micro-batch.
  package func endLane(isEmpty: Bool) {
    if !isEmpty { arena.endBackward() }
    // A binary counter: the sum of this lane and of those that wait for it moves up to the first free level.
    var level = 0
    var waiting: Tensor?
    while lanesDone >> level & 1 == 1 {
      if let lower = levels[level] {
        if !isEmpty {
          backend.add(lower, scale: 1, into: arena.gradients)
        } else if let sum = waiting {
          backend.add(sum, scale: 1, into: lower)
          waiting = lower
        } else {
          waiting = lower
        }
      }
      levels[level] = nil
      level += 1
    }
    lanesDone += 1
    if !isEmpty {
      let kept = backend.empty(arena.gradients.shape)
      backend.copy(arena.gradients, into: kept)
      waiting = kept
    }
    if level == levels.count { levels.append(waiting) } else { levels[level] = waiting }
  }

  /// Backward of this rank's last micro-batch is done with the elements `range`: whole entries of the arena. What the
  /// other lanes have to give to the buckets that are complete now is added up meanwhile.
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
      thread.run(
        reduction(of: order[handedOver], into: received[handedOver % received.count], after: backend.mark()))
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
    complete(start..<arena.blockCount * Arena.blockSize)
    begin()
    let (seconds, event) = try thread.waitForAll()
    waited.gradients += seconds
    backend.hold(until: event)
  }

  /// Forgets the micro-batches that were taken: the step is left before its last one.
  package func abandon() { begin() }

  private func reduction(
    of bucket: Int, into received: Tensor, after ready: any Event
  ) -> CollectiveThread.Collective {
    let shares = (0..<world.size).map { elements(share(bucket, of: $0)) }
    let own = shares[world.rank]
    let mine = own.count
    let gradients = arena.gradients
    return CollectiveThread.Collective(
      name: "gradients of bucket \(bucket + 1) of \(buckets.count)",
      begin: { [fabric] in try fabric.allToAll(gradients, shares, into: received, after: ready) },
      finish: {
        let backend = received.backend
        // Who waits for the last exchange waits for the sums of those before it, too.
        guard mine > 0 else { return backend.mark() }
        var distance = 1
        while distance < shares.count {
          for left in stride(from: 0, to: shares.count - distance, by: 2 * distance) {
            backend.add(
              received.rows((left + distance) * mine..<(left + distance + 1) * mine), scale: 1,
              into: received.rows(left * mine..<(left + 1) * mine))
          }
          distance *= 2
        }
        backend.copy(received.rows(0..<mine), into: gradients.rows(own))
        return backend.mark()
      })
  }

  /// Blocks that `rank` owns, of all buckets.
  private func blockCount(of rank: Int) -> Int { buckets.indices.reduce(0) { $0 + share($1, of: rank).count } }

  /// Blocks that this rank owns.
  package var ownedBlocks: Int { blockCount(of: world.rank) }

  /// squares [``ownedBlocks``] = the sums of squares of this rank's blocks of the summed gradient, bucket by bucket.
  package func sumSquares(into squares: Tensor) {
    var first = 0
    for bucket in buckets.indices {
      let blocks = share(bucket, of: world.rank)
      backend.sumsOfSquares(
        arena.gradients.rows(elements(blocks)), blockSize: Arena.blockSize,
        into: squares.rows(first..<first + blocks.count))
      first += blocks.count
    }
  }

  /// The norm of the summed gradient, from the squares of all ranks' blocks in the order of the arena.
  ///
  /// - Parameter squares: what ``sumSquares(into:)`` has found on this rank
  package func norm(ofSquares squares: [Double]) throws -> Double {
    let width = (0..<world.size).map(blockCount).max()!
    let all = try world.allGather(squares + [Double](repeating: 0, count: width - squares.count))
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

  // MARK: - Votes

  /// What one rank says of leaving the step, to become what any rank says.
  package struct Vote {
    fileprivate let flag: Flag
    fileprivate let ticket: CollectiveThread.Ticket?
  }

  /// Begins a vote, which travels while the rank computes; on all ranks at the same place.
  package func cast(_ isFor: Bool) -> Vote {
    let flag = Flag(isFor)
    guard world.size > 1 else { return Vote(flag: flag, ticket: nil) }
    let ticket = thread.run(
      CollectiveThread.Collective(
        name: "vote on stopping", begin: { [fabric] in try fabric.any(flag) }, finish: { PassedEvent() }))
    return Vote(flag: flag, ticket: ticket)
  }

  /// Waits for the votes of all ranks: whether any was for it.
  package func isCarried(_ vote: Vote) throws -> Bool {
    if let ticket = vote.ticket { waited.parameters += try thread.wait(for: ticket).seconds }
    return vote.flag.isRaised
  }

  // MARK: - Parameters

  /// Begins to give every rank the parameters that the others updated, of one bucket: in ``updateOrder``.
  package func shareParameters(_ bucket: Int) {
    guard world.size > 1 else { return }
    let range = elements(buckets[bucket])
    arrivals[bucket] = gather(bucket, into: arena.values(range), from: range.lowerBound)
  }

  /// Begins to give every rank what the others own of a bucket in `values`, which begins with the element `start`.
  private func gather(_ bucket: Int, into values: Tensor, from start: Int) -> CollectiveThread.Ticket {
    let shares = (0..<world.size).map { rank in
      let share = elements(share(bucket, of: rank))
      return share.lowerBound - start..<share.upperBound - start
    }
    let ready = backend.mark()
    return thread.run(
      CollectiveThread.Collective(
        name: "parameters of bucket \(bucket + 1) of \(buckets.count)",
        begin: { [fabric] in try fabric.allGather(values, shares, after: ready) }, finish: { PassedEvent() }))
  }

  /// Gives every rank all of `values`, of the elements of a section, of which every rank has put in what it owns.
  package func gather(_ section: Arena.Section, into values: Tensor) throws {
    guard world.hasOthers else { return }
    for (bucket, blocks) in buckets.enumerated() where section.blocks.contains(blocks.lowerBound) {
      _ = gather(bucket, into: values, from: section.range.lowerBound)
    }
    try waitForParameters()
  }

  /// Waits until the parameters of the elements `range` are there. A failure shows in the next ``reduce()``.
  package func waitForParameters(_ range: Range<Int>) {
    let tickets = buckets.indices.compactMap { elements(buckets[$0]).overlaps(range) ? arrivals[$0] : nil }
    guard let last = tickets.max(), let (seconds, event) = try? thread.wait(for: last) else { return }
    waited.parameters += seconds
    backend.hold(until: event)
  }

  /// Waits until all parameters are there.
  package func waitForParameters() throws {
    let (seconds, event) = try thread.waitForAll()
    waited.parameters += seconds
    backend.hold(until: event)
  }
}
