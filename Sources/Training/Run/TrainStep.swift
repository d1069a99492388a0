import Files
import Foundation
import Models
import Reporting
import Tensors

/// One step of the run.
extension Trainer {
  /// What became of a step.
  enum StepEnd {
    case done(isStopAsked: Bool, isSaveDue: Bool)
    /// The ranks left it, since one of them wants to stop: nothing has changed.
    case left
  }

  /// Reads this rank's data, trains one step on it, and logs it.
  func trainStep(_ metrics: MetricsLog?, _ stop: StopRequest?) throws -> StepEnd {
    let phase = phase
    var clock = PhaseClock()
    FailPoint.at(rank: world.rank, step: position.step + 1)
    // Another batch takes another time.
    if position.phaseStep > 0, phase.batch(at: position.phaseStep) != phase.batch(at: position.phaseStep - 1) {
      watchdog.forget()
    }
    watchdog.enter(.data, step: position.step + 1)
    try FailPoint.reach(.loader)
    let sequences = self.sequences(ofStep: position.phaseStep, from: position.sequences)
    let batches = try loader.batches(request(for: sequences))
    if position.phaseStep + 1 < phase.steps {
      loader.prefetch(request(for: self.sequences(ofStep: position.phaseStep + 1, from: sequences.upperBound)))
    }
    clock.mark("data")
    models.student.path = path(at: position.step)
    let learningRate = phase.learningRate(at: position.phaseStep)
    var counted = updates
    let result = try runner.run(
      batches, updates: counted.count(position.step), learningRate: learningRate, dataSeconds: clock.seconds["data"]!,
      accepts: { [self] in try accepts(loss: $0, norm: $1, sequences: sequences) }, flags: { [self] in flags(stop) })
    guard let result else { return .left }
    // A step whose update was left out counts in no bias correction.
    if !result.isSkipped { updates = counted }
    clock.mark("step")
    saver.firstSkippedStep = spikes.state.skips > 0 ? spikes.state.firstStep : nil
    if result.isSaveWritten { try saver.finish() }
    clock.mark("save")
    // A gradient of nothing, as of a student that is its teacher, changes nothing.
    saver.hasUpdated = saver.hasUpdated || (!result.isSkipped && result.gradientNorm > 0)
    stop?.hasWorked()
    position.advance(reading: sequences.count, to: sequences.upperBound, context: phase.context)
    if job.replicaCheckEvery > 0, isDue(job.replicaCheckEvery) { try checkReplicas() }
    attend(toMuteRanks: result.muteRanks)
    for text in [
      stragglers.data.report(result.rankSeconds.data, step: clock.total),
      stragglers.compute.report(result.rankSeconds.compute, step: clock.total),
    ] { text.map(say) }
    if saver.longest > 0 { stop?.needs(saver.longest + clock.total) }
    try report(result, learningRate: learningRate, sequences: sequences, clock, metrics)
    return .done(isStopAsked: result.isStopAsked, isSaveDue: result.isSaveDue)
  }

  /// The sequences of a step of the phase whose data begins at `cursor`, or behind a window that is skipped.
  private func sequences(ofStep step: Int, from cursor: Int) -> Range<Int> {
    let count = phase.batch(at: step)
    let start = spikes.begin(at: cursor, count: count)
    return start..<start + count
  }

  /// What this rank reads of the sequences of a step.
  private func request(for sequences: Range<Int>) -> BatchLoader.Request {
    BatchLoader.Request(
      phase: position.phase,
      microBatches: runner.microBatches(of: sequences.count).map { index in
        let start = sequences.lowerBound + index * phase.microBatch
        return start..<start + phase.microBatch
      })
  }

  private func flags(_ stop: StopRequest?) -> RankFlags {
    var flags: RankFlags = []
    if stop?.reason(looking: watchdog.speaksForHost) != nil { flags.insert(.wantsStop) }
    if world.isCoordinator, saver.isDueByClock { flags.insert(.wantsSave) }
    if saver.hasWritten { flags.insert(.hasWritten) }
    if watchdog.isMute { flags.insert(.isMute) }
    return flags
  }

  /// Says when a host cannot show that it lives, and judges nobody by files meanwhile.
  private func attend(toMuteRanks ranks: [Int]) {
    guard ranks != muteRanks else { return }
    muteRanks = ranks
    watchdog.ignoreFiles(!ranks.isEmpty)
    say(
      ranks.isEmpty
        ? "all hosts can write into \(inputs.run.path)/.heartbeats again"
        : "WARNING: rank \(ranks.map(String.init).joined(separator: ", ")) cannot write into \(inputs.run.path)/.heartbeats: the "
          + "run goes on; a host that is lost meanwhile is noticed by the time that a step takes")
  }

  /// Whether this step's numbers lead to an update.
  private func accepts(loss: Double, norm: Double, sequences: Range<Int>) throws -> Bool {
    // A test poisons data of the last phase.
    let isPoisoned = position.phase == job.phases.count - 1 && FailPoint.poisons(sequences)
    let isAccepted = spikes.accepts(
      loss: isPoisoned ? .nan : loss, norm: norm, step: position.step + 1, sequence: sequences.lowerBound)
    guard isAccepted || job.spikes.policy == .skip else {
      throw JobError(
        .diverged,
        "step \(position.phaseStep + 1) of phase \(phase.name): the loss is \(loss) and the gradient norm \(norm); nothing "
          + "was updated. Lower train.lr, look at the data of this step, or let such steps be skipped (spikes.policy)")
    }
    if !isAccepted {
      say(
        "step \(position.step + 1): the loss is \(loss), the gradient norm \(norm): no update (sequences \(sequences))")
    }
    return isAccepted
  }

  /// All ranks must hold the same parameters, trained or not: a rank whose memory or sums went wrong is named.
  private func checkReplicas() throws {
    try runner.waitForParameters()
    if FailPoint.flips(.replicas) {
      let first = runner.arena.values(0..<1)
      var bytes = [UInt8](repeating: 0, count: first.dtype.size)
      bytes.withUnsafeMutableBytes { backend.download(first, into: $0).wait() }
      bytes[0] ^= 1
      bytes.withUnsafeBytes { backend.upload($0, into: first).wait() }
    }
    let others = try ReplicaCheck.differingRanks(
      models.student.store.parameters + (models.teacher?.store.parameters ?? []), world: world)
    guard !others.isEmpty else { return }
    throw JobError(
      .diverged,
      "step \(position.step): the parameters of rank \(others.map(String.init).joined(separator: ", ")) differ from those of the "
        + "others; checkpoints since step \(position.step - job.replicaCheckEvery) may be spoiled. Look at the memory of that host, "
        + "and resume without it")
  }

  private func report(
    _ result: StepResult, learningRate: Double, sequences: Range<Int>, _ clock: PhaseClock, _ metrics: MetricsLog?
  ) throws {
    guard let metrics else { return }
    var seconds = result.seconds
    seconds["data"] = clock.seconds["data"]
    // What saving held up since the last line.
    seconds["save"] = clock.seconds["save"]! + saver.takeStall()
    seconds["total"] = clock.total
    let report = RunMetrics(
      position: position, totalSteps: job.totalSteps, phase: phase, result: result, learningRate: learningRate,
      sequences: sequences, seconds: seconds, total: clock.total,
      utilization: operations * Double(sequences.count / phase.microBatch) / clock.total
        / (matrixRate * Double(world.size)))
    try metrics.write(report.fields)
    let isLast = position.step == job.totalSteps
    if !isQuiet && (isDue(job.logEvery) || isLast) { progress.update(report.line, isFinal: isLast, isDue: true) }
  }
}
