import Evaluation
import Foundation
import MPI
import Models
import Tensors
import Training

/// All four steps of PostNAS in a row, as one job file says (docs/search.md).
package struct SearchJob: Sendable {
  package let path: String
  package let folder: String
  package let teacher: String?
  private let objectives: ObjectiveSettings
  private let decodeContext: Int
  private let supernet: Stage
  private let full: Int
  private let sliding: Int
  private let strategies: [StrategyName]
  private let settings: SearchSettings
  private let block: Stage
  private let mixers: [LayerType]
  private let dimensions: Stage?
  private let keySizes: [Int]
  private let heads: [Int]
  private let tolerance: Double

  /// A training job that a step runs, with what it changes in it.
  private struct Stage: Sendable {
    let job: String
    let overrides: [String]

    init(_ reader: YAMLReader) {
      job = reader.required("job", "the job file that trains this step's models")
      overrides = reader.strings("set") ?? []
    }
  }

  /// Reads the job at `path`.
  ///
  /// - Parameter output: folder to write instead of the job's
  package init(path: String, output: String?) throws {
    let faults = YAMLReader.Faults()
    let root = YAMLReader(try Job.mapping(path), path: "", faults: faults)
    self.path = path
    if let kind = root.string("kind"), kind != "search" { root.fault("kind", "this job file is for jettrain \(kind)") }
    let name = root.string("name") ?? ((path as NSString).lastPathComponent as NSString).deletingPathExtension
    let folder = root.string("run_dir")
    self.folder = output ?? folder ?? "Checkpoints/" + name
    teacher = root.string("teacher")
    decodeContext = root.integer("decode_context", from: 1) ?? 1024

    var measures = ObjectiveSettings()
    let section = root.section("objectives")
    measures.names = section.strings("scores") ?? measures.names
    let (mix, context) = (section.string("mix"), section.integer("context", from: 1) ?? 256)
    measures.heldOut = section.string("data").map { HeldOutFolder(data: $0, mix: mix, context: context) }
    measures.sequences = section.integer("sequences", from: 1) ?? measures.sequences
    measures.retrieval = RetrievalSettings(
      items: section.integer("items", from: 1) ?? 16, queries: section.integer("queries", from: 1) ?? 8,
      words: section.integer("words", from: 1) ?? 200, keys: section.integer("keys", from: 1) ?? 52)
    measures.match = section.choice("match", AnswerMatch.self) ?? .contains
    measures.tokenizer = section.string("tokenizer")
    measures.seed = UInt64(root.integer("seed", to: .max) ?? 1)
    section.rejectUnknownKeys()
    objectives = measures

    let placement = root.section("placement")
    supernet = Stage(placement)
    full = placement.integer("full") ?? 0
    if !placement.has("full") { placement.fault("full", "is missing: layers of full attention to keep") }
    sliding = placement.integer("sliding") ?? 0
    strategies = placement.list("strategies", StrategyName.self) ?? [.beam]
    let standard = SearchSettings()
    settings = SearchSettings(
      width: placement.integer("width", from: 1) ?? standard.width,
      evaluations: placement.integer("evaluations", from: 1) ?? standard.evaluations,
      gateSteps: placement.integer("gate_steps", from: 1) ?? standard.gateSteps, seed: measures.seed)
    placement.rejectUnknownKeys()

    let block = root.section("block")
    self.block = Stage(block)
    mixers = block.list("candidates", LayerType.self) ?? LayerType.linear
    if mixers.contains(where: \.isAttention) || mixers.isEmpty || Set(mixers).count != mixers.count {
      block.fault("candidates", "must be different linear mixers")
    }
    block.rejectUnknownKeys()

    if root.has("dimensions") {
      let section = root.section("dimensions")
      dimensions = Stage(section)
      keySizes = section.counts("key_sizes") ?? []
      heads = section.counts("heads") ?? []
      if keySizes.isEmpty || heads.isEmpty { section.fault("key_sizes", "and heads must be lists of numbers") }
      tolerance = section.number("tolerance") ?? 0.97
      section.rejectUnknownKeys()
    } else {
      (dimensions, keySizes, heads, tolerance) = (nil, [], [], 0.97)
    }
    root.rejectUnknownKeys()
    guard faults.lines.isEmpty else { throw JobError(.usage, reasons: faults.lines.map { "\(path): \($0)" }) }
  }

  /// Trains the supernet, and goes through the steps. What was done before is not done again.
  ///
  /// - Parameter say: called with the heading of each step
  package func run(
    stop: StopRequest, world: Communicator, backend: any Backend, say: (String) -> Void
  ) throws {
    // All job files are read before the first hour is spent.
    let supernetJob = try job(supernet, in: folder + "/supernet", world)
    let blockJob = try job(block, in: folder, world)
    let dimensionsJob = try dimensions.map { try job($0, in: folder, world) }

    say("1. A supernet: every layer holds its attention and a linear path")
    let trainer = try Trainer(supernetJob, world: world, backend: backend, resume: .auto)
    if case .stopped = try trainer.train(stop: stop) { throw Stopped() }
    let run = try SearchRun(folder: folder, teacher: teacher, stop: stop, world: world, backend: backend)

    say("2. Placement: which layers keep attention")
    var found = try run.placement(
      supernet: supernetJob.runFolder + "/model", full: full, sliding: sliding, strategies: strategies,
      settings: settings, objectives: objectives
    ).configuration
    say("3. Block: what the other layers get")
    found = try run.blocks(
      mixers, base: found, job: blockJob, objectives: objectives, decodeContext: decodeContext
    ).configuration
    if let dimensionsJob {
      say("4. Dimensions: its shape, at one cache size")
      _ = try run.dimensions(
        keySizes: keySizes, heads: heads, elements: nil, tolerance: tolerance, base: found, job: dimensionsJob,
        objectives: objectives, decodeContext: decodeContext)
    }
  }

  private func job(_ stage: Stage, in runFolder: String, _ world: Communicator) throws -> Job {
    var job = try Job(.distill, path: stage.job, overrides: stage.overrides, ranks: world.size)
    job.runFolder = runFolder
    return job
  }
}
