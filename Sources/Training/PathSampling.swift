import Models
import NN

/// Which path of a supernet a step trains (PostNAS, RECIPE section 6): a pure function of seed and step, so that all ranks,
/// and a run that resumes, draw the same.
package struct PathSampling: Sendable, Equatable {
  /// Layers of full attention, and over a sliding window, that are searched for.
  package let fullLayers: Int
  package let slidingLayers: Int
  /// Share of the steps that train a path of exactly that budget; the others any number of such layers.
  package let budgetShare: Double

  package init(fullLayers: Int, slidingLayers: Int = 0, budgetShare: Double) {
    (self.fullLayers, self.slidingLayers, self.budgetShare) = (fullLayers, slidingLayers, budgetShare)
  }

  /// What the layers run at `step`.
  package func path(step: Int, layers: Int, seed: UInt64) -> SupernetPath {
    var random = RandomStream(seed: seed, name: "path.\(step)")
    func upTo(_ most: Int) -> Int { Int(random.next() % UInt64(most + 1)) }
    let isBudget = Double(random.uniform()) < budgetShare
    let full = isBudget ? min(fullLayers, layers) : upTo(layers)
    let sliding = slidingLayers == 0 ? 0 : isBudget ? min(slidingLayers, layers - full) : upTo(layers - full)
    var order = Array(0..<layers)
    order.shuffle(using: &random)
    return SupernetPath(full: order.prefix(full), sliding: order.dropFirst(full).prefix(sliding))
  }
}
