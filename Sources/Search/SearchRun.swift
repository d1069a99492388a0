import CPUBackend
import Checkpointing
import Files
import Foundation
import MPI
import Models
import Training

/// The steps of a search, each of which adds to the result in one folder.
package struct SearchRun {
  private let folder: String
  private let world: Communicator
  private let backend: CPUBackend
  package let teacher: HybridLM?
  private let stop: StopRequest

  /// - Parameter teacher: folder or run of the teacher, for objectives that need it
  package init(
    folder: String, teacher: String?, stop: StopRequest, world: Communicator, backend: CPUBackend
  ) throws {
    self.folder = folder
    self.stop = stop
    self.world = world
    self.backend = backend
    self.teacher = try teacher.map { try loadModel($0, backend: backend) }
    try agree(world) { if world.isCoordinator { try createFolder(folder) } }
  }

  /// Searches the supernet for the layers that keep attention. Writes `config.json`, the student with a supernet's linear
  /// mixer in the other layers.
  package func placement(
    supernet path: String, full: Int, sliding: Int, strategies: [StrategyName], settings: SearchSettings,
    objectives: ObjectiveSettings
  ) throws -> (result: PlacementResult, configuration: ModelConfiguration) {
    let model = try loadModel(path, backend: backend)
    let layers = model.layers.count
    guard model.configuration.supernetMixer != nil else {
      throw ModelError(path: path, reason: "is not a supernet: its config.json has no supernet_mixer")
    }
    guard full >= 0, sliding >= 0, full + sliding <= layers, !strategies.isEmpty, settings.width > 0,
      settings.evaluations > 0, settings.gateSteps > 0
    else {
      throw JobError(
        .usage,
        "a placement of \(full) full and \(sliding) sliding layers of \(layers): there must be as many layers, a "
          + "strategy, and width, evaluations and gate steps above zero")
    }
    guard sliding == 0 || model.configuration.slidingWindow != nil else {
      throw ModelError(path: path, reason: "has no window for sliding layers (efficient_attention_config.swa)")
    }
    let space = PlacementSpace(layers: layers, full: full, sliding: sliding)
    guard !strategies.contains(.exhaustive) || space.count <= 100_000 else {
      throw JobError(.usage, "strategy exhaustive: there are more than 100,000 placements")
    }
    let (measures, weights) = try objectives.make(
      of: path, fits: [model.configuration], teacher: teacher?.configuration)
    let result = try PlacementResult(
      supernet: model, teacher: teacher, objectives: measures, weights: weights, strategies: strategies,
      space: space, settings: settings, cache: folder + "/evaluations.jsonl", stop: stop, world: world, backend: backend
    )
    let configuration = try ModelConfiguration(
      json: result.configuration(of: model.configuration), path: folder + "/config.json")
    try record(configuration) { $0.placement = result }
    return (result, configuration)
  }

  /// Trains the candidates in the place of the linear layers of `base` and compares them. Writes `config.json` of the best.
  package func blocks(
    _ mixers: [LayerType], base: ModelConfiguration, job: Job, objectives: ObjectiveSettings, decodeContext: Int
  ) throws -> (result: SearchResult.BlocksResult, configuration: ModelConfiguration) {
    guard !mixers.isEmpty, Set(mixers).count == mixers.count else {
      throw JobError(.usage, "the candidates must be different mixers")
    }
    let candidates = try mixers.map {
      Candidate(name: $0.rawValue, configuration: try base.replacingLinear(with: $0))
    }
    let (names, weights, results) = try run(candidates, job: job, objectives: objectives, decodeContext: decodeContext)
    let result = SearchResult.BlocksResult(objectives: names, weights: weights, candidates: results)
    let best = candidates.first { $0.name == result.candidates[0].name }!.configuration
    try record(best) { $0.blocks = result }
    return (result, best)
  }

  /// Tries the shapes of one state size for the linear layers of `base`. Writes `config.json` of the choice.
  ///
  /// - Parameter elements: of the state of one layer; nil for as many as `base` has
  package func dimensions(
    keySizes: [Int], heads: [Int], elements: Int?, tolerance: Double, base: ModelConfiguration, job: Job,
    objectives: ObjectiveSettings, decodeContext: Int
  ) throws -> (result: DimensionsResult, configuration: ModelConfiguration) {
    guard let shape = base.linearShape else {
      throw ModelError(path: job.student, reason: "has no linear layer whose dimensions could be searched")
    }
    guard shape.mixer != .rwkv7 else {
      throw JobError(.usage, "rwkv7's keys and values are of one size: there is nothing to search")
    }
    let elements = elements ?? shape.heads * shape.keySize * shape.valueSize
    let shapes = DimensionsResult.grid(keySizes: keySizes, heads: heads, elements: elements)
    guard !shapes.isEmpty, tolerance > 0, tolerance <= 1 else {
      throw JobError(
        .usage,
        "no d_K × heads of the grid divides a state of \(elements) elements, or the tolerance is not within 0 and 1")
    }
    let candidates = try shapes.map { shape in
      Candidate(
        name: "\(shape.keySize)-\(shape.valueSize)-\(shape.heads)",
        configuration: try base.reshapingLinear(
          heads: shape.heads, keySize: shape.keySize, valueSize: shape.valueSize))
    }
    let (names, weights, results) = try run(candidates, job: job, objectives: objectives, decodeContext: decodeContext)
    let result = DimensionsResult(
      objectives: names, weights: weights, elements: elements, tolerance: tolerance, shapes: shapes, results: results)
    let best = candidates[result.chosen].configuration
    try record(best) { $0.dimensions = result }
    return (result, best)
  }

  private func run(
    _ candidates: [Candidate], job: Job, objectives: ObjectiveSettings, decodeContext: Int
  ) throws -> (names: [String], weights: [Double], results: [CandidateResult]) {
    guard decodeContext > 0 else { throw JobError(.usage, "the context for decoding must be above zero") }
    let (measures, weights) = try objectives.make(
      of: job.teacher ?? job.student, fits: candidates.map(\.configuration), teacher: teacher?.configuration)
    let trial = CandidateTrial(
      job: job, folder: folder, objectives: measures, teacher: teacher, decodeContext: decodeContext, stop: stop,
      world: world, backend: backend)
    let path = folder + "/rates.json"
    var rates = try MeasuredRates(path: path)
    let results = try trial.run(candidates, rates: &rates)
    try agree(world) { if world.isCoordinator { try rates.write(to: path) } }
    return (measures.map(\.name), weights, results)
  }

  private func record(_ configuration: ModelConfiguration, _ change: (inout SearchResult) -> Void) throws {
    try agree(world) {
      guard world.isCoordinator else { return }
      var result = try SearchResult(folder: folder)
      change(&result)
      try result.write(to: folder)
      try writeDurably(configuration.json, to: folder + "/config.json")
    }
  }
}
