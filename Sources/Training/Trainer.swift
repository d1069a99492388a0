import CPUBackend
import Checkpointing
import Files
import Foundation
import Hashing
import MPI
import Models
import NN
import Optimizers
import Reporting
import Tensors
import TokenStreams
import Tokenizers

/// What to do about checkpoints that a run folder holds.
package enum ResumePolicy: String, CaseIterable, Sendable {
  /// Go on from the newest good one; start anew only where there is none at all.
  case auto
  /// Go on or fail.
  case must
  /// Start anew; fail where there are checkpoints, which are never overwritten.
  case never
}

/// How a run ended.
package enum RunOutcome {
  case finished
  /// At a checkpoint, on request; the same command goes on.
  case stopped(step: Int)
}

/// Runs a job from its first or last step to its end, on all ranks together.
package final class Trainer {
  private let job: Job
  private let world: Communicator
  private let backend: CPUBackend
  private let models: ModelSetup
  private let plans: [DataPlan]
  private var run: RunFolder
  private let sharing: FolderSharing
  private let identity: CheckpointManifest.Identity
  private let progress = ProgressLine()
  private let isQuiet: Bool

  // State of the phase at hand.
  private var phaseIndex = 0
  private var phaseStep = 0
  /// The next sequence of the phase's plan.
  private var cursor = 0
  private var runner: StepRunner!
  private var step = 0
  private var tokens = 0
  private var resumedFrom: Int?
  /// The newest step that is on disk, or on its way there.
  private var lastSaved: Int?
  private var lastGood: Int?
  /// The save on its way to disk, and the memory that it reads.
  private var pending: CheckpointSave?
  private let snapshot = SnapshotBuffer()
  /// What the last save held, and whether there was an update since.
  private var savedDigest: UInt64?
  private var hasUpdated = false
  /// What one rank holds the others up with.
  private var stragglers = (data: Straggler(phase: "data"), compute: Straggler(phase: "compute"))
  private let watchdog: Watchdog
  private var spikes: SpikeGuard
  private var failedSaves = 0
  /// Whether the next step tries again to save.
  private var isRetryDue = false
  /// Seconds that training waited for copies.
  private var stall = 0.0

  /// Reads models and data, agrees on them over the ranks, and goes to where the run stands.
  ///
  /// - Parameter isQuiet: keep progress to itself
  package init(
    _ job: Job, world: Communicator, backend: CPUBackend, resume: ResumePolicy, isQuiet: Bool = false
  ) throws {
    self.job = job
    self.isQuiet = isQuiet
    self.world = world
    self.backend = backend
    run = RunFolder(job.runFolder)
    try run.refuseLinks()
    spikes = SpikeGuard(job.spikes)
    watchdog = Watchdog(rank: world.rank, size: world.size, runFolder: job.runFolder, floor: job.watchdogFloor)
    models = try ModelSetup(job, backend: backend)
    let models = models
    plans = try job.dataPlans(student: models.student.configuration, teacher: models.teacher?.configuration)
    // Hashing billions of weights once is enough.
    var hashes = Data()
    if world.isCoordinator {
      let frozen = ModelSetup.hash(models.student) { parameter in
        job.phases.allSatisfy { !$0.trains(parameter, of: models.student) }
      }
      let teacher = models.teacher.map { ModelSetup.hash($0) } ?? ""
      hashes = Data("\(frozen) \(teacher) \(String(UInt64.random(in: 0 ... .max), radix: 36))".utf8)
    }
    let agreed = String(decoding: try world.broadcast(Array(hashes)), as: UTF8.self).split(
      separator: " ", omittingEmptySubsequences: false)
    run.session = String(agreed[2])
    identity = CheckpointManifest.Identity(
      kind: job.kind.rawValue, model: sha256(models.student.configuration.json), frozen: String(agreed[0]),
      teacher: String(agreed[1]),
      plans: [])
    // A rank that is taken for a stranger by mistake is only slower.
    sharing = try FolderSharing(run, world: world, patience: job.gathersCheckpoints ? 1 : 10)
    guard sharing.strangers.isEmpty || job.gathersCheckpoints else {
      throw JobError(
        .usage,
        "\(run.path): not seen by \(sharing.description): keep it on a file system that all hosts share, or set "
          + "checkpoints.gather: true")
    }
    let everywhere = try world.allGather(
      Array(sha256("\(identity) \(job.phases) \(orders(phase: plans.count, sequences: 0))").utf8))
    guard Set(everywhere).count == 1 else {
      throw JobError(.data, "the ranks see different jobs, models or data: are the files the same on all hosts?")
    }
    try compareKernels()
    try restore(resume)
  }

  /// The same bits come only from the same matrix products: says when hosts have different ones.
  private func compareKernels() throws {
    let all = try world.allGather(Array(CPUBackend.matrixKernels.utf8)).map { String(decoding: $0, as: UTF8.self) }
    guard let other = all.indices.first(where: { all[$0] != all[0] }) else { return }
    say(
      "WARNING: OpenBLAS uses the kernels of \(all[0]) on rank 0 and of \(all[other]) on rank \(other); the result depends on "
        + "which rank does what. Set OPENBLAS_CORETYPE to the same on all hosts (mpirun -x OPENBLAS_CORETYPE)")
  }

  private func say(_ text: String) {
    if world.isCoordinator && !isQuiet { progress.print(text) }
  }

  /// Identities of the phases' data as far as a run has come: changes of the mix that are still ahead do not count.
  private func orders(phase: Int, sequences: Int) -> [String] {
    plans.enumerated().map { index, plan in
      let hash = plan.hash(before: index < phase ? .max : index == phase ? sequences : 0)
      return job.supernet.map { sha256("\(hash) \($0)") } ?? hash
    }
  }

  /// Whether any phase trains `parameter`: what checkpoints hold.
  private func trainsEver(_ parameter: Parameter) -> Bool {
    job.phases.contains { $0.trains(parameter, of: models.student) }
  }

  /// Whose tokenizer and settings the final model carries: the tokenizer's folder, else that of the model it began from.
  private var companions: String? {
    job.tokenizer == "bytes" ? job.teacher ?? job.student : companionFolder(ofTokenizer: job.tokenizer)
  }

  // MARK: - Where the run stands

  private func restore(_ policy: ResumePolicy) throws {
    try agree(world) {
      guard world.isCoordinator || sharing.isStranger else { return }
      try createFolder(run.path)
      try run.removePartials()
      guard world.isCoordinator else { return }
      if policy == .never, let step = run.steps.last {
        throw JobError(
          .usage,
          "\(run.path) holds checkpoints up to step \(step), which are never overwritten: choose another --run-dir")
      }
    }
    guard policy != .never,
      let checkpoint = try Checkpoint.newestGood(in: run, world: world, sharing: sharing, warn: say)
    else {
      guard policy != .must else { throw JobError(.data, "\(run.path): there is no checkpoint to go on from") }
      return beginPhase(0)
    }
    try agree(world) { try restore(checkpoint) }
    try sharing.dispose()
    say(
      "resuming \(run.path) from step \(step), saved by \(checkpoint.manifest.worldSize) ranks, on \(world.size)")
    if let kernels = checkpoint.manifest.job["matrix_kernels"], kernels != CPUBackend.matrixKernels {
      say(
        "WARNING: the checkpoint was made with OpenBLAS's kernels of \(kernels), the run goes on with those of "
          + "\(CPUBackend.matrixKernels): not to the same bits (OPENBLAS_CORETYPE)")
    }
  }

  private func restore(_ checkpoint: Checkpoint) throws {
    let manifest = checkpoint.manifest
    for (what, saved, now) in [
      ("kind of job", manifest.identity.kind, identity.kind),
      ("student configuration", manifest.identity.model, identity.model),
      ("frozen weights", manifest.identity.frozen, identity.frozen),
      ("teacher", manifest.identity.teacher, identity.teacher),
      (
        "data plan", manifest.identity.plans.prefix(manifest.phase + 1).joined(),
        orders(phase: manifest.phase, sequences: manifest.sequences).prefix(manifest.phase + 1).joined()
      ),
    ] where saved != now {
      throw CheckpointError(
        checkpoint.path,
        "belongs to another run: its \(what) differs; choose another --run-dir, or restore what changed")
    }
    guard manifest.phase < job.phases.count else {
      throw CheckpointError(checkpoint.path, "was saved in phase \(manifest.phase), the job has \(job.phases.count)")
    }
    let saved = SpikeGuard(job.spikes, state: manifest.spikes ?? .init())
    let expected = saved.cursor(after: manifest.phaseStep, of: job.phases[manifest.phase])
    guard manifest.sequences == expected else {
      throw CheckpointError(
        checkpoint.path,
        "had read \(manifest.sequences) sequences in \(manifest.phaseStep) steps of phase "
          + "\(job.phases[manifest.phase].name), the job as it is now would have read \(expected): put the old global_batch "
          + "back, and append what is to change to the phase's changes: [{from_step: \(manifest.phaseStep), global_batch: …}]"
      )
    }
    let isPhaseDone = manifest.phaseStep >= job.phases[manifest.phase].steps
    let phase = isPhaseDone && manifest.phase + 1 < job.phases.count ? manifest.phase + 1 : manifest.phase

    // What is restored must not be written into the teacher's parameters, which it may share.
    let store = models.student.store
    for parameter in store.parameters where trainsEver(parameter) { parameter.own(on: backend) }
    beginPhase(phase)
    step = manifest.step
    tokens = manifest.tokens
    resumedFrom = step
    (lastSaved, lastGood) = (step, step)
    spikes = SpikeGuard(job.spikes, state: manifest.spikes ?? .init())
    if phase != manifest.phase { spikes.beginPhase() }
    if phase == manifest.phase {
      phaseStep = manifest.phaseStep
      cursor = manifest.sequences
    }
    let optimizer = runner.optimizer
    let offsets = Dictionary(uniqueKeysWithValues: runner.arena.entries.map { ($0.parameter.name, $0.offset) })
    var restored = 0
    try checkpoint.forEachPiece { role, name, start, count, read in
      guard let parameter = store[name], start + count <= parameter.count else {
        throw CheckpointError(checkpoint.path, "holds \(name), which the model does not have")
      }
      if role == "parameter" {
        try read(parameter.value.floats + start)
        restored += count
      } else if phase == manifest.phase, let offset = offsets[name] {
        let moment = role == "moment1" ? optimizer.moment1 : optimizer.moment2
        let range = offset + start..<offset + start + count
        let mine = optimizer.parts(of: range)
        guard !mine.isEmpty else { return }
        var values = [Float](repeating: 0, count: count)
        try values.withUnsafeMutableBufferPointer { try read($0.baseAddress!) }
        for (part, local) in mine {
          for (index, place) in zip(part, local) { moment.floats[place] = values[index - range.lowerBound] }
        }
      }
    }
    let trained = store.parameters.reduce(0) { sum, parameter in
      trainsEver(parameter) ? sum + parameter.count : sum
    }
    guard restored == trained else {
      throw CheckpointError(checkpoint.path, "holds \(restored) trained weights, the job has \(trained)")
    }
  }

  private func beginPhase(_ index: Int) {
    phaseIndex = index
    (phaseStep, cursor) = (0, 0)
    spikes.beginPhase()
    runner = StepRunner(
      student: models.student, teacher: models.teacher, phase: job.phases[index], world: world, backend: backend)
    runner.watchdog = watchdog
  }

  // MARK: - The loop

  /// Trains to the end, until step `stopStep` has been saved, or until `stop` says so.
  package func train(stopStep: Int? = nil, stop: StopRequest? = nil) throws -> RunOutcome {
    var metrics = try openMetrics()
    let rate = Machine.matrixRate(backend)
    say(
      "\(job.kind.rawValue) \(job.path): \(Format.count(Double(job.totalTokens))) tokens in \(job.totalSteps) steps, "
        + "\(world.size) ranks × \(backend.pool.threadCount) threads, \(Int(rate / 1e9)) GF/s a rank, run folder \(run.path)"
    )
    if step == 0, let dropped = models.transferLosses.droppedHeads { say(dropped) }
    var operations = estimatedOperations()
    // A run that was stopped while it validated does so first when it goes on, so that its log lacks nothing.
    var mustStop = try isValidationDue(metrics) ? !validate(metrics, stop) : false
    while step < job.totalSteps && !mustStop {
      if phaseStep == job.phases[phaseIndex].steps {
        try runner.settle()
        beginPhase(phaseIndex + 1)
        operations = estimatedOperations()
        say("phase \(job.phases[phaseIndex].name)")
      }
      mustStop =
        try trainStep(metrics, operations: operations, rate: rate, stop) || stopStep.map { step >= $0 } ?? false
      if spikes.isExhausted {
        try goBack()
        metrics = try openMetrics()
        continue
      }
      let isLast = step == job.totalSteps
      // What ends a phase is measured under that phase, whoever waits.
      let endsPhase = phaseStep == job.phases[phaseIndex].steps
      if job.validationEvery > 0, isLast || (isDue(job.validationEvery) && (endsPhase || !mustStop)) {
        mustStop = try !validate(metrics, endsPhase ? nil : stop) || mustStop
      }
      if isLast || mustStop || isDue(job.checkpointEvery) || isRetryDue {
        isRetryDue = false
        try metrics?.flush()
        try save()
      }
    }
    try settle()
    watchdog.stop()
    if step < job.totalSteps {
      say("stopped at step \(step)\(stop?.reason.map { " (\($0))" } ?? "")")
      return .stopped(step: step)
    }
    try agree(world) {
      if world.isCoordinator { try ModelWriter(companions: companions).write(models.student, to: run.path + "/model") }
    }
    say("finished: the model is in \(run.path)/model")
    return .finished
  }

  private func openMetrics() throws -> MetricsLog? {
    world.isCoordinator ? try MetricsLog(run.path + "/metrics.jsonl", keepingStepsTo: step) : nil
  }

  /// Goes back to the newest checkpoint before the updates that were left out, and passes their data over from there.
  private func goBack() throws {
    let phase = job.phases[phaseIndex]
    let (skipped, skippedPhase, last) = (spikes, phaseIndex, step)
    let (first, end) = (skipped.state.firstStep, cursor)
    try finishSave()
    try runner.settle()
    guard skipped.state.returns < 3,
      let checkpoint = try Checkpoint.newestGood(in: run, before: first, world: world, sharing: sharing, warn: say),
      checkpoint.manifest.phase == skippedPhase, checkpoint.manifest.phaseStep < phase.steps
    else {
      throw JobError(
        .diverged,
        "steps \(first) to \(last) of phase \(phase.name) gave no update, and there is no checkpoint of that phase "
          + "before them, or going back did not help; lower train.lr, or look at the data")
    }
    try agree(world) {
      guard world.isCoordinator else { return }
      for newer in run.steps where newer > checkpoint.manifest.step { try run.setAside(step: newer, as: "passed-over") }
    }
    try agree(world) { try restore(checkpoint) }
    try sharing.dispose()
    spikes = skipped
    spikes.goBack(to: checkpoint.manifest.spikes ?? .init(), end: end)
    let passed = spikes.state.passedOver.reduce(0) { $0 + $1[1] - $1[0] }
    try plans[phaseIndex].checkSupply(sequences: phase.sequences(before: phase.steps) + passed)
    say(
      "steps \(first) to \(last) gave no update: back to step \(step), passing over sequences "
        + "\(skipped.state.firstSequence) to \(end) of phase \(phase.name)")
  }

  /// Whether this step's numbers lead to an update.
  private func accepts(loss: Double, norm: Double, sequences: Range<Int>) throws -> Bool {
    // A test poisons data of the last phase.
    let isPoisoned = phaseIndex == job.phases.count - 1 && FailPoint.poisons(sequences)
    let isAccepted = spikes.accepts(
      loss: isPoisoned ? .nan : loss, norm: norm, step: step + 1, sequence: sequences.lowerBound)
    guard isAccepted || job.spikes.policy == .skip else {
      throw JobError(
        .diverged,
        "step \(phaseStep + 1) of phase \(job.phases[phaseIndex].name): the loss is \(loss) and the gradient norm \(norm); nothing "
          + "was updated. Lower train.lr, look at the data of this step, or let such steps be skipped (spikes.policy)")
    }
    if !isAccepted {
      say("step \(step + 1): the loss is \(loss), the gradient norm \(norm): no update (sequences \(sequences))")
    }
    return isAccepted
  }

  /// All ranks must hold the same parameters, trained or not: a rank whose memory or sums went wrong is named.
  private func checkReplicas() throws {
    try runner.settle()
    if FailPoint.flips(.replicas) {
      let values = runner.arena.values.floats
      values[0] = Float(bitPattern: values[0].bitPattern ^ 1)
    }
    let parameters = models.student.store.parameters + (models.teacher?.store.parameters ?? [])
    let mine = parameters.reduce(0 as UInt64) { $0 &* 31 &+ digest($1.value.hostBytes) }
    let all = try world.allGather(withUnsafeBytes(of: mine) { Array($0) })
    let counts = Dictionary(all.map { ($0, 1) }, uniquingKeysWith: +)
    guard counts.count > 1 else { return }
    let common = all.max { (counts[$0]!, $0 == all[0] ? 1 : 0) < (counts[$1]!, $1 == all[0] ? 1 : 0) }!
    let others = all.indices.filter { all[$0] != common }
    throw JobError(
      .diverged,
      "step \(step): the parameters of rank \(others.map(String.init).joined(separator: ", ")) differ from those of the "
        + "others; checkpoints since step \(step - job.replicaCheckEvery) may be spoiled. Look at the memory of that host, "
        + "and resume without it")
  }

  private func isDue(_ every: Int) -> Bool { every > 0 && step % every == 0 }

  /// Whether the log lacks the validation of the step where the run stands.
  private func isValidationDue(_ metrics: MetricsLog?) throws -> Bool {
    guard job.validationEvery > 0, step % job.validationEvery == 0 || step == job.totalSteps else { return false }
    var isMissing = [Int64(0)]
    if let metrics, !metrics.validatedSteps.contains(step) { isMissing[0] = 1 }
    try world.sum(&isMissing)
    return isMissing[0] > 0
  }

  /// - Returns: whether any rank wants to stop
  private func trainStep(
    _ metrics: MetricsLog?, operations: Double, rate: Double, _ stop: StopRequest?
  ) throws -> Bool {
    let phase = job.phases[phaseIndex]
    var clock = PhaseClock()
    FailPoint.at(rank: world.rank, step: step + 1)
    watchdog.enter(.data, step: step + 1)
    try FailPoint.reach(.loader)
    let count = phase.batch(at: phaseStep)
    let start = spikes.begin(at: cursor, count: count)
    let batches = try runner.microBatches(of: count).map { index in
      try plans[phaseIndex].read(start + index * phase.microBatch..<start + (index + 1) * phase.microBatch)
    }
    clock.mark("data")
    models.student.path = job.supernet?.path(step: step, layers: models.student.layers.count, seed: job.seed)
    let learningRate = phase.learningRate(at: phaseStep)
    let sequences = start..<start + count
    let decide = { [self] (loss: Double, norm: Double) in
      try accepts(loss: loss, norm: norm, sequences: sequences)
    }
    let readFlags = { [self] () -> RankFlags in
      var flags: RankFlags = []
      if stop?.reason != nil { flags.insert(.wantsStop) }
      if pending?.isWritten ?? false { flags.insert(.hasWritten) }
      return flags
    }
    let result = try runner.run(
      batches, step: phaseStep + 1, learningRate: learningRate, dataSeconds: clock.seconds["data"]!, accepts: decide,
      flags: readFlags)
    clock.mark("step")
    if result.isSaveWritten { try finishSave() }
    clock.mark("save")
    hasUpdated = hasUpdated || !result.isSkipped
    step += 1
    phaseStep += 1
    cursor = sequences.upperBound
    tokens += count * phase.context
    if job.replicaCheckEvery > 0, step % job.replicaCheckEvery == 0 { try checkReplicas() }
    for text in [
      stragglers.data.report(result.rankSeconds.data, step: clock.total),
      stragglers.compute.report(result.rankSeconds.compute, step: clock.total),
    ] { text.map(say) }
    guard let metrics else { return result.isStopAsked }
    var seconds = result.seconds
    seconds["data"] = clock.seconds["data"]
    // What saving held up since the last line.
    seconds["save"] = clock.seconds["save"]! + stall
    stall = 0
    seconds["total"] = clock.total
    let speed = Double(count * phase.context) / clock.total
    let share = operations * Double(count / phase.microBatch) / clock.total / (rate * Double(world.size))
    try metrics.write([
      "step": step, "phase": phase.name, "tokens": tokens, "loss": result.loss,
      "losses": Self.named(result.losses, phase.losses), "lr": learningRate, "grad_norm": result.gradientNorm,
      "seconds": seconds, "tokens_per_s": speed, "sgemm_share": share, "peak_memory": Machine.peakMemory,
      "sequences": [sequences.lowerBound, sequences.upperBound], "skipped": result.isSkipped,
    ])
    let left = Double(job.totalSteps - step) * clock.total
    let line =
      "step \(step)/\(job.totalSteps)  tokens \(Format.count(Double(tokens)))  loss \(String(format: "%.5g", result.loss))  "
      + "lr \(String(format: "%.2e", learningRate))  grad \(String(format: "%.3f", result.gradientNorm))  "
      + "\(Format.count(speed)) tok/s  \(Int(share * 100))% of SGEMM  ETA \(Format.duration(left))"
    if !isQuiet && (step % job.logEvery == 0 || step == job.totalSteps) {
      progress.update(line, isFinal: step == job.totalSteps)
    }
    return result.isStopAsked
  }

  private static func named(_ losses: LossSums, _ weights: LossWeights) -> [String: Double] {
    let used = [
      weights.crossEntropy > 0 || weights.logits > 0, weights.logits > 0, weights.hidden > 0,
      weights.mixerOutput > 0,
    ]
    var named: [String: Double] = [:]
    for (index, name) in LossSums.names.enumerated() where used[index] { named[name] = losses.values[index] }
    return named
  }

  /// Matrix operations of one micro-batch of the phase.
  private func estimatedOperations() -> Double {
    let phase = job.phases[phaseIndex]
    return StepEstimate(student: models.student.configuration, teacher: models.teacher?.configuration, phase: phase)
      .operationsPerMicroBatch
  }

  // MARK: - Validation and checkpoints

  /// - Returns: whether it came to its end; a wish to stop ends it early and leaves nothing in the log
  private func validate(_ metrics: MetricsLog?, _ stop: StopRequest?) throws -> Bool {
    watchdog.enter(.validate, step: step)
    try runner.settle()
    let phase = job.phases[phaseIndex]
    // A supernet is measured by one path, always the same.
    models.student.path = job.supernet?.path(step: 0, layers: models.student.layers.count, seed: job.seed)
    let plan = plans[phaseIndex].part(of: cursor)
    var weights = phase.losses
    weights.crossEntropy = 1
    if models.teacher != nil { weights.logits = max(weights.logits, 1) }
    let losses = MicroBatchLosses(
      student: models.student, teacher: models.teacher, weights: weights, checkpointing: false, backend: backend)
    let places = plan.validation(count: job.validationSequences)
    var sums = LossSums()
    var counts = TokenCounts(labels: 0, tokens: 0)
    // In rounds, after each of which the ranks look whether to go on. Each rank takes every size-th sequence; the sums are
    // added in the order of the sequences.
    let width = LossSums.names.count + 2
    let round = 4 * world.size
    for first in stride(from: 0, to: places.count, by: round) {
      var mine: [Double] = []
      for index in first..<min(first + round, places.count) where index % world.size == world.rank {
        var batch = SequenceBatch()
        try plan.sources[places[index].source].holdout.read(places[index].sequence, into: &batch)
        mine += losses(batch, gradientsOver: nil).values + [Double(batch.countedLabels), Double(batch.tokens.count)]
      }
      mine += [Double](repeating: 0, count: 4 * width - mine.count)
      let all = try world.allGather(mine + [stop?.reason == nil ? 0 : 1])
      for index in 0..<min(round, places.count - first) {
        let row = index % world.size * (4 * width + 1) + index / world.size * width
        sums = LossSums(values: zip(sums.values, all[row..<row + width - 2]).map(+))
        counts.labels += Int(all[row + width - 2])
        counts.tokens += Int(all[row + width - 1])
      }
      if (0..<world.size).contains(where: { all[($0 + 1) * (4 * width + 1) - 1] > 0 }) { return false }
    }
    let means = sums.means(counts)
    try metrics?.write([
      "step": step, "phase": phase.name, "validation": Self.named(means, weights), "labels": counts.labels,
    ])
    let kl = models.teacher == nil ? "" : String(format: "  KL %.4f", means.logits)
    say("validation at step \(step): loss \(String(format: "%.4f", means.crossEntropy))\(kl)")
    return true
  }

  /// Begins to save the state as it is now. A save that is still under way ends first.
  private func save() throws {
    guard step != lastSaved else { return }
    watchdog.enter(.save, step: step)
    try finishSave()
    try runner.settle()
    lastSaved = step
    let (arena, optimizer) = (runner.arena, runner.optimizer)
    var pieces: [Piece] = []
    for (role, moment) in [("parameter", nil), ("moment1", optimizer.moment1), ("moment2", optimizer.moment2)] {
      for entry in arena.entries {
        for (range, local) in optimizer.parts(of: entry.range) {
          pieces.append(
            Piece(
              role: role, name: entry.parameter.name, shape: entry.parameter.shape,
              range: range.lowerBound - entry.offset..<range.upperBound - entry.offset,
              values: moment.map { $0.floats + local.lowerBound } ?? arena.values.floats + range.lowerBound))
        }
      }
    }
    if world.isCoordinator {
      // What trains in another phase and rests now.
      for parameter in models.student.store.parameters
      where !parameter.isTrained && trainsEver(parameter) {
        pieces.append(
          Piece(
            role: "parameter", name: parameter.name, shape: parameter.shape, range: 0..<parameter.count,
            values: parameter.value.floats))
      }
    }
    let jobText = (try? String(contentsOfFile: job.path, encoding: .utf8)) ?? ""
    let fields = (
      step, tokens, phaseIndex, phaseStep, cursor, world.size, spikes.state
    )
    var now = identity
    now.plans = orders(phase: phaseIndex, sequences: cursor)
    let jobFields = [
      "path": job.path, "text": jobText, "teacher": job.teacher ?? "", "student": job.student,
      "seed": String(job.seed), "init": job.initialization.rawValue,
      "config": String(decoding: models.student.configuration.json, as: UTF8.self),
      "matrix_kernels": CPUBackend.matrixKernels,
    ]
    do {
      let save = try CheckpointSave(
        pieces, step: step, in: run, world: world, sharing: sharing, level: job.compressionLevel,
        staleDigest: hasUpdated ? savedDigest : nil, buffer: snapshot
      ) { [now] shards in
        CheckpointManifest(
          step: fields.0, tokens: fields.1, phase: fields.2, phaseStep: fields.3, sequences: fields.4,
          worldSize: fields.5, spikes: fields.6, identity: now, job: jobFields, shards: shards)
      }
      stall += save.stall
      pending = save
      (savedDigest, hasUpdated) = (save.digest, false)
    } catch { try heed(error) }
  }

  /// Ends the save that is under way, if there is one: waits for the disk, and gives it its name.
  private func finishSave() throws {
    guard let save = pending else { return }
    pending = nil
    // A phase of its own, since a copy takes a moment, and a disk or the way to it what it takes.
    watchdog.enter(.write, step: step)
    do {
      try save.complete()
      watchdog.learn(.write, seconds: save.writeSeconds)
      failedSaves = 0
      lastGood = save.step
      if world.isCoordinator {
        run.retain(keepLast: job.keepLast, keepEvery: job.keepEvery, source: resumedFrom)
      }
    } catch { try heed(error) }
  }

  /// A save failed, on all ranks alike: what the job says happens.
  private func heed(_ error: any Error) throws {
    failedSaves += 1
    lastSaved = lastGood
    let good = lastGood.map { "the last good checkpoint is that of step \($0)" } ?? "there is no checkpoint yet"
    let mayRetry = job.onSaveFailure == .retry && failedSaves < Self.saveAttempts
    say(
      "SAVE FAILED at step \(step): \(error); \(good); "
        + (job.onSaveFailure == .fail ? "the run ends" : mayRetry ? "trying again" : "the run goes on without it"))
    guard job.onSaveFailure != .fail else { throw error }
    isRetryDue = mayRetry
    // The next save that is due has as many attempts again.
    if !mayRetry { failedSaves = 0 }
  }

  /// At the end of a run its last state must be on disk, or the run fails.
  private func settle() throws {
    try finishSave()
    var attempts = 0
    while lastGood != step {
      guard attempts < Self.saveAttempts else {
        throw FileError(
          run.path,
          "the state of step \(step) could not be saved; "
            + (lastGood.map { "step \($0) is the last good checkpoint" } ?? "there is no checkpoint"), kind: .system)
      }
      sleep(UInt32(1 << attempts))
      attempts += 1
      try save()
      try finishSave()
    }
  }

  private static let saveAttempts = 3
}
