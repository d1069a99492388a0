import Conversion
import Evaluation
import Foundation
import MPI
import Models
import Tensors
import Training

/// All four steps of PostNAS in a row, as one job file says (docs/search.md).
package struct SearchJob: Sendable {
  package let path: String
  package let name: String
  package var runFolder: String
  package let teacher: String?
  private let objectives: ObjectiveSettings
  private let decodeContext: Int
  private let placement: PlacementRequest
  private let mixers: [LayerType]
  private let dimensions: DimensionsRequest?
  /// The jobs that train the supernet, the blocks and the shapes; their run folders are replaced.
  private let supernetJob: Job
  private let blockJob: Job
  private let dimensionsJob: Job?

  /// Reads the job at `path`, and the jobs that it names, and refuses what can be seen to be wrong without weights and data:
  /// a mistake must not show after the supernet has trained.
  ///
  /// - Parameters:
  ///   - overrides: `key.path=value` pairs, taken as YAML
  ///   - ranks: that will run it, for the batches to divide by
  package init(path: String, overrides: [String] = [], ranks: Int) throws {
    var object = try Job.mapping(path)
    for override in overrides { try Job.apply(override, to: &object) }
    let faults = YAMLReader.Faults()
    let root = YAMLReader(object, path: "", faults: faults)
    self.path = path
    if let kind = root.string("kind"), kind != "search" { root.fault("kind", "this job file is for jettrain \(kind)") }
    name = root.string("name") ?? ((path as NSString).lastPathComponent as NSString).deletingPathExtension
    runFolder = root.string("run_dir") ?? "Checkpoints/" + name
    teacher = root.string("teacher")
    decodeContext = root.integer("decode_context", from: 1) ?? 1024
    let seed = root.integer("seed", to: .max).map(UInt64.init) ?? ObjectiveSettings.standardSeed

    let section = root.section("objectives")
    var measures = Self.objectives(section, seed: seed)

    let placementSection = root.section("placement")
    placementSection.demand("full", "layers of full attention to keep")
    let standard = SearchSettings()
    placement = PlacementRequest(
      full: placementSection.integer("full") ?? 0, sliding: placementSection.integer("sliding") ?? 0,
      strategies: placementSection.list("strategies", StrategyName.self) ?? [.beam],
      settings: SearchSettings(
        width: placementSection.integer("width", from: 1) ?? standard.width,
        evaluations: placementSection.integer("evaluations", from: 1) ?? standard.evaluations,
        gateSteps: placementSection.integer("gate_steps", from: 1) ?? standard.gateSteps, seed: seed))
    if placement.strategies.isEmpty { placementSection.fault("strategies", "the list is empty") }
    let supernet = Self.job(placementSection, ranks: ranks)
    placementSection.rejectUnknownKeys()

    let blockSection = root.section("block")
    mixers = blockSection.list("candidates", LayerType.self) ?? LayerType.linear
    if mixers.contains(where: \.isAttention) || mixers.isEmpty || Set(mixers).count != mixers.count {
      blockSection.fault("candidates", "must be different linear mixers")
    }
    let block = Self.job(blockSection, ranks: ranks)
    blockSection.rejectUnknownKeys()

    let dimensionsSection = root.has("dimensions") ? root.section("dimensions") : nil
    dimensions = dimensionsSection.map { section in
      func sizes(_ key: String) -> [Int] {
        let known = faults.lines.count
        let values = section.counts(key) ?? []
        if values.isEmpty && faults.lines.count == known { section.fault(key, "must be a list of numbers above zero") }
        return values
      }
      return DimensionsRequest(
        keySizes: sizes("key_sizes"), heads: sizes("heads"), tolerance: section.number("tolerance") ?? 0.97)
    }
    dimensionsJob = dimensionsSection.flatMap { Self.job($0, ranks: ranks) }
    dimensionsSection?.rejectUnknownKeys()
    root.rejectUnknownKeys()

    // What one key alone does not show.
    if measures.tokenizer == nil { measures.tokenizer = supernet?.tokenizer }
    objectives = measures
    Self.collect(section, "scores") { [teacher, placement] in
      try measures.check(hasTeacher: teacher != nil, strategies: placement.strategies)
    }
    if faults.lines.isEmpty, let supernet {
      Self.collect(placementSection, "full") { [placement] in
        let shape = try supernet.studentConfiguration()
        let space = try placement.space(of: shape, path: supernet.student)
        guard space.full + space.sliding < space.layers else {
          throw JobError(.usage, "no layer is left to become linear")
        }
      }
    }
    guard faults.lines.isEmpty, let supernet, let block, dimensions == nil || dimensionsJob != nil else {
      throw JobError(.usage, reasons: faults.lines.map { "\(path): \($0)" })
    }
    (supernetJob, blockJob) = (supernet, block)
    // Every winner of a step must be able to go through the next one.
    Self.collect(blockSection, "candidates") { [self] in _ = try candidates() }
    if let dimensions, let dimensionsSection {
      Self.collect(dimensionsSection, "key_sizes") { [self] in
        for candidate in try candidates() where try isSearchable(candidate) {
          _ = try dimensions.candidates(of: candidate.configuration)
        }
      }
    }
    guard faults.lines.isEmpty else { throw JobError(.usage, reasons: faults.lines.map { "\(path): \($0)" }) }
  }

  private static func objectives(_ section: YAMLReader, seed: UInt64) -> ObjectiveSettings {
    var measures = ObjectiveSettings()
    measures.names = section.strings("scores") ?? measures.names
    let (mix, context) = (section.string("mix"), section.integer("context", from: 1) ?? 256)
    measures.heldOut = section.string("data").map { HeldOutFolder(data: $0, mix: mix, context: context) }
    measures.sequences = section.integer("sequences", from: 1) ?? measures.sequences
    let standard = measures.retrieval
    measures.retrieval = RetrievalSettings(
      items: section.integer("items", from: 1) ?? standard.items,
      queries: section.integer("queries", from: 1) ?? standard.queries,
      words: section.integer("words", from: 1) ?? standard.words,
      keys: section.integer("keys", from: 1) ?? standard.keys)
    measures.match = section.choice("match", AnswerMatch.self) ?? measures.match
    measures.tokenizer = section.string("tokenizer")
    measures.seed = seed
    section.rejectUnknownKeys()
    return measures
  }

  /// The training job that a step runs, with what it changes in it.
  private static func job(_ section: YAMLReader, ranks: Int) -> Job? {
    let path = section.required("job", "the job file that trains this step's models")
    let overrides = section.strings("set") ?? []
    var job: Job?
    if !path.isEmpty {
      collect(section, "job") { job = try Job(.distill, path: path, overrides: overrides, ranks: ranks) }
    }
    return job
  }

  /// Makes an error of `body` a fault of a key.
  private static func collect(_ section: YAMLReader, _ key: String, _ body: () throws -> Void) {
    do { try body() } catch let error as JobError {
      for reason in error.reasons { section.fault(key, reason) }
    } catch { section.fault(key, "\(error)") }
  }

  // MARK: - What it trains

  /// The shape of the supernet, and of the candidates at some placement: where the linear layers are, matters to none.
  private func supernetShape() throws -> ModelConfiguration { try supernetJob.studentConfiguration() }

  private func candidates() throws -> [Candidate] {
    let shape = try supernetShape()
    let space = try placement.space(of: shape, path: supernetJob.student)
    return try SearchRun.blocks(mixers, base: shape.placed(space.uniform))
  }

  /// Whether the shapes of this block can be searched. All but RWKV7's must, since its keys and values are of one size and
  /// few grids have such shapes.
  private func isSearchable(_ candidate: Candidate) throws -> Bool {
    guard candidate.configuration.linearShape?.mixer == .rwkv7, let dimensions else { return true }
    return try !dimensions.shapes(of: candidate.configuration).isEmpty
  }

  /// A step that trains models: which, and by which job.
  package struct Step {
    package let name: String
    package let job: Job
    package let candidates: [Candidate]
  }

  /// The steps that train. Which block wins is not known before: the shapes are those of one that has most of them.
  package func steps() throws -> [Step] {
    let blocks = try candidates()
    var steps = [
      Step(
        name: "supernet", job: supernetJob,
        candidates: [Candidate(name: "supernet", configuration: try supernetShape())]),
      Step(name: "block", job: blockJob, candidates: blocks),
    ]
    if let dimensions, let dimensionsJob {
      let shapes = try blocks.filter(isSearchable).map { try dimensions.candidates(of: $0.configuration).candidates }
      if let most = shapes.max(by: { $0.count < $1.count }) {
        steps.append(Step(name: "dimensions", job: dimensionsJob, candidates: most))
      }
    }
    return steps
  }

  // MARK: - Running

  /// Refuses what is not there, or does not fit together, on this machine.
  private func checkInputs(teacher: ModelConfiguration?) throws {
    let steps = try steps()
    for step in steps {
      try step.job.checkModels()
      let teacher = try step.job.teacher.map { try modelConfiguration(of: $0) }
      _ = try step.job.dataPlans(student: step.candidates[0].configuration, teacher: teacher)
      guard let teacher else { throw JobError(.usage, "\(step.job.path): model.teacher is missing") }
      // A student that cannot be made of its teacher says so without weights too.
      let shapes = ShapeBackend()
      let model = HybridLM(teacher)
      model.initialize(seed: 0, backend: shapes)
      for candidate in step.candidates {
        _ = try Student(
          candidate.configuration, of: model, initialization: step.job.initialization, seed: 0, backend: shapes)
      }
    }
    _ = try objectives.make(
      of: supernetJob.teacher ?? supernetJob.student, fits: steps.flatMap(\.candidates).map(\.configuration),
      teacher: teacher)
    _ = try MeasuredRates(path: runFolder + "/rates.json")
    _ = try SearchResult(folder: runFolder)
  }

  /// Trains the supernet, and goes through the steps. What was done before is not done again.
  ///
  /// - Parameter say: called with the heading of each step
  package func run(
    stop: StopRequest, world: Communicator, backend: any Backend, say: (String) -> Void
  ) throws {
    let run = try SearchRun(folder: runFolder, teacher: teacher, stop: stop, world: world, backend: backend)
    try checkInputs(teacher: run.teacher?.configuration)

    say("1. A supernet: every layer holds its attention and a linear path")
    var supernetJob = supernetJob
    supernetJob.runFolder = runFolder + "/supernet"
    let trainer = try Trainer(supernetJob, world: world, backend: backend, resume: .auto)
    if case .stopped = try trainer.train(stop: stop) { throw Stopped() }

    say("2. Placement: which layers keep attention")
    var found = try run.placement(
      supernet: supernetJob.runFolder + "/model", placement, objectives: objectives
    ).configuration
    say("3. Block: what the other layers get")
    found = try run.blocks(
      mixers, base: found, job: blockJob, objectives: objectives, decodeContext: decodeContext
    ).configuration
    guard let dimensions, let dimensionsJob else { return }
    if try dimensions.shapes(of: found).isEmpty {
      say("4. Dimensions: rwkv7 won, and the grid has no shape of equal keys and values; its shape stays")
      return
    }
    say("4. Dimensions: its shape, at one cache size")
    _ = try run.dimensions(
      dimensions, base: found, job: dimensionsJob, objectives: objectives, decodeContext: decodeContext)
  }
}
