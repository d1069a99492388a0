import Fabric
import Files
import Foundation
import MPI
import Models
import NN
import Optimizers
import Tensors
import TokenStreams

/// What one optimizer step did.
package struct StepResult {
  /// Means per token over the global batch.
  package var losses: LossSums
  /// The sum that was minimised.
  package var loss: Double
  package var gradientNorm: Double
  /// Seconds by phase of the step: compute, reduce, update, and share: what compute waited for parameters. With reduce it
  /// is the communication that shows.
  package var seconds: [String: Double]
  /// Whether any rank wants the run to stop.
  package var isStopAsked: Bool
  /// Whether a save is due by the clock.
  package var isSaveDue: Bool
  /// Whether all ranks have written their parts of the save under way.
  package var isSaveWritten: Bool
  /// What all ranks have asked of file systems and of each other since they began.
  package var operations: Operations
  /// Ranks whose host cannot show that it lives.
  package var muteRanks: [Int]
  /// Whether the update was left out.
  package var isSkipped: Bool
  /// Seconds that each rank took to read its data, and for its micro-batches.
  package var rankSeconds: (data: [Double], compute: [Double])
}

/// What a rank tells the others with every step.
package struct RankFlags: OptionSet, Sendable {
  package let rawValue: Int
  package init(rawValue: Int) { self.rawValue = rawValue }
  package static let wantsStop = RankFlags(rawValue: 1)
  package static let hasWritten = RankFlags(rawValue: 2)
  /// Of the coordinator alone, whose clock counts.
  package static let wantsSave = RankFlags(rawValue: 4)
  /// The file that shows that this rank's host lives cannot be written.
  package static let isMute = RankFlags(rawValue: 8)
}

/// One optimizer step over all ranks: every rank's micro-batches forward and backward, the reduction, the update.
package final class StepRunner {
  package let arena: Arena
  package let optimizer: AdamW
  private let exchange: GradientExchange
  private let phase: Phase
  private let world: Communicator
  private let losses: MicroBatchLosses
  /// Where the parts of the student lie in the arena.
  private let places: [ModelPart: [Range<Int>]]
  /// Is told what the main thread does.
  package var watchdog: Watchdog? { didSet { watchdog?.watch(exchange.place) } }
  /// Called before an update changes parameters and moments.
  package var willUpdate: () -> Void = {}
  /// Whether gradients and parameters travel while the ranks compute.
  package var overlaps = true
  /// Whether the last step took so long, on some rank, that one had better be left than finished when the run is to stop.
  private var isSlow = true

  /// Seconds of a rank's micro-batches from which on a step is slow.
  private static let slowSeconds = 1.0

  /// Moves the parameters that `phase` trains into an arena and gives this rank its part of the optimizer state.
  package init(
    student: HybridLM, teacher: HybridLM?, phase: Phase, world: Communicator, fabric: any Fabric, backend: any Backend
  ) {
    self.phase = phase
    self.world = world
    let backend = backend
    backend.activationType = phase.compute == .bfloat16 ? .bfloat16 : .float32
    arena = Arena(gathering: student.store, precision: phase.compute, backend: backend) {
      phase.trains($0, of: student)
    }
    losses = MicroBatchLosses(
      student: student, teacher: phase.losses.needsTeacher ? teacher : nil, weights: phase.losses,
      recompute: phase.recompute, backend: backend)
    exchange = GradientExchange(arena, world: world, fabric: fabric, ascends: !losses.crossesLayers)
    optimizer = AdamW(arena, slices: exchange.slices, settings: phase.adam) {
      PathUpdates.group(of: $0, in: student)
    }
    // The optimizer has its masters.
    arena.begin()
    places = Self.places(of: arena)
  }

  /// Puts the runner of `phase` in the place of that of the phase before, which goes first: gradients and moments at once,
  /// values as the parameters move. Unless a checkpoint is to be read into them, they must have been raised (``raise()``).
  /// What other phases of the run train is float32 of the student's own from the beginning, so that a run holds the same
  /// memory, and computes the same bits, whether it was resumed or not.
  ///
  /// - Parameter phases: all of the run
  package static func replace(
    _ runner: inout StepRunner?, for phase: Phase, of phases: [Phase], student: HybridLM, teacher: HybridLM?,
    world: Communicator, fabric: any Fabric, backend: any Backend
  ) {
    runner?.arena.retire()
    runner = nil
    backend.trim()
    for parameter in student.store.parameters
    where !phase.trains(parameter, of: student) && phases.contains(where: { $0.trains(parameter, of: student) }) {
      parameter.own(on: backend)
    }
    runner = StepRunner(
      student: student, teacher: teacher, phase: phase, world: world, fabric: fabric, backend: backend)
    backend.trim()
  }

  /// The elements of each part, whole entries, in each of the arena's sections.
  private static func places(of arena: Arena) -> [ModelPart: [Range<Int>]] {
    var places: [ModelPart: [Range<Int>]] = [:]
    for entry in arena.entries {
      let part = entry.parameter.part
      var ranges = places[part, default: []]
      if let last = ranges.last, last.upperBound == entry.offset {
        ranges[ranges.count - 1] = last.lowerBound..<entry.range.upperBound
      } else {
        ranges.append(entry.range)
      }
      places[part] = ranges
    }
    return places
  }

  /// Micro-batches of this rank in a step of so many sequences, as indices into those of the global batch.
  package func microBatches(of sequences: Int) -> Range<Int> {
    let count = sequences / phase.microBatch
    return count * world.rank / world.size..<count * (world.rank + 1) / world.size
  }

  /// Runs forward and backward on this rank's micro-batches, lane by lane, and sums their gradients on this rank.
  ///
  /// - Parameter wantsStop: asked between micro-batches, if at all. The answer of any rank travels during the next one, after
  ///   which all ranks leave the step; the last micro-batch, whose gradients travel already, is never left.
  /// - Returns: the losses, on the device, with room for the squares of this rank's blocks; nil when the step was left:
  ///   nothing has changed
  package func accumulate(
    _ batches: [SequenceBatch], over counts: TokenCounts, asksForStop: Bool = false, wantsStop: () -> Bool = { false }
  ) throws -> StepSums? {
    var vote: GradientExchange.Vote?
    let sums = StepSums(microBatches: batches.count, blocks: exchange.ownedBlocks, on: arena.gradients.backend)
    let lanes = phase.lanes / world.size
    for lane in 0..<lanes {
      let places = batches.count * lane / lanes..<batches.count * (lane + 1) / lanes
      if !places.isEmpty { exchange.beginLane() }
      for index in places {
        let isLast = index == batches.count - 1
        if let vote, try exchange.isCarried(vote) {
          exchange.abandon()
          return nil
        }
        vote = isLast || !asksForStop ? nil : exchange.cast(wantsStop())
        FailPoint.lag()
        losses(
          batches[index], gradientsOver: counts, into: sums.losses(of: index),
          willUse: { [self] in self.places[$0]?.forEach(exchange.waitForParameters) },
          hasGradients: { [self] in if isLast && overlaps { self.places[$0]?.forEach(exchange.complete) } })
      }
      // The last lane, which is never empty, completes part by part.
      if lane < lanes - 1 { exchange.endLane(isEmpty: places.isEmpty) }
    }
    return sums
  }

  /// Waits until this rank has all parameters. Whoever reads them between steps calls it first.
  package func waitForParameters() throws { try exchange.waitForParameters() }

  /// Gives every rank the parameters that the others own, as a step does behind its update.
  func shareParameters() throws {
    for bucket in exchange.updateOrder { exchange.shareParameters(bucket) }
    try waitForParameters()
  }

  /// Gives all parameters their float32 values, put together from the masters of all ranks where compute copies stand: what
  /// the next phase begins from, and the final model. Every rank must call it, and none trains on; this rank's gradients go.
  package func raise() throws {
    try waitForParameters()
    guard arena.precision == .bfloat16 else { return }
    arena.retire()
    let matrices = arena.sections[0]
    let values = arena.backend.zeros([matrices.range.count])
    for (range, local) in optimizer.parts(of: matrices.range) {
      arena.backend.copy(optimizer.master(range, local), into: values.rows(range))
    }
    try exchange.gather(matrices, into: values)
    arena.raise(to: values)
  }

  /// One whole step.
  ///
  /// - Parameters:
  ///   - batches: this rank's micro-batches
  ///   - updates: how many updates each group of parameters has seen in this phase, this one included (``PathUpdates``)
  ///   - accepts: decides, on all ranks alike, whether a loss and gradient norm lead to an update
  ///   - dataSeconds: that this rank took to read its data
  ///   - flags: of this rank, asked for between micro-batches and late in the step
  /// - Returns: nil when the ranks left the step because one of them wants to stop: nothing has changed
  package func run(
    _ batches: [SequenceBatch], updates: [Int], learningRate: Double, dataSeconds: Double = 0,
    accepts: (_ loss: Double, _ norm: Double) throws -> Bool = { _, _ in true }, flags: () -> RankFlags = { [] }
  ) throws -> StepResult? {
    var clock = PhaseClock()
    var totals = [
      Int64(batches.reduce(0) { $0 + $1.countedLabels }), Int64(batches.reduce(0) { $0 + $1.tokens.count }),
    ]
    try world.sum(&totals)
    let counts = TokenCounts(labels: Int(totals[0]), tokens: Int(totals[1]))
    watchdog?.enter(.compute)
    let before = exchange.waited.parameters
    let sums = try accumulate(batches, over: counts, asksForStop: isSlow) { flags().contains(.wantsStop) }
    guard let sums else { return nil }
    clock.mark("compute")
    clock.move(exchange.waited.parameters - before, from: "compute", to: "share")
    watchdog?.enter(.reduce)
    try FailPoint.reach(.step)
    try exchange.reduce()
    exchange.sumSquares(into: sums.squares)
    let found = sums.readBack()
    // Sums of all micro-batches, in their global order on every rank, and behind those of each rank its flags and how
    // long it took.
    let gathered = try world.allGather(
      found.losses.flatMap(\.values) + [Double(flags().rawValue), dataSeconds, clock.seconds["compute"]!]
        + Operations.ofThisRank.counts)
    var total = [Double](repeating: 0, count: LossSums.names.count)
    var everyFlag: [RankFlags] = []
    var rankSeconds: (data: [Double], compute: [Double]) = ([], [])
    var operations = Operations()
    let width = gathered.count / world.size
    let behind = Operations.names.count
    for (index, value) in gathered.enumerated() {
      let place = width - behind - index % width
      guard place > 0 else {
        operations.add(value, at: -place)
        continue
      }
      switch place {
      case 1: rankSeconds.compute.append(value)
      case 2: rankSeconds.data.append(value)
      case 3: everyFlag.append(RankFlags(rawValue: Int(value)))
      default:
        total[index % width % total.count] += value
      }
    }
    isSlow = rankSeconds.compute.max()! >= Self.slowSeconds
    try FailPoint.reach(.collective)
    let norm = try exchange.norm(ofSquares: found.squares)
    clock.mark("reduce")
    let means = LossSums(values: total).means(counts)
    let loss = means.weighted(phase.losses)
    let isAccepted = try accepts(loss, norm)
    if isAccepted {
      willUpdate()
      let scale = phase.clip > 0 && norm > phase.clip ? phase.clip / norm : 1
      for bucket in exchange.updateOrder {
        optimizer.update(slice: bucket, updates: updates, learningRate: learningRate, gradientScale: scale)
        exchange.shareParameters(bucket)
      }
      clock.mark("update")
      if !overlaps { try exchange.waitForParameters() }
    }
    clock.mark("share")
    return StepResult(
      losses: means, loss: loss, gradientNorm: norm, seconds: clock.seconds,
      isStopAsked: everyFlag.contains { $0.contains(.wantsStop) },
      isSaveDue: everyFlag.contains { $0.contains(.wantsSave) },
      isSaveWritten: everyFlag.allSatisfy { $0.contains(.hasWritten) },
      operations: operations, muteRanks: everyFlag.indices.filter { everyFlag[$0].contains(.isMute) },
      isSkipped: !isAccepted,
      rankSeconds: rankSeconds)
  }
}

/// Splits the time since its creation into named parts.
package struct PhaseClock {
  package private(set) var seconds: [String: Double] = [:]
  private var last = ContinuousClock.now

  package init() {}

  /// Adds the time since the last mark to `name`.
  package mutating func mark(_ name: String) {
    let now = ContinuousClock.now
    let elapsed = (now - last).components
    seconds[name, default: 0] += Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
    last = now
  }

  /// Counts some of what `name` took as `other`.
  package mutating func move(_ time: Double, from name: String, to other: String) {
    seconds[name, default: 0] -= time
    seconds[other, default: 0] += time
  }

  package var total: Double { seconds.values.reduce(0, +) }
}
