import Models
import NN
import Training

/// The placements that a search chooses from: so many layers of full attention, so many over a sliding window, all others
/// linear.
package struct PlacementSpace: Sendable, Equatable {
  package let layers: Int
  package let full: Int
  package let sliding: Int

  package init(layers: Int, full: Int, sliding: Int = 0) {
    (self.layers, self.full, self.sliding) = (layers, full, sliding)
  }

  /// Whether `path` uses the budget up.
  package func isWhole(_ path: SupernetPath) -> Bool { path.full.count == full && path.sliding.count == sliding }

  /// Layers at equal distances, full ones first, sliding ones among those that are left.
  package var uniform: SupernetPath {
    func spread(_ count: Int, over layers: [Int]) -> [Int] {
      (0..<count).map { layers[(2 * $0 + 1) * layers.count / (2 * count)] }
    }
    let full = spread(full, over: Array(0..<layers))
    return SupernetPath(full: full, sliding: spread(sliding, over: (0..<layers).filter { !full.contains($0) }))
  }

  /// A placement of all equally likely ones.
  package func draw(_ random: inout RandomStream) -> SupernetPath {
    var order = Array(0..<layers)
    order.shuffle(using: &random)
    return placement(best: order)
  }

  /// The placement that gives the first layers of `order` full attention and the next ones a window.
  package func placement(best order: [Int]) -> SupernetPath {
    SupernetPath(full: order.prefix(full), sliding: order.dropFirst(full).prefix(sliding))
  }

  /// `path` with the roles of two layers exchanged.
  package func mutated(_ path: SupernetPath, _ random: inout RandomStream) -> SupernetPath {
    var pairs: [(Int, Int)] = []
    for a in 0..<layers {
      for b in 0..<a where path.role(of: a) != path.role(of: b) { pairs.append((a, b)) }
    }
    guard !pairs.isEmpty else { return path }
    let (a, b) = pairs[Int(random.next() % UInt64(pairs.count))]
    func exchanged(_ layers: [Int]) -> [Int] { layers.map { $0 == a ? b : $0 == b ? a : $0 } }
    return SupernetPath(full: exchanged(path.full), sliding: exchanged(path.sliding))
  }

  /// `path` with one more layer, full ones first; nothing for a whole one.
  package func extensions(of path: SupernetPath) -> [SupernetPath] {
    guard !isWhole(path) else { return [] }
    let free = (0..<layers).filter { path.role(of: $0) == .linear }
    return free.map {
      path.full.count < full
        ? SupernetPath(full: path.full + [$0], sliding: path.sliding)
        : SupernetPath(full: path.full, sliding: path.sliding + [$0])
    }
  }

  /// Number of placements; of more than a million any number above that.
  package var count: Int {
    func choose(_ k: Int, of n: Int) -> Int {
      var count = 1
      for i in 0..<k where count <= 1_000_000 { count = count * (n - i) / (i + 1) }
      return min(count, 1_000_001)
    }
    return choose(full, of: layers) * choose(sliding, of: layers - full)
  }

  /// Every placement.
  package var all: [SupernetPath] {
    Self.subsets(of: Array(0..<layers), full).flatMap { full in
      Self.subsets(of: (0..<layers).filter { !full.contains($0) }, sliding).map {
        SupernetPath(full: full, sliding: $0)
      }
    }
  }

  private static func subsets(of items: [Int], _ count: Int) -> [[Int]] {
    guard count > 0 else { return [[]] }
    return items.indices.flatMap { index in
      subsets(of: Array(items[(index + 1)...]), count - 1).map { [items[index]] + $0 }
    }
  }
}

/// A search for a placement, as it is asked for.
package struct PlacementRequest: Sendable {
  package var full: Int
  package var sliding: Int
  package var strategies: [StrategyName]
  package var settings: SearchSettings

  package init(full: Int, sliding: Int, strategies: [StrategyName], settings: SearchSettings) {
    (self.full, self.sliding, self.strategies, self.settings) = (full, sliding, strategies, settings)
  }

  /// The placements of a supernet that it chooses from.
  ///
  /// - Parameter path: names the supernet in errors
  /// - Throws: what such a search cannot be made of
  package func space(of supernet: ModelConfiguration, path: String) throws -> PlacementSpace {
    guard supernet.supernetMixer != nil else {
      throw ModelError(path: path, reason: "is not a supernet: its config.json has no supernet_mixer")
    }
    let layers = supernet.layerCount
    guard full >= 0, sliding >= 0, full <= layers, sliding <= layers - full else {
      throw JobError(.usage, "a placement of \(full) full and \(sliding) sliding layers: \(path) has \(layers) in all")
    }
    guard !strategies.isEmpty else { throw JobError(.usage, "a placement is searched by at least one strategy") }
    guard settings.width > 0, settings.evaluations > 0, settings.gateSteps > 0 else {
      throw JobError(.usage, "width, evaluations and gate steps must be above zero")
    }
    guard sliding == 0 || supernet.slidingWindow != nil else {
      throw ModelError(path: path, reason: "has no window for sliding layers (efficient_attention_config.swa)")
    }
    let space = PlacementSpace(layers: layers, full: full, sliding: sliding)
    guard !strategies.contains(.exhaustive) || space.count <= 100_000 else {
      throw JobError(.usage, "strategy exhaustive: there are more than 100,000 placements")
    }
    return space
  }
}

extension SupernetPath {
  /// An order that does not depend on chance: where scores are equal, the first wins.
  package func precedes(_ other: SupernetPath) -> Bool {
    full != other.full
      ? full.lexicographicallyPrecedes(other.full) : sliding.lexicographicallyPrecedes(other.sliding)
  }
}
