import ArgumentParser
import MPI
import Models
import Reporting
import Search
import Training

extension StrategyName: ExpressibleByArgument {}

struct Search: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "PostNAS: which layers keep attention, which linear block the others get, and its dimensions.",
    subcommands: [All.self, Placement.self, Block.self, Dimensions.self, Show.self])

  /// Where steps that are run one by one add to one result, unless they are told otherwise.
  static let standardFolder = "Checkpoints/search"

  struct All: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "All steps in a row: supernet, placement, block, dimensions; what was done is not done again.")
    @Option(help: "The job file.") var job = "Jobs/search.yaml"
    @Option(help: "Folder to write; default the job's run_dir, else Checkpoints/NAME.") var runDir: String?
    @Option(
      name: .customLong("set"),
      help: ArgumentHelp("Override a key of the job, such as placement.full=2.", valueName: "key=value"))
    var overrides: [String] = []
    @Option(help: "In place of the job's seed.", transform: Whole.from(0, to: .max)) var seed: Int?
    @OptionGroup var device: DeviceOption
    @OptionGroup var stopping: StopOptions

    /// The job as the options say.
    func job(ranks: Int) throws -> SearchJob {
      var job = try SearchJob(path: job, overrides: overrides + (seed.map { ["seed=\($0)"] } ?? []), ranks: ranks)
      if let runDir { job.runFolder = runDir }
      return job
    }

    func run() {
      withWorld { world in
        let job = try job(ranks: world.size)
        let progress = ProgressLine()
        try stopping.search(in: job.runFolder, world) { stop in
          try job.run(stop: stop, world: world, backend: device.backend(world)) { text in
            if world.isCoordinator { progress.print("\n== \(text)") }
          }
        }
      }
    }
  }

  struct Placement: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Search a trained supernet for the layers to keep, under a budget; also under mpirun.",
      discussion:
        "Train the supernet with `jettrain distill` (a configuration with supernet_mixer, model.full_layers). Writes "
        + "result.json, report.html and the student's config.json, and keeps evaluations.jsonl, so that a search that was "
        + "killed goes on.")
    @Argument(help: "The supernet: its model folder, run folder or checkpoint.") var supernet: String
    @Option(help: "Layers of full attention to keep.", transform: Whole.from(0, to: 10_000)) var full: Int
    @Option(help: "Layers of attention over a sliding window.", transform: Whole.from(0, to: 10_000)) var sliding = 0
    @Option(
      help: ArgumentHelp(
        "Several may be given: " + StrategyName.allCases.map(\.rawValue).joined(separator: ", ") + ".",
        valueName: "strategy"))
    var strategy: [StrategyName] = [.beam]
    @OptionGroup var objectives: ObjectiveOptions
    @Option(help: "Partial placements that beam keeps.", transform: Whole.from(1, to: 10_000)) var width = 3
    @Option(
      help: "Evaluations that random, evolution, predictor and reinforce may ask for.",
      transform: Whole.from(1, to: 1_000_000)) var evaluations = 32
    @Option(help: "Steps in which differentiable learns its gates.", transform: Whole.from(1, to: 1_000_000))
    var gateSteps = 60
    @Option(help: "Folder to write.") var runDir = Search.standardFolder
    @OptionGroup var device: DeviceOption
    @OptionGroup var stopping: StopOptions

    func run() {
      withWorld { world in
        let request = PlacementRequest(
          full: full, sliding: sliding, strategies: strategy,
          settings: SearchSettings(width: width, evaluations: evaluations, gateSteps: gateSteps, seed: objectives.seed))
        try stopping.search(in: runDir, world) { stop in
          let run = try SearchRun(
            folder: runDir, teacher: objectives.teacher, stop: stop, world: world,
            backend: device.backend(world))
          _ = try run.placement(supernet: supernet, request, objectives: objectives.settings())
        }
      }
    }
  }

  struct Show: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show the result of a search as tables.")
    @Argument(help: "The folder that a search wrote.") var folder: String
    @Flag(help: "Also write report.html and importance.svg anew.") var report = false

    func run() {
      withoutWorld {
        try Self.print(folder: folder)
        if report { try SearchResult(folder: folder).write(to: folder) }
      }
    }

    static func print(folder: String) throws {
      let result = try SearchResult(folder: folder)
      var parts: [String] = []
      if let placement = result.placement {
        parts.append(Format.table(placement.importanceRows))
        parts.append(Format.table(placement.strategyRows))
        if placement.objectives.count > 1 {
          parts.append("Pareto front:\n" + Format.table(placement.paretoRows))
        }
      }
      if let blocks = result.blocks { parts.append(Format.table(blocks.rows)) }
      if let dimensions = result.dimensions { parts.append(Format.table(dimensions.rows)) }
      guard !parts.isEmpty else {
        throw JobError(.data, "\(folder)/\(SearchResult.fileName): there is no result of a search")
      }
      parts.append("\(folder)/config.json is the student, \(folder)/report.html shows it all")
      Swift.print(parts.joined(separator: "\n\n"))
    }
  }
}

extension StopOptions {
  /// Runs a search in `folder` and shows what it found. Asked to stop, it leaves on all ranks before the file that may have
  /// asked is removed.
  func search(in folder: String, _ world: Communicator, _ body: (StopRequest) throws -> Void) throws {
    try refusePlace(folder, "--run-dir")
    let stop = try request(runFolder: folder, isCoordinator: world.isCoordinator)
    let lock = try RunLock(folder, world)
    defer { lock.giveBack() }
    do { try body(stop) } catch let stopped as Stopped {
      if world.isCoordinator { stop.consume() }
      throw stopped
    }
    if world.isCoordinator { try Search.Show.print(folder: folder) }
  }
}
