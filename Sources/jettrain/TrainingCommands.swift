import ArgumentParser
import Foundation
import MPI
import Training

extension ResumePolicy: ExpressibleByArgument {}

/// What the three training commands have in common.
struct TrainingOptions: ParsableArguments {
  @Option(help: "The job file; default: Jobs/teacher.yaml, Jobs/distill.yaml or Jobs/finetune.yaml.")
  var job: String?

  @Option(
    help: "Folder for checkpoints, metrics and the final model; default: the job's run_dir, else Checkpoints/NAME.")
  var runDir: String?

  @Option(help: "auto goes on from the newest good checkpoint, must insists on one, never starts anew.")
  var resume: ResumePolicy = .auto

  @Option(
    name: .customLong("set"),
    help: ArgumentHelp("Override a key of the job, such as train.lr=3e-4.", valueName: "key=value"))
  var overrides: [String] = []

  @Option(help: "Train on this dataset, whatever data and mix the job names.")
  var data: String?

  @Option(help: "In place of the job's train.seed.", transform: Whole.from(0, to: .max)) var seed: Int?

  @Option(help: "Save after this step and exit with 75, as if asked to stop.", transform: Whole.from(1))
  var stopAtStep: Int?

  @OptionGroup var device: DeviceOption
  @OptionGroup var stopping: StopOptions

  /// The job as the options say.
  func job(_ kind: JobKind, overrides extra: [String], ranks: Int) throws -> Job {
    var job = try Job(
      kind, path: job ?? "Jobs/\(kind == .pretrain ? "teacher" : kind.rawValue).yaml",
      overrides: overrides + extra
        + (data.map { ["data.root=null", "data.mix=null", Job.setting("data.path", to: $0)] } ?? [])
        + (seed.map { ["train.seed=\($0)"] } ?? []),
      ranks: ranks)
    if let runDir { job.runFolder = runDir }
    try refusePlace(job.runFolder, "--run-dir")
    return job
  }

  func run(_ kind: JobKind, overrides extra: [String] = []) {
    withWorld { world in
      let job = try job(kind, overrides: extra, ranks: world.size)
      let stop = try stopping.request(runFolder: job.runFolder, isCoordinator: world.isCoordinator)
      let backend = try device.backend(world, job: job.device)
      let trainer = try Trainer(job, world: world, backend: backend, resume: resume)
      if case .stopped = try trainer.train(stopStep: stopAtStep, stop: stop) {
        if world.isCoordinator {
          stop.consume()
          FileHandle.standardError.write(Data("jettrain: \(Stopped())\n".utf8))
        }
        stopped = true
      }
    }
    if stopped { Foundation.exit(ExitStatus.stoppedOnRequest) }
  }
}

/// Whether the run ended early on request; read after MPI was finalised.
nonisolated(unsafe) private var stopped = false

struct Pretrain: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Train a model from random weights: a demo's teacher, or a baseline.")
  @OptionGroup var options: TrainingOptions
  func run() { options.run(.pretrain) }
}

struct Distill: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Stage 1: distil a hybrid from its full-attention teacher, MLPs frozen.")
  @OptionGroup var options: TrainingOptions
  func run() { options.run(.distill) }
}

struct Finetune: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Stage 2: train the full model on the next token, from stage 1's result.")
  @OptionGroup var options: TrainingOptions

  @Option(help: "A mix: a name from Jobs/mixes, or a path.")
  var mix: String?

  var mixOverride: [String] { mix.map { [Job.setting("data.mix", to: $0)] } ?? [] }

  func run() { options.run(.finetune, overrides: mixOverride) }
}
