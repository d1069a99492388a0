import Evaluation
import Files
import Foundation
import MPI
import Models
import Tensors
import TokenStreams
import Training

extension Communicator: PathExchange {}

/// What a placement is judged by.
package enum Objective: String, Sendable, CaseIterable {
  /// Cross-entropy on held-out text.
  case loss
  /// KL(teacher ‖ student) on held-out text.
  case kl
}

/// A searched placement with what led to it; equal searches give equal files.
package struct PlacementResult: Codable, Sendable {
  package let strategy: String
  package let objective: String
  package let full: [Int]
  package let score: Double
  package let evaluations: Int
  /// The score with each layer alone full, and with none: the importance heat map of this objective.
  package let alone: [Double]
  package let none: Double
  /// Best score after each evaluation.
  package let curve: [Double]
}

extension PlacementResult {
  /// Searches `supernet` and measures each layer alone.
  package init(
    supernet: HybridLM, teacher: HybridLM?, objective: Objective, plan: DataPlan, sequences: Int, strategy: Strategy,
    settings: SearchSettings, cache: String?, world: Communicator, backend: any Backend
  ) throws {
    let identity = sha256(
      "\(ModelSetup.hash(supernet)) \(teacher.map { ModelSetup.hash($0) } ?? "") \(objective) \(plan.hash) \(sequences)"
    )
    let evaluator = try PathEvaluator(file: cache, identity: identity, world: world) { path in
      supernet.fullLayers = Set(path)
      let result = try Evaluation(
        model: supernet, teacher: objective == .kl ? teacher : nil, plan: plan, sequences: sequences, backend: backend)
      return objective == .kl ? result.kl ?? .infinity : result.loss
    }
    let found = try strategy.search(settings, evaluator)
    self.strategy = strategy.rawValue
    self.objective = objective.rawValue
    full = found.path
    score = found.score
    evaluations = evaluator.count
    var best = Double.infinity
    curve = evaluator.history.filter { $0.path.count == settings.full }.map { entry in
      best = min(best, entry.score)
      return best
    }
    let singles = try evaluator.scores((0..<settings.layers).map { [$0] } + [[]])
    alone = Array(singles.dropLast())
    none = singles[settings.layers]
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
