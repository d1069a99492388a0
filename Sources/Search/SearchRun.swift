import Checkpointing
import Files
import Foundation
import MPI
import Models
import Tensors
import Training

/// The steps of a search, each of which adds to the result in one folder.
package struct SearchRun {
  private let folder: String
  private let world: Communicator
  private let backend: any Backend
  package let teacher: HybridLM?
  private let stop: StopRequest

  /// - Parameter teacher: folder or run of the teacher, for objectives that need it
  package init(
    folder: String, teacher: String?, stop: StopRequest, world: Communicator, backend: any Backend
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
    supernet path: String, _ request: PlacementRequest, objectives: ObjectiveSettings
  ) throws -> (result: PlacementResult, configuration: ModelConfiguration) {
    let model = try loadModel(path, backend: backend)
    let space = try request.space(of: model.configuration, path: path)
    try objectives.check(hasTeacher: teacher != nil, strategies: request.strategies)
    let measures = try objectives.make(
      of: path, fits: [model.configuration], teacher: teacher?.configuration)
    let result = try PlacementResult(
      supernet: model, teacher: teacher, objectives: measures, strategies: request.strategies, space: space,
      settings: request.settings, cache: folder + "/evaluations.jsonl", stop: stop, world: world, backend: backend)
    let configuration = try model.configuration.placed(result.path)
    try record(configuration) { known in
      // Blocks and shapes that were compared at another placement say nothing of this one.
      if known.placement?.path != result.path { (known.blocks, known.dimensions) = (nil, nil) }
      known.placement = result
    }
    return (result, configuration)
  }

  /// `base` with each of these mixers in its linear layers.
  package static func blocks(_ mixers: [LayerType], base: ModelConfiguration) throws -> [Candidate] {
    guard !mixers.isEmpty, Set(mixers).count == mixers.count else {
      throw JobError(.usage, "the candidates must be different mixers")
    }
    return try mixers.map { Candidate(name: $0.rawValue, configuration: try base.replacingLinear(with: $0)) }
  }

  /// Trains the candidates in the place of the linear layers of `base` and compares them. Writes `config.json` of the best.
  package func blocks(
    _ mixers: [LayerType], base: ModelConfiguration, job: Job, objectives: ObjectiveSettings, decodeContext: Int
  ) throws -> (result: SearchResult.BlocksResult, configuration: ModelConfiguration) {
    let candidates = try Self.blocks(mixers, base: base)
    let (measures, results) = try run(candidates, job: job, objectives: objectives, decodeContext: decodeContext)
    let result = SearchResult.BlocksResult(
      objectives: measures.map(\.name), weights: measures.map(\.weight), candidates: results)
    let best = candidates.first { $0.name == result.candidates[0].name }!.configuration
    try record(best) { $0.blocks = result }
    return (result, best)
  }

  /// Tries the shapes of one state size for the linear layers of `base`. Writes `config.json` of the choice.
  package func dimensions(
    _ request: DimensionsRequest, base: ModelConfiguration, job: Job, objectives: ObjectiveSettings,
    decodeContext: Int
  ) throws -> (result: DimensionsResult, configuration: ModelConfiguration) {
    let (shapes, candidates) = try request.candidates(of: base)
    let (measures, results) = try run(candidates, job: job, objectives: objectives, decodeContext: decodeContext)
    let result = DimensionsResult(
      objectives: measures.map(\.name), weights: measures.map(\.weight), elements: try request.stateElements(of: base),
      tolerance: request.tolerance, shapes: shapes, results: results)
    let best = candidates[result.chosen].configuration
    try record(best) { $0.dimensions = result }
    return (result, best)
  }

  private func run(
    _ candidates: [Candidate], job: Job, objectives: ObjectiveSettings, decodeContext: Int
  ) throws -> (objectives: [Objective], results: [CandidateResult]) {
    guard decodeContext > 0 else { throw JobError(.usage, "the context for decoding must be above zero") }
    let measures = try objectives.make(
      of: job.teacher ?? job.student, fits: candidates.map(\.configuration), teacher: teacher?.configuration)
    let trial = CandidateTrial(
      job: job, folder: folder, objectives: measures, teacher: teacher, decodeContext: decodeContext, stop: stop,
      world: world, backend: backend)
    let path = folder + "/rates.json"
    var rates = try MeasuredRates(path: path)
    let results = try trial.run(candidates, rates: &rates)
    try agree(world) { if world.isCoordinator { try rates.write(to: path) } }
    return (measures, results)
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
