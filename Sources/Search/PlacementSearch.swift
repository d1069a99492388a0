import Files
import Foundation
import MPI
import Models
import Tensors
import Training

extension Communicator: PathExchange {}

/// A searched placement with what led to it; equal searches give equal files.
package struct PlacementResult: Codable, Sendable {
  package let strategy: String
  package let objectives: [String]
  package let weights: [Double]
  /// Layers that keep full attention.
  package let full: [Int]
  /// Scores of that placement by objective, and joint.
  package let scores: [Double]
  package let joint: Double
  package let evaluations: Int
  /// Scores by objective of the path without attention, and of each layer alone full: the importance heat map.
  package let none: [Double]
  package let alone: [[Double]]
  /// Best joint score after each evaluation of a whole placement.
  package let curve: [Double]
  /// Whole placements that no other is better than on every objective.
  package let pareto: [Placement]

  /// A placement and its scores by objective.
  package struct Placement: Codable, Sendable {
    package let full: [Int]
    package let scores: [Double]
  }

  /// Searches `supernet` and measures each layer alone.
  package init(
    supernet: HybridLM, teacher: HybridLM?, objectives: [Objective], weights: [Double], strategy: Strategy,
    settings: SearchSettings, cache: String?, world: Communicator, backend: any Backend
  ) throws {
    let identity = sha256(
      "\(ModelSetup.hash(supernet)) \(teacher.map { ModelSetup.hash($0) } ?? "") \(objectives.map(\.identity))")
    let evaluator = try PathEvaluator(file: cache, identity: identity, weights: weights, world: world) { path in
      supernet.fullLayers = Set(path)
      return objectives.map { $0.score(supernet, teacher: teacher, backend: backend) }
    }
    let found = try strategy.search(settings, evaluator)
    self.strategy = strategy.rawValue
    self.objectives = objectives.map(\.name)
    self.weights = weights
    full = found.path
    joint = found.score
    evaluations = evaluator.count
    let whole = evaluator.history.filter { $0.path.count == settings.full }
    var best = Double.infinity
    curve = whole.map { entry in
      best = min(best, entry.joint)
      return best
    }
    pareto = whole.filter { entry in
      !whole.contains { other in
        zip(other.scores, entry.scores).allSatisfy { $0 <= $1 } && other.scores != entry.scores
      }
    }.sorted { $0.path.lexicographicallyPrecedes($1.path) }.map { Placement(full: $0.path, scores: $0.scores) }
    scores = try evaluator.measurements([found.path])[0]
    alone = try evaluator.measurements((0..<settings.layers).map { [$0] })
    none = try evaluator.measurements([[]])[0]
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

  /// The configuration of the student with this placement: what `convert` and `distill` take.
  package func configuration(of supernet: ModelConfiguration) throws -> Data {
    guard var object = try JSONSerialization.jsonObject(with: supernet.json) as? [String: Any],
      let mixer = supernet.supernetMixer
    else { throw ModelError(path: "search", reason: "the model is not a supernet") }
    object["supernet_mixer"] = nil
    object["layer_types"] = (0..<supernet.layerCount).map { full.contains($0) ? "attn" : mixer.rawValue }
    return try JSONSerialization.data(
      withJSONObject: object, options: [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes])
  }
}
