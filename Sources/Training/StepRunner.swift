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
  /// Whether all ranks have written their parts of the save under way.
  package var isSaveWritten: Bool
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
  private let places: [ModelPart: Range<Int>]
  /// Is told what the main thread does.
  package var watchdog: Watchdog? { didSet { watchdog?.watch(exchange.place) } }
  /// Whether gradients and parameters travel while the ranks compute.
  package var overlaps = true

  /// Moves the parameters that `phase` trains into an arena and gives this rank its part of the optimizer state.
  package init(
    student: HybridLM, teacher: HybridLM?, phase: Phase, world: Communicator, backend: any Backend
  ) {
    self.phase = phase
    self.world = world
    arena = Arena(student.store, backend: backend) { phase.trains($0, of: student) }
    losses = MicroBatchLosses(
      student: student, teacher: phase.losses.needsTeacher ? teacher : nil, weights: phase.losses,
      checkpointing: phase.checkpointsActivations, backend: backend)
    exchange = GradientExchange(arena, world: world, ascends: !losses.crossesLayers)
    optimizer = AdamW(arena, slices: exchange.slices, settings: phase.adam)
    places = Self.places(of: arena)
  }

  /// The elements of each part, which lie in the order in which the parts run.
  private static func places(of arena: Arena) -> [ModelPart: Range<Int>] {
    let parts = arena.entries.map { entry -> ModelPart in
      let words = entry.parameter.name.split(separator: ".")
      if words.count > 2, words[1] == "layers", let layer = Int(words[2]) { return .layer(layer) }
      return words.contains("embed_tokens") ? .embeddings : .head
    }
    var places: [ModelPart: Range<Int>] = [:]
    for (entry, part) in zip(arena.entries, parts) {
      places[part] = (places[part]?.lowerBound ?? entry.offset)..<entry.range.upperBound
    }
    return places
  }

  /// Micro-batches of this rank in a step of so many sequences, as indices into those of the global batch.
  package func microBatches(of sequences: Int) -> Range<Int> {
    let count = sequences / phase.microBatch
    return count * world.rank / world.size..<count * (world.rank + 1) / world.size
  }

  /// Runs forward and backward on this rank's micro-batches and sums their gradients on this rank.
  package func accumulate(_ batches: [SequenceBatch], over counts: TokenCounts) -> [LossSums] {
    batches.enumerated().map { index, batch in
      let isLast = index == batches.count - 1
      arena.beginBackward()
      let sums = losses(
        batch, gradientsOver: counts,
        willUse: { [self] in exchange.waitForParameters(places[$0] ?? 0..<0) },
        hasGradients: { [self] in if isLast && overlaps { exchange.complete(places[$0] ?? 0..<0) } })
      if !isLast { exchange.add() }
      return sums
    }
  }

  /// Waits until this rank has all parameters. Whoever reads them between steps calls it first.
  package func settle() throws { try exchange.settle() }

  /// One whole step.
  ///
  /// - Parameters:
  ///   - batches: this rank's micro-batches
  ///   - step: counted from 1 within the phase, for the bias correction
  ///   - accepts: decides, on all ranks alike, whether a loss and gradient norm lead to an update
  ///   - dataSeconds: that this rank took to read its data
  ///   - flags: of this rank, asked for late in the step
  package func run(
    _ batches: [SequenceBatch], step: Int, learningRate: Double, dataSeconds: Double = 0,
    accepts: (_ loss: Double, _ norm: Double) throws -> Bool = { _, _ in true }, flags: () -> RankFlags = { [] }
  ) throws -> StepResult {
    var clock = PhaseClock()
    var totals = [
      Int64(batches.reduce(0) { $0 + $1.countedLabels }), Int64(batches.reduce(0) { $0 + $1.tokens.count }),
    ]
    try world.sum(&totals)
    let counts = TokenCounts(labels: Int(totals[0]), tokens: Int(totals[1]))
    watchdog?.enter(.compute, step: step)
    let before = exchange.waited.parameters
    let sums = accumulate(batches, over: counts)
    FailPoint.lag()
    clock.mark("compute")
    clock.move(exchange.waited.parameters - before, from: "compute", to: "share")
    watchdog?.enter(.reduce, step: step)
    try FailPoint.reach(.step)
    try exchange.reduce()
    // Sums of all micro-batches, in their global order on every rank, and behind those of each rank its flags and how
    // long it took.
    let gathered = try world.allGather(
      sums.flatMap(\.values) + [Double(flags().rawValue), dataSeconds, clock.seconds["compute"]!])
    var total = [Double](repeating: 0, count: LossSums.names.count)
    var everyFlag: [RankFlags] = []
    var rankSeconds: (data: [Double], compute: [Double]) = ([], [])
    let width = gathered.count / world.size
    for (index, value) in gathered.enumerated() {
      switch width - index % width {
      case 1: rankSeconds.compute.append(value)
      case 2: rankSeconds.data.append(value)
      case 3: everyFlag.append(RankFlags(rawValue: Int(value)))
      default:
        total[index % width % total.count] += value
      }
    }
    try FailPoint.reach(.collective)
    let norm = try exchange.norm()
    clock.mark("reduce")
    let means = LossSums(values: total).means(counts)
    let loss = means.weighted(phase.losses)
    let isAccepted = try accepts(loss, norm)
    if isAccepted {
      let scale = phase.clip > 0 && norm > phase.clip ? phase.clip / norm : 1
      for bucket in optimizer.slices.indices {
        optimizer.update(slice: bucket, step: step, learningRate: learningRate, gradientScale: scale)
        exchange.shareParameters(bucket)
      }
      clock.mark("update")
      if !overlaps { try exchange.settle() }
    }
    clock.mark("share")
    return StepResult(
      losses: means, loss: loss, gradientNorm: norm, seconds: clock.seconds,
      isStopAsked: everyFlag.contains { $0.contains(.wantsStop) },
      isSaveWritten: everyFlag.allSatisfy { $0.contains(.hasWritten) }, isSkipped: !isAccepted,
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
