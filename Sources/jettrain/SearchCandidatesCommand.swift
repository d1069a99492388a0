import ArgumentParser
import MPI
import Models
import Search
import Training

/// What the steps that train candidates have in common.
struct CandidateOptions: ParsableArguments {
  @Option(help: "The job that trains a candidate (distill); its student is replaced.") var job = "Jobs/distill.yaml"
  @Option(
    name: .customLong("set"),
    help: ArgumentHelp("Override a key of the job, such as train.lr=3e-4.", valueName: "key=value"))
  var overrides: [String] = []
  @Option(help: "The placement: a config.json whose linear layers are replaced; default: the job's student.")
  var config: String?
  @OptionGroup var objectives: ObjectiveOptions
  @Option(help: "Tokens in front when decoding is timed.", transform: Whole.from(1, to: Most.context))
  var decodeContext = 1024
  @Option(help: "Folder to write.") var runDir = Search.standardFolder
  @OptionGroup var device: DeviceOption
  @OptionGroup var stopping: StopOptions

  /// Runs a step on every rank, with the pieces that it needs.
  func run(
    _ step: (_ run: SearchRun, _ base: ModelConfiguration, _ job: Job, _ objectives: ObjectiveSettings) throws -> Void
  ) {
    withWorld { world in
      let job = try Job(.distill, path: job, overrides: overrides, ranks: world.size)
      let base = try ModelConfiguration(path: config ?? job.student)
      // The tokenizer that its data were built with is that of the answers too.
      var settings = try objectives.settings()
      settings.tokenizer = settings.tokenizer ?? job.tokenizer
      try stopping.search(in: runDir, world) { stop in
        let run = try SearchRun(
          folder: runDir, teacher: objectives.teacher ?? job.teacher, stop: stop, world: world,
          backend: device.backend(world, job: job.device))
        try step(run, base, job, settings)
      }
    }
  }
}

extension Search {
  struct Block: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Train each candidate block at a placement, on the same tokens from the same start, and compare them.",
      discussion:
        "Candidates are shared out over the ranks; what was trained before is not trained again. Measured speeds are kept "
        + "in rates.json and reused.")
    @OptionGroup var options: CandidateOptions
    @Option(help: "Mixers, separated by commas.") var candidates = "jet,gdn,gla,deltanet,mamba2,retnet,rwkv7"

    func run() {
      options.run { run, base, job, objectives in
        let mixers = try candidates.split(separator: ",").map { name in
          guard let type = LayerType(rawValue: String(name)), !type.isAttention else {
            throw JobError(
              .usage, "--candidates \(name): unknown; linear mixers are jet, gla, retnet, mamba2, deltanet, gdn, rwkv7")
          }
          return type
        }
        _ = try run.blocks(mixers, base: base, job: job, objectives: objectives, decodeContext: options.decodeContext)
      }
    }
  }

  struct Dimensions: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract:
        "Try shapes of the linear state that take the same memory: decoding speed constrains, objectives choose.",
      discussion: "d_V follows from d_K and heads. Speeds are measured on this machine, once, and kept in rates.json.")
    @OptionGroup var options: CandidateOptions
    @Option(
      help: ArgumentHelp("d_K, separated by commas.", valueName: "n,n,…"), transform: Whole.list(from: 1, to: 65_536))
    var keySizes: [Int]
    @Option(
      help: ArgumentHelp("Heads, separated by commas.", valueName: "n,n,…"), transform: Whole.list(from: 1, to: 65_536))
    var heads: [Int]
    @Option(
      help: "Elements of a layer's state, heads × d_K × d_V; default: those of the configuration.",
      transform: Whole.from(1))
    var elements: Int?
    @Option(
      help: "Share of the fastest shape's decoding speed that a shape must reach.", transform: Real.above(0, to: 1))
    var tolerance = 0.97

    func run() {
      options.run { run, base, job, objectives in
        let request = DimensionsRequest(
          keySizes: keySizes, heads: heads, elements: elements, tolerance: tolerance)
        _ = try run.dimensions(
          request, base: base, job: job, objectives: objectives, decodeContext: options.decodeContext)
      }
    }
  }
}
