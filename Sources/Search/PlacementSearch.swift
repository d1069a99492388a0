import Files
import Foundation
import Hashing
import MPI
import Models
import Tensors
import Training

extension Communicator: PathExchange {}

/// What a strategy found and what that took.
package struct StrategyResult: Codable, Sendable {
  package let strategy: StrategyName
  package let path: SupernetPath
  /// By objective, and joint.
  package let scores: [Double]
  package let joint: Double
  /// Different paths that it asked for, and tokens read for them.
  package let evaluations: Int
  package let tokens: Int
  /// Best joint score of a whole placement after each evaluation; null before the first.
  package let curve: [Double?]
}

/// A searched placement with what led to it; equal searches give equal results.
package struct PlacementResult: Codable, Sendable {
  package let objectives: [String]
  package let weights: [Double]
  package let layers: Int
  /// The linear mixer of the supernet, and the window of its sliding layers.
  package let mixer: String
  /// The best placement that any strategy found.
  package let path: SupernetPath
  package let scores: [Double]
  package let joint: Double
  /// Scores by objective of the path without attention, of the one with attention everywhere, and of each layer alone
  /// full: the importance heat map.
  package let none: [Double]
  package let everywhere: [Double]
  package let alone: [[Double]]
  package let strategies: [StrategyResult]
  /// Whole placements that no other is better than on every objective.
  package let pareto: [Placement]

  /// A placement and its scores by objective.
  package struct Placement: Codable, Sendable {
    package let path: SupernetPath
    package let scores: [Double]
  }

  /// Searches `supernet` by every strategy in turn and measures each layer alone.
  ///
  /// - Parameter cache: file of evaluations, read and appended to
  package init(
    supernet: HybridLM, teacher: HybridLM?, objectives: [Objective], strategies: [StrategyName],
    space: PlacementSpace, settings: SearchSettings, cache: String?, stop: StopRequest, world: Communicator,
    backend: any Backend
  ) throws {
    let weights = objectives.map(\.weight)
    let identity = Self.identity(supernet: supernet, teacher: teacher, objectives: objectives)
    let wantsStop = { stop.reason != nil }
    let evaluator = try PathEvaluator(
      file: cache, identity: identity, weights: weights, world: world, wantsStop: wantsStop
    ) { path in
      supernet.path = path
      return try objectives.map { try $0.score(supernet, teacher: teacher, backend: backend) }
    }
    let tokens = objectives.reduce(0) { $0 + $1.tokens }
    var results: [StrategyResult] = []
    var whole: [SearchTrace.Entry] = []
    for name in strategies {
      let trace = SearchTrace(space, evaluator)
      let strategy = try Self.strategy(
        name, settings: settings, objectives: objectives, evaluator: evaluator, supernet: supernet, teacher: teacher,
        backend: backend)
      try strategy.search(trace)
      guard let best = trace.best else { preconditionFailure("\(name.rawValue) asked for no whole placement") }
      results.append(
        StrategyResult(
          strategy: name, path: best.path, scores: best.scores, joint: best.joint, evaluations: trace.history.count,
          tokens: trace.history.count * tokens + trace.extraTokens, curve: trace.curve))
      whole += trace.whole.filter { entry in !whole.contains { $0.path == entry.path } }
    }
    self.strategies = results
    self.objectives = objectives.map(\.name)
    self.weights = weights
    layers = space.layers
    mixer = supernet.configuration.supernetMixer?.rawValue ?? ""
    guard let best = whole.min(by: SearchTrace.precedes) else { preconditionFailure("no strategy was given") }
    (path, scores, joint) = (best.path, best.scores, best.joint)
    pareto = whole.filter { entry in
      !whole.contains { other in
        zip(other.scores, entry.scores).allSatisfy { $0 <= $1 } && other.scores != entry.scores
      }
    }.sorted { $0.path.precedes($1.path) }.map { Placement(path: $0.path, scores: $0.scores) }
    alone = try evaluator.measurements((0..<space.layers).map { SupernetPath(full: [$0]) })
    none = try evaluator.measurements([SupernetPath()])[0]
    everywhere = try evaluator.measurements([SupernetPath(full: 0..<space.layers)])[0]
  }

  /// Decides, beside a path, its scores: weights and configurations (windows, bases of rotary embeddings and epsilons are in
  /// no weight) of supernet and teacher, and the objectives with all that they read.
  package static func identity(supernet: HybridLM, teacher: HybridLM?, objectives: [Objective]) -> String {
    let models = [supernet, teacher].map { model in
      model.map { "\(ModelSetup.hash($0)) \(sha256($0.configuration.json))" } ?? "none"
    }
    return sha256("\(models) \(objectives.map(\.identity))")
  }

  private static func strategy(
    _ name: StrategyName, settings: SearchSettings, objectives: [Objective], evaluator: PathEvaluator,
    supernet: HybridLM, teacher: HybridLM?, backend: any Backend
  ) throws -> any Strategy {
    switch name {
    case .beam: return BeamSearch(width: settings.width)
    case .greedy: return BeamSearch(width: 1)
    case .uniform: return UniformPlacement()
    case .random: return RandomSearch(settings: settings)
    case .exhaustive: return ExhaustiveSearch()
    case .evolution: return Evolution(settings: settings)
    case .predictor: return Predictor(settings: settings)
    case .reinforce: return Reinforce(settings: settings)
    case .klRestore:
      guard let objective = objectives.firstIndex(where: { $0.name == "kl" }) else {
        preconditionFailure("kl-restore without kl: ObjectiveSettings.check refuses it")
      }
      return RestorationRanking(objective: objective)
    case .differentiable:
      let none = try evaluator.measurements([SupernetPath()])[0]
      let parts = objectives.indices.compactMap { index in
        objectives[index].differentiable.map {
          (batches: $0.batches, kl: $0.kl, weight: evaluator.weights[index] / max(none[index], 1e-12))
        }
      }
      precondition(!parts.isEmpty, "differentiable without a gradient: ObjectiveSettings.check refuses it")
      return LearnedGates(
        steps: settings.gateSteps,
        gradients: GateGradients(
          supernet: supernet, teacher: teacher, parts: parts, world: evaluator.world, backend: backend,
          wantsStop: evaluator.wantsStop))
    }
  }

  /// How much of the way from no attention to the best single layer each layer goes alone, by objective: 1 for the best,
  /// 0 for none.
  package var importance: [[Double]] {
    alone.map { scores in
      scores.indices.map { o in
        let best = none[o] - (alone.map { $0[o] }.min() ?? none[o])
        return best > 0 ? max(0, (none[o] - scores[o]) / best) : 0
      }
    }
  }
}

extension ModelConfiguration {
  /// The student with this placement, its linear layers those of this supernet: what `convert` and `distill` take.
  package func placed(_ placement: SupernetPath) throws -> ModelConfiguration {
    guard let mixer = self.supernetMixer else {
      throw ModelError(path: "search", reason: "the model is not a supernet")
    }
    return try changing("the student that was found") { architecture in
      architecture.supernetMixer = nil
      architecture.layerTypes = (0..<architecture.layerCount).map { layer in
        switch placement.role(of: layer) {
        case .full: .attention
        case .sliding: .slidingWindow
        case .linear: mixer
        }
      }
    }
  }
}
