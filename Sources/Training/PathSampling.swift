import NN

/// Which path of a supernet a step trains (PostNAS, RECIPE section 6): a pure function of seed and step, so that all ranks,
/// and a run that resumes, draw the same.
package struct PathSampling: Sendable, Equatable {
  /// Layers of full attention that are searched for.
  package let fullLayers: Int
  /// Share of the steps that train a path of exactly that budget; the others any number of full layers.
  package let budgetShare: Double

  package init(fullLayers: Int, budgetShare: Double) {
    self.fullLayers = fullLayers
    self.budgetShare = budgetShare
  }

  /// The layers that run their attention at `step`.
  package func path(step: Int, layers: Int, seed: UInt64) -> Set<Int> {
    var random = RandomStream(seed: seed, name: "path.\(step)")
    let isBudget = Double(random.uniform()) < budgetShare
    let count = isBudget ? min(fullLayers, layers) : Int(random.next() % UInt64(layers + 1))
    var order = Array(0..<layers)
    order.shuffle(using: &random)
    return Set(order.prefix(count))
  }
}
