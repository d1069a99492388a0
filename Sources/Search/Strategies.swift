import NN

/// How a search goes through the paths of a supernet.
package enum Strategy: String, Sendable, CaseIterable {
  /// Extends the best partial placements by every layer (the paper's).
  case beam
  /// The best single layer, then the best beside it, and so on.
  case greedy
  /// Layers at equal distances.
  case uniform
  /// As many different placements as may be evaluated.
  case random
  /// Regularised evolution (Real et al., 2019): the oldest die.
  case evolution
  /// Every placement; for small models.
  case exhaustive
}

/// The limits of a search.
package struct SearchSettings: Sendable {
  /// Layers of full attention to place, and layers in all.
  package var full: Int
  package var layers: Int
  /// Partial placements that `beam` keeps.
  package var width: Int
  /// Evaluations that `random` and `evolution` may ask for.
  package var evaluations: Int
  package var seed: UInt64

  package init(full: Int, layers: Int, width: Int, evaluations: Int, seed: UInt64) {
    (self.full, self.layers, self.width, self.evaluations, self.seed) = (full, layers, width, evaluations, seed)
  }
}

extension Strategy {
  /// The best placement found, and its score.
  package func search(_ settings: SearchSettings, _ evaluator: PathEvaluator) throws -> (path: [Int], score: Double) {
    switch self {
    case .beam: return try Self.beam(settings, evaluator, width: settings.width)
    case .greedy: return try Self.beam(settings, evaluator, width: 1)
    case .uniform:
      let path = (0..<settings.full).map { (2 * $0 + 1) * settings.layers / (2 * max(1, settings.full)) }
      return (path, try evaluator.scores([path])[0])
    case .random:
      var random = RandomStream(seed: settings.seed, name: "search.random")
      let total = Self.placements(settings.layers, settings.full, limit: settings.evaluations)
      var paths: [[Int]] = []
      while paths.count < min(settings.evaluations, total) {
        let path = Self.draw(settings, &random)
        if !paths.contains(path) { paths.append(path) }
      }
      return try Self.best(paths, evaluator)
    case .evolution: return try Self.evolve(settings, evaluator)
    case .exhaustive: return try Self.best(Self.all(settings.layers, settings.full), evaluator)
    }
  }

  /// Ties go to the path that comes first in the order of its layers, so that the result does not depend on chance.
  private static func best(_ paths: [[Int]], _ evaluator: PathEvaluator) throws -> (path: [Int], score: Double) {
    let scored = zip(paths, try evaluator.scores(paths)).sorted(by: precedes)
    return (scored[0].0, scored[0].1)
  }

  private static func precedes(_ a: ([Int], Double), _ b: ([Int], Double)) -> Bool {
    a.1 != b.1 ? a.1 < b.1 : a.0.lexicographicallyPrecedes(b.0)
  }

  private static func beam(
    _ settings: SearchSettings, _ evaluator: PathEvaluator, width: Int
  ) throws -> (path: [Int], score: Double) {
    var kept: [([Int], Double)] = [([], try evaluator.scores([[]])[0])]
    for _ in 0..<settings.full {
      var next: [[Int]] = []
      for (path, _) in kept {
        for layer in 0..<settings.layers where !path.contains(layer) {
          let longer = (path + [layer]).sorted()
          if !next.contains(longer) { next.append(longer) }
        }
      }
      kept = Array(zip(next, try evaluator.scores(next)).sorted(by: precedes).prefix(width))
    }
    return (kept[0].0, kept[0].1)
  }

  private static func evolve(
    _ settings: SearchSettings, _ evaluator: PathEvaluator
  ) throws -> (path: [Int], score: Double) {
    var random = RandomStream(seed: settings.seed, name: "search.evolution")
    let size = max(4, min(16, settings.evaluations / 4))
    var population = (0..<size).map { _ in draw(settings, &random) }
    var scores = try evaluator.scores(population)
    var best = zip(population, scores).min(by: precedes)!
    var spent = size
    while spent < settings.evaluations, settings.full > 0, settings.full < settings.layers {
      // A generation at a time, so that the ranks share it; each child of the best of three.
      var children: [[Int]] = []
      for _ in 0..<min(4, settings.evaluations - spent) {
        let rivals = (0..<3).map { _ in Int(random.next() % UInt64(population.count)) }
        let parent = population[rivals.min { scores[$0] < scores[$1] }!]
        var child = parent
        let others = (0..<settings.layers).filter { !parent.contains($0) }
        child[Int(random.next() % UInt64(child.count))] = others[Int(random.next() % UInt64(others.count))]
        children.append(child.sorted())
      }
      let childScores = try evaluator.scores(children)
      best = (zip(children, childScores).map { ($0, $1) } + [best]).min(by: precedes)!
      population = Array(population.dropFirst(children.count)) + children
      scores = Array(scores.dropFirst(children.count)) + childScores
      spent += children.count
    }
    return best
  }

  private static func draw(_ settings: SearchSettings, _ random: inout RandomStream) -> [Int] {
    var order = Array(0..<settings.layers)
    order.shuffle(using: &random)
    return order.prefix(settings.full).sorted()
  }

  /// Number of placements, counted no further than `limit`.
  private static func placements(_ layers: Int, _ full: Int, limit: Int) -> Int {
    var count = 1
    for i in 0..<min(full, layers) {
      count = count * (layers - i) / (i + 1)
      if count > 1_000_000 + limit { break }
    }
    return count
  }

  private static func all(_ layers: Int, _ full: Int, from first: Int = 0) -> [[Int]] {
    guard full > 0 else { return [[]] }
    return (first..<max(first, layers)).flatMap { layer in
      all(layers, full - 1, from: layer + 1).map { [layer] + $0 }
    }
  }
}
