import Foundation
import Models
import NN

/// A policy that gives every layer a preference and draws placements by them, layer after layer without repetition; after
/// each round the preferences move along the policy gradient (Williams, 1992; Zoph and Le, 2017).
package struct Reinforce: Strategy {
  let settings: SearchSettings

  private static let round = 4
  private static let rate = 0.5

  package init(settings: SearchSettings) { self.settings = settings }

  package func search(_ trace: SearchTrace) throws {
    let space = trace.space
    var random = RandomStream(seed: settings.seed, name: "search.reinforce")
    var preferences = [Double](repeating: 0, count: space.layers)
    let picks = space.full + space.sliding
    var spent = 0
    while spent < settings.evaluations {
      let orders = (0..<min(Self.round, settings.evaluations - spent)).map { _ in
        Self.draw(preferences, picks, &random)
      }
      let scores = try trace.scores(orders.map(space.placement(best:)))
      spent += orders.count
      let mean = scores.reduce(0, +) / Double(scores.count)
      let deviation = (scores.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(scores.count)).squareRoot()
      guard deviation > 0 else { continue }
      var gradient = [Double](repeating: 0, count: space.layers)
      for (order, score) in zip(orders, scores) {
        let advantage = (mean - score) / deviation / Double(orders.count)
        var free = Set(preferences.indices)
        for layer in order {
          let shares = Self.shares(preferences, free)
          for other in free.sorted() { gradient[other] += advantage * ((other == layer ? 1 : 0) - shares[other]) }
          free.remove(layer)
        }
      }
      for layer in gradient.indices { preferences[layer] += Self.rate * gradient[layer] }
    }
    // What the policy has come to prefer.
    let order = preferences.indices.sorted { a, b in
      preferences[a] != preferences[b] ? preferences[a] > preferences[b] : a < b
    }
    _ = try trace.scores([space.placement(best: order)])
  }

  private static func shares(_ preferences: [Double], _ free: Set<Int>) -> [Double] {
    let largest = free.map { preferences[$0] }.max() ?? 0
    let weights = preferences.indices.map { free.contains($0) ? exp(preferences[$0] - largest) : 0 }
    let sum = weights.reduce(0, +)
    return weights.map { $0 / sum }
  }

  private static func draw(_ preferences: [Double], _ picks: Int, _ random: inout RandomStream) -> [Int] {
    var free = Set(preferences.indices)
    return (0..<picks).map { _ in
      let shares = shares(preferences, free)
      var rest = Double(random.uniform())
      let order = free.sorted()
      let layer =
        order.first { layer in
          rest -= shares[layer]
          return rest < 0
        } ?? order[order.count - 1]
      free.remove(layer)
      return layer
    }
  }
}
