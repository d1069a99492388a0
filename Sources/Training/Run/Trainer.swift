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
  private let backend: any Backend
  private let models: ModelSetup
  private let plans: [DataPlan]
  private var run: RunFolder
  private let sharing: FolderSharing
  private let identity: CheckpointManifest.Identity
  private let progress = ProgressLine()
  private let isQuiet: Bool

  private var position = Position()
  private var runner: StepRunner!
  private var updates: PathUpdates
  /// What one rank holds the others up with.
  private var stragglers = (data: Straggler(phase: "data"), compute: Straggler(phase: "compute"))
  private let watchdog: Watchdog
  private var spikes: SpikeGuard
  private let saver: Saver

  /// Reads models and data, agrees on them over the ranks, and goes to where the run stands.
  ///
  /// - Parameter isQuiet: keep progress to itself
  package init(
    _ job: Job, world: Communicator, backend: any Backend, resume: ResumePolicy, isQuiet: Bool = false
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
    updates = PathUpdates(of: models.student, job.supernet, seed: job.seed)
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
      Array(
        sha256("\(identity) \(job.settings.sorted { $0.key < $1.key }) \(Self.orders(of: plans, job, at: nil))").utf8))
    guard Set(everywhere).count == 1 else {
      throw JobError(.data, "the ranks see different jobs, models or data: are the files the same on all hosts?")
    }
    let (progress, isCoordinator) = (progress, world.isCoordinator)
    saver = Saver(job, run: run, world: world, sharing: sharing, watchdog: watchdog) {
      if isCoordinator && !isQuiet { progress.print($0) }
    }
    try compareKernels()
    try restore(resume)
  }

  /// The same bits come only from the same matrix products: says when hosts have different ones.
  private func compareKernels() throws {
    let all = try world.allGather(Array(backend.kernelIdentity.utf8)).map { String(decoding: $0, as: UTF8.self) }
    guard let other = all.indices.first(where: { all[$0] != all[0] }) else { return }
    say(
      "WARNING: OpenBLAS uses the kernels of \(all[0]) on rank 0 and of \(all[other]) on rank \(other); the result depends on "
        + "which rank does what. Set OPENBLAS_CORETYPE to the same on all hosts (mpirun -x OPENBLAS_CORETYPE)")
  }

  private func say(_ text: String) {
    if world.isCoordinator && !isQuiet { progress.print(text) }
  }

  /// Identities of the phases' data as far as a run has come: changes of the mix that are still ahead do not count. nil is the
  /// end of the run.
  private static func orders(of plans: [DataPlan], _ job: Job, at position: Position?) -> [String] {
    plans.enumerated().map { index, plan in
      let phase = position?.phase ?? plans.count
      let hash = plan.hash(before: index < phase ? .max : index == phase ? position?.sequences ?? 0 : 0)
      return job.supernet.map { sha256("\(hash) \($0)") } ?? hash
    }
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
      return enterPhase()
    }
    try agree(world) { try restore(checkpoint) }
    try sharing.dispose()
    say(
      "resuming \(run.path) from step \(position.step), saved by \(checkpoint.manifest.worldSize) ranks, on \(world.size)"
    )
    if let kernels = checkpoint.manifest.job["matrix_kernels"], kernels != backend.kernelIdentity {
      say(
        "WARNING: the checkpoint was made with OpenBLAS's kernels of \(kernels), the run goes on with those of "
          + "\(backend.kernelIdentity): not to the same bits (OPENBLAS_CORETYPE)")
    }
  }

  private func restore(_ checkpoint: Checkpoint) throws {
    let manifest = checkpoint.manifest
    let saved = Position(manifest)
    if let text = manifest.job["settings"],
      let settings = try? JSONDecoder().decode([String: String].self, from: Data(text.utf8))
    {
      for change in try job.changes(since: settings, at: saved, checkpoint: checkpoint.path) {
        say("the job was changed: \(change)")
      }
    } else {
      say("\(checkpoint.path) does not hold the settings of its job: they are not compared")
    }
    for (what, then, now) in [
      ("kind of job", manifest.identity.kind, identity.kind),
      ("student configuration", manifest.identity.model, identity.model),
      ("frozen weights", manifest.identity.frozen, identity.frozen),
      ("teacher", manifest.identity.teacher, identity.teacher),
      (
        "data plan", manifest.identity.plans.prefix(saved.phase + 1).joined(),
        Self.orders(of: plans, job, at: saved).prefix(saved.phase + 1).joined()
      ),
    ] where then != now {
      throw CheckpointError(
        checkpoint.path,
        "belongs to another run: its \(what) differs; choose another --run-dir, or restore what changed")
    }
    spikes = SpikeGuard(job.spikes, state: manifest.spikes ?? .init())
    if let fault = saved.fault(in: job.phases, spikes: spikes) { throw CheckpointError(checkpoint.path, fault) }
    position = saved
    let isPhaseDone = saved.phaseStep == job.phases[saved.phase].steps && saved.phase + 1 < job.phases.count
    if isPhaseDone {
      position.beginNextPhase()
      spikes.beginPhase()
    }
    enterPhase()
    try state.restore(checkpoint, hasMoments: !isPhaseDone)
    saver.resume(from: position.step)
  }

  private var phase: Phase { job.phases[position.phase] }

  private var state: RunState { RunState(student: models.student, runner: runner, phases: job.phases) }

  /// Makes ready for the phase at hand, in which the run may have come some way.
  private func enterPhase() {
    StepRunner.replace(
      &runner, for: phase, of: job.phases, student: models.student, teacher: models.teacher, world: world,
      backend: backend)
    runner.watchdog = watchdog
    updates.replay(position.step - position.phaseStep..<position.step)
  }

  // MARK: - The loop

  /// Trains to the end, until step `stopStep` has been saved, or until `stop` says so.
  package func train(stopStep: Int? = nil, stop: StopRequest? = nil) throws -> RunOutcome {
    var metrics = try openMetrics()
    let rate = Machine.matrixRate(backend)
    say(
      "\(job.kind.rawValue) \(job.path): \(Format.count(Double(job.totalTokens))) tokens in \(job.totalSteps) steps, "
        + "\(world.size) ranks × \(backend.deviceDescription), \(Int(rate / 1e9)) GF/s a rank, run folder \(run.path)"
    )
    if position.step == 0, let dropped = models.transferLosses.droppedHeads { say(dropped) }
    var operations = estimatedOperations()
    // A run that was stopped while it validated does so first when it goes on, so that its log lacks nothing.
    var mustStop = try isValidationDue(metrics) ? !validate(metrics, stop) : false
    while position.step < job.totalSteps && !mustStop {
      if position.phaseStep == phase.steps {
        try saver.finish()
        try runner.raise()
        position.beginNextPhase()
        spikes.beginPhase()
        enterPhase()
        operations = estimatedOperations()
        say("phase \(phase.name)")
      }
      var isSaveDue = false
      switch try trainStep(metrics, operations: operations, rate: rate, stop) {
      case .left:
        say("leaving step \(position.step + 1), of which nothing is kept")
        mustStop = true
        try save()
        continue
      case .done(let isStopAsked, let isDue):
        mustStop = isStopAsked || stopStep.map { position.step >= $0 } ?? false
        isSaveDue = isDue
      }
      if spikes.isExhausted {
        try rollBack()
        metrics = try openMetrics()
        continue
      }
      let isLast = position.step == job.totalSteps
      // What ends a phase is measured under that phase, whoever waits.
      let endsPhase = position.phaseStep == phase.steps
      if job.validationEvery > 0, isLast || (isDue(job.validationEvery) && (endsPhase || !mustStop)) {
        mustStop = try !validate(metrics, endsPhase ? nil : stop) || mustStop
      }
      if isLast || mustStop || isDue(job.checkpointEvery) || isSaveDue || saver.isRetryDue {
        try metrics?.flush()
        try save()
      }
    }
    try saver.finishLast(step: position.step) { try save() }
    watchdog.stop()
    if position.step < job.totalSteps {
      say("stopped at step \(position.step)\(stop?.reason.map { " (\($0))" } ?? "")")
      return .stopped(step: position.step)
    }
    try runner.raise()
    try agree(world) {
      if world.isCoordinator { try ModelWriter(companions: companions).write(models.student, to: run.path + "/model") }
    }
    say("finished: the model is in \(run.path)/model")
    return .finished
  }

  private func openMetrics() throws -> MetricsLog? {
    world.isCoordinator ? try MetricsLog(run.path + "/metrics.jsonl", keepingStepsTo: position.step) : nil
  }

  /// Goes back to the newest checkpoint before the updates that were left out, and passes their data over from there.
  private func rollBack() throws {
    let phase = phase
    let (skipped, last) = (spikes, position)
    let (first, end) = (skipped.state.firstStep, position.sequences)
    try saver.finish()
    try runner.settle()
    guard skipped.state.returns < 3,
      let checkpoint = try Checkpoint.newestGood(in: run, before: first, world: world, sharing: sharing, warn: say),
      checkpoint.manifest.phase == last.phase, checkpoint.manifest.phaseStep < phase.steps
    else {
      throw JobError(
        .diverged,
        "steps \(first) to \(last.step) of phase \(phase.name) gave no update, and there is no checkpoint of that phase "
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
    try plans[position.phase].checkSupply(sequences: phase.sequences(before: phase.steps) + passed)
    say(
      "steps \(first) to \(last.step) gave no update: back to step \(position.step), passing over sequences "
        + "\(skipped.state.firstSequence) to \(end) of phase \(phase.name)")
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
    try runner.settle()
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

  private func isDue(_ every: Int) -> Bool { every > 0 && position.step % every == 0 }

  /// Whether the log lacks the validation of the step where the run stands.
  private func isValidationDue(_ metrics: MetricsLog?) throws -> Bool {
    guard job.validationEvery > 0, isDue(job.validationEvery) || position.step == job.totalSteps else { return false }
    var isMissing = [Int64(0)]
    if let metrics, !metrics.validatedSteps.contains(position.step) { isMissing[0] = 1 }
    try world.sum(&isMissing)
    return isMissing[0] > 0
  }

  /// What became of a step.
  private enum StepEnd {
    case done(isStopAsked: Bool, isSaveDue: Bool)
    /// The ranks left it, since one of them wants to stop: nothing has changed.
    case left
  }

  private func trainStep(
    _ metrics: MetricsLog?, operations: Double, rate: Double, _ stop: StopRequest?
  ) throws -> StepEnd {
    let phase = phase
    var clock = PhaseClock()
    FailPoint.at(rank: world.rank, step: position.step + 1)
    watchdog.enter(.data, step: position.step + 1)
    try FailPoint.reach(.loader)
    let count = phase.batch(at: position.phaseStep)
    let start = spikes.begin(at: position.sequences, count: count)
    let batches = try runner.microBatches(of: count).map { index in
      try plans[position.phase].read(start + index * phase.microBatch..<start + (index + 1) * phase.microBatch)
    }
    clock.mark("data")
    models.student.path = path(at: position.step)
    let learningRate = phase.learningRate(at: position.phaseStep)
    let sequences = start..<start + count
    let decide = { [self] (loss: Double, norm: Double) in
      try accepts(loss: loss, norm: norm, sequences: sequences)
    }
    let readFlags = { [self] () -> RankFlags in
      var flags: RankFlags = []
      if stop?.reason != nil { flags.insert(.wantsStop) }
      if world.isCoordinator, saver.isDueByClock { flags.insert(.wantsSave) }
      if saver.hasWritten { flags.insert(.hasWritten) }
      return flags
    }
    var counted = updates
    let result = try runner.run(
      batches, updates: counted.count(position.step), learningRate: learningRate, dataSeconds: clock.seconds["data"]!,
      accepts: decide, flags: readFlags)
    guard let result else { return .left }
    updates = counted
    clock.mark("step")
    if result.isSaveWritten { try saver.finish() }
    clock.mark("save")
    saver.hasUpdated = saver.hasUpdated || !result.isSkipped
    position.advance(reading: count, to: sequences.upperBound, context: phase.context)
    if job.replicaCheckEvery > 0, isDue(job.replicaCheckEvery) { try checkReplicas() }
    for text in [
      stragglers.data.report(result.rankSeconds.data, step: clock.total),
      stragglers.compute.report(result.rankSeconds.compute, step: clock.total),
    ] { text.map(say) }
    if saver.longest > 0 { stop?.needs(saver.longest + clock.total) }
    let end = StepEnd.done(isStopAsked: result.isStopAsked, isSaveDue: result.isSaveDue)
    guard let metrics else { return end }
    var seconds = result.seconds
    seconds["data"] = clock.seconds["data"]
    // What saving held up since the last line.
    seconds["save"] = clock.seconds["save"]! + saver.takeStall()
    seconds["total"] = clock.total
    let speed = Double(count * phase.context) / clock.total
    let share = operations * Double(count / phase.microBatch) / clock.total / (rate * Double(world.size))
    try metrics.write([
      "step": position.step, "phase": phase.name, "tokens": position.tokens, "loss": result.loss,
      "losses": result.losses.named(phase.losses), "lr": learningRate, "grad_norm": result.gradientNorm,
      "seconds": seconds, "tokens_per_s": speed, "sgemm_share": share, "peak_memory": Machine.peakMemory,
      "sequences": [sequences.lowerBound, sequences.upperBound], "skipped": result.isSkipped,
    ])
    let left = Double(job.totalSteps - position.step) * clock.total
    let line =
      "step \(position.step)/\(job.totalSteps)  tokens \(Format.count(Double(position.tokens)))  loss \(String(format: "%.5g", result.loss))  "
      + "lr \(String(format: "%.2e", learningRate))  grad \(String(format: "%.3f", result.gradientNorm))  "
      + "\(Format.count(speed)) tok/s  \(Int(share * 100))% of SGEMM  ETA \(Format.duration(left))"
    if !isQuiet && (isDue(job.logEvery) || position.step == job.totalSteps) {
      progress.update(line, isFinal: position.step == job.totalSteps)
    }
    return end
  }

  /// Matrix operations of one micro-batch of the phase.
  private func estimatedOperations() -> Double {
    StepEstimate.phases(
      [phase], student: models.student.configuration, teacher: models.teacher?.configuration, ranks: 1)[0]
      .operationsPerMicroBatch
  }

  // MARK: - Validation and checkpoints

  /// The path of a supernet at `step`; nil for other students.
  private func path(at step: Int) -> SupernetPath? {
    job.supernet?.path(step: step, layers: models.student.layers.count, seed: job.seed)
  }

  /// - Returns: whether it came to its end; a wish to stop ends it early and leaves nothing in the log
  private func validate(_ metrics: MetricsLog?, _ stop: StopRequest?) throws -> Bool {
    watchdog.enter(.validate, step: position.step)
    try runner.settle()
    // A supernet is measured by one path, always the same.
    models.student.path = path(at: 0)
    var weights = phase.losses
    weights.crossEntropy = 1
    if models.teacher != nil { weights.logits = max(weights.logits, 1) }
    let validation = try Validation(
      of: models.student, teacher: models.teacher, weights: weights,
      plan: plans[position.phase].part(of: position.sequences), sequences: job.validationSequences, world: world,
      backend: backend
    ) { stop?.reason != nil }
    guard let validation else { return false }
    let losses = validation.losses
    try metrics?.write([
      "step": position.step, "phase": phase.name, "validation": losses.named(weights),
      "labels": validation.labels,
    ])
    let kl = models.teacher == nil ? "" : String(format: "  KL %.4f", losses.logits)
    say("validation at step \(position.step): loss \(String(format: "%.4f", losses.crossEntropy))\(kl)")
    return true
  }

  /// Begins to save the state as it is now. A save that is still under way ends first.
  private func save() throws {
    guard position.step != saver.lastSaved else { return }
    try saver.finish()
    watchdog.enter(.save, step: position.step)
    try runner.settle()
    var now = identity
    now.plans = Self.orders(of: plans, job, at: position)
    let (position, size, spikes) = (position, world.size, spikes.state)
    let fields = try job.manifestFields(student: models.student.configuration, kernels: backend.kernelIdentity)
    try saver.begin(state.slices(isCoordinator: world.isCoordinator), step: position.step) { [now] shards in
      CheckpointManifest(
        step: position.step, tokens: position.tokens, phase: position.phase, phaseStep: position.phaseStep,
        sequences: position.sequences, worldSize: size, spikes: spikes, identity: now, job: fields, shards: shards)
    }
  }
}
