import Models
import NN

/// A way through the placements: it asks the trace for scores until it is content. The best whole placement that it asked
/// for is what it found. Searches are functions of their settings and the scores alone, so that all ranks take the same
/// steps.
package protocol Strategy {
  func search(_ trace: SearchTrace) throws
}

/// The strategies by name.
package enum StrategyName: String, Sendable, CaseIterable, Codable {
  /// Extends the best partial placements by every layer (the paper's).
  case beam
  /// Layers at equal distances.
  case uniform
  /// As many different placements as may be evaluated.
  case random
  /// The best single layer, then the best beside it, and so on.
  case greedy
  /// Regularised evolution (Real et al., 2019): the oldest die.
  case evolution
  /// A small model fitted to the measured placements proposes the next (as in Progressive NAS and NAT).
  case predictor
  /// A policy over layers, by policy gradients.
  case reinforce
  /// Learned gates between the attention and the linear path of every layer.
  case differentiable
  /// The layers that restore most of the teacher's distribution, one alone at a time (GA-S2).
  case klRestore = "kl-restore"
  /// Every placement; for small models.
  case exhaustive
}

/// What the strategies may be told.
package struct SearchSettings: Sendable {
  /// Partial placements that `beam` keeps.
  package var width: Int
  /// Placements that `random`, `evolution`, `predictor` and `reinforce` may ask for.
  package var evaluations: Int
  /// Steps of `differentiable`.
  package var gateSteps: Int
  package var seed: UInt64

  package init(width: Int = 3, evaluations: Int = 32, gateSteps: Int = 60, seed: UInt64 = 1) {
    (self.width, self.evaluations, self.gateSteps, self.seed) = (width, evaluations, gateSteps, seed)
  }
}

/// The paper's: all extensions of the best partial placements, of which the best are kept.
package struct BeamSearch: Strategy {
  let width: Int

  package init(width: Int) { self.width = width }

  package func search(_ trace: SearchTrace) throws {
    var kept = try trace.entries([SupernetPath()])
    for _ in 0..<trace.space.full + trace.space.sliding {
      var next: [SupernetPath] = []
      for extended in kept.flatMap({ trace.space.extensions(of: $0.path) }) where !next.contains(extended) {
        next.append(extended)
      }
      kept = Array(try trace.entries(next).sorted(by: SearchTrace.precedes).prefix(width))
    }
  }
}

/// One placement without any search: layers at equal distances.
package struct UniformPlacement: Strategy {
  package init() {}

  package func search(_ trace: SearchTrace) throws { _ = try trace.scores([trace.space.uniform]) }
}

/// Different placements, all equally likely.
package struct RandomSearch: Strategy {
  let settings: SearchSettings

  package init(settings: SearchSettings) { self.settings = settings }

  package func search(_ trace: SearchTrace) throws {
    var random = RandomStream(seed: settings.seed, name: "search.random")
    var paths: [SupernetPath] = []
    while paths.count < min(settings.evaluations, trace.space.count) {
      let path = trace.space.draw(&random)
      if !paths.contains(path) { paths.append(path) }
    }
    _ = try trace.scores(paths)
  }
}

/// Every placement there is.
package struct ExhaustiveSearch: Strategy {
  package init() {}

  package func search(_ trace: SearchTrace) throws { _ = try trace.scores(trace.space.all) }
}

/// Ranks layers by what each restores alone, in a student that is linear everywhere else: as full attention first, then
/// the rest as sliding windows.
package struct RestorationRanking: Strategy {
  let objective: Int

  /// - Parameter objective: place of the KL among the objectives
  package init(objective: Int) { self.objective = objective }

  package func search(_ trace: SearchTrace) throws {
    _ = try trace.scores([SupernetPath()])
    func ranked(_ paths: [SupernetPath]) throws -> [SupernetPath] {
      try trace.entries(paths).sorted { a, b in
        let (x, y) = (a.scores[objective], b.scores[objective])
        return x != y ? x < y : a.path.precedes(b.path)
      }.map(\.path)
    }
    let space = trace.space
    let full = try ranked((0..<space.layers).map { SupernetPath(full: [$0]) }).prefix(space.full).flatMap(\.full)
    var sliding: [Int] = []
    if space.sliding > 0 {
      let others = (0..<space.layers).filter { !full.contains($0) }
      sliding = try ranked(others.map { SupernetPath(sliding: [$0]) }).prefix(space.sliding).flatMap(\.sliding)
    }
    _ = try trace.scores([SupernetPath(full: full, sliding: sliding)])
  }
}
