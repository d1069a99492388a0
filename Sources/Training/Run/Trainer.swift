import Checkpointing
import Fabric
import Files
import MPI
import Models
import Reporting
import Tensors

/// How a run ended.
package enum RunOutcome {
  case finished
  /// At a checkpoint, on request; the same command goes on.
  case stopped(step: Int)
}

/// Runs a job from its first or last step to its end, on all ranks together. Here is the loop; its parts are extensions in
/// files of their own: TrainStep, Validation, Checkpoints, RollBack, Resume.
package final class Trainer {
  let job: Job
  let world: Communicator
  let backend: any Backend
  let inputs: RunInputs
  /// The coordinator keeps the run folder to this run.
  private let lock: FolderLock?
  let loader: BatchLoader
  let fabric: any Fabric
  let watchdog: Watchdog
  let saver: Saver
  let progress = ProgressLine()
  let isQuiet: Bool

  var position = Position()
  var runner: StepRunner!
  var updates: PathUpdates
  /// Ranks whose host cannot show that it lives.
  var muteRanks: [Int] = []
  var spikes: SpikeGuard
  /// What one rank holds the others up with.
  var stragglers = (data: Straggler(phase: "data"), compute: Straggler(phase: "compute"))
  /// Of the models in a micro-batch of the phase at hand, and of this rank's matrix products a second.
  var operations = 0.0
  var matrixRate = 1.0

  var models: ModelSetup { inputs.models }
  var phase: Phase { job.phases[position.phase] }

  /// Reads models and data, agrees on them over the ranks, and goes to where the run stands.
  ///
  /// - Parameter isQuiet: keep progress to itself
  package init(
    _ job: Job, world: Communicator, backend: any Backend, resume policy: ResumePolicy, isQuiet: Bool = false
  ) throws {
    (self.job, self.world, self.backend, self.isQuiet) = (job, world, backend, isQuiet)
    FailPoint.at(rank: world.rank, step: 0)
    let run = try RunInputs.folder(job, world: world)
    lock = try RunInputs.lock(run, world: world)
    watchdog = try Watchdog(world, runFolder: run.path, session: run.session, floor: job.watchdogFloor)
    inputs = try RunInputs(job, run: run, world: world, backend: backend)
    fabric = try makeFabric(world, for: backend)
    loader = BatchLoader(inputs.plans)
    spikes = SpikeGuard(job.spikes)
    updates = PathUpdates(of: inputs.models.student, job.supernet, seed: job.seed)
    let (progress, isCoordinator) = (progress, world.isCoordinator)
    saver = Saver(job, run: inputs.run, world: world, sharing: inputs.sharing, watchdog: watchdog) {
      if isCoordinator && !isQuiet { progress.print($0) }
    }
    if let former = lock?.takenOver { say("\(run.path): taken over from \(former), which ended without a word") }
    for warning in Set(inputs.plans.flatMap(\.warnings)).sorted() { say("WARNING: \(warning)") }
    if let warning = try RunInputs.kernelWarning(of: backend, world: world) { say(warning) }
    try resume(policy)
  }

  func say(_ text: String) {
    if world.isCoordinator && !isQuiet { progress.print(text) }
  }

  func isDue(_ every: Int) -> Bool { every > 0 && position.step % every == 0 }

  /// The path of a supernet at `step`; nil for other students.
  func path(at step: Int) -> SupernetPath? {
    job.supernet?.path(step: step, layers: models.student.layers.count, seed: job.seed)
  }

  /// Makes ready for the phase at hand, in which the run may have come some way.
  func enterPhase() {
    StepRunner.replace(
      &runner, for: phase, of: job.phases, student: models.student, teacher: models.teacher, world: world,
      fabric: fabric, backend: backend)
    watchdog.forget()
    runner.watchdog = watchdog
    runner.willUpdate = { [saver] in saver.waitForCopy() }
    updates.replay(position.step - position.phaseStep..<position.step)
    operations = StepEstimate.modelOperations(
      of: phase, student: models.student.configuration, teacher: models.teacher?.configuration)
  }

  /// Trains to the end, until step `stopStep` has been saved, or until `stop` says so.
  package func train(stopStep: Int? = nil, stop: StopRequest? = nil) throws -> RunOutcome {
    if let stopStep, position.step >= stopStep, position.step < job.totalSteps {
      throw JobError(
        .usage,
        "--stop-at-step \(stopStep): the run is at step \(position.step) already; name a later step, or none to go on")
    }
    var metrics = openMetrics()
    matrixRate = Machine.matrixRate(backend)
    say(
      "\(job.kind.rawValue) \(job.path): \(Format.count(Double(job.totalTokens))) tokens in \(Format.counted(job.totalSteps, "step")), "
        + "\(Format.counted(world.size, "rank")) × \(backend.deviceDescription)\(world.hasOthers ? " by \(fabric.description)" : ""), \(Int(matrixRate / 1e9)) GF/s a rank, run folder "
        + inputs.run.path)
    if position.step == 0, let dropped = models.transferLosses.droppedHeads { say(dropped) }
    // A run that was stopped while it validated does so first when it goes on, so that its log lacks nothing.
    var mustStop = try isValidationDue(metrics) ? !validate(metrics, stop) : false
    while position.step < job.totalSteps && !mustStop {
      if position.phaseStep == phase.steps { try beginNextPhase() }
      var isSaveDue = false
      switch try trainStep(metrics, stop) {
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
        metrics = openMetrics(after: metrics)
        continue
      }
      let isLast = position.step == job.totalSteps
      // What ends a phase is measured under that phase, whoever waits.
      let endsPhase = position.phaseStep == phase.steps
      if job.validationEvery > 0, isLast || (isDue(job.validationEvery) && (endsPhase || !mustStop)) {
        mustStop = try !validate(metrics, endsPhase ? nil : stop) || mustStop
      }
      if isLast || mustStop || isDue(job.checkpointEvery) || isSaveDue || saver.isRetryDue {
        metrics?.flush()
        try save()
      }
    }
    try saver.saveFinalState(step: position.step) { try save() }
    watchdog.stop()
    metrics?.finish()
    if position.step < job.totalSteps {
      say("stopped at step \(position.step)\(stop?.reason.map { " (\($0))" } ?? "")")
      return .stopped(step: position.step)
    }
    try writeModel()
    return .finished
  }

  private func beginNextPhase() throws {
    try saver.finish()
    try runner.raise()
    position.beginNextPhase()
    spikes.beginPhase()
    enterPhase()
    say("phase \(phase.name)")
  }

  private func openMetrics(after former: MetricsLog? = nil) -> MetricsLog? {
    guard world.isCoordinator else { return nil }
    return MetricsLog(inputs.run.metrics, keepingStepsTo: position.step, after: former) { [self] in say($0) }
  }

  /// The trained model as a Hugging Face folder.
  private func writeModel() throws {
    try runner.raise()
    // Its tokenizer and settings come from the tokenizer's folder, else from that of the model it began from.
    let companions =
      job.tokenizer == "bytes" ? job.teacher ?? job.student : companionFolder(ofTokenizer: job.tokenizer)
    let path = inputs.run.path + "/model"
    try agree(world) {
      guard world.isCoordinator else { return }
      try carryTokenizer(of: companions, to: path)
      try ModelWriter(companions: companions).write(models.student, to: path)
    }
    say("finished: the model is in \(path)")
  }
}
