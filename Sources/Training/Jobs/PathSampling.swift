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

/// How many updates the parameters on each path of a supernet have seen in a phase. A step leaves the parameters that its
/// path does not use as they are, moments and weight decay included, as if they were absent: their bias correction goes by
/// the steps that drew them.
package struct PathUpdates {
  /// By group: 0 for what every path uses, then the attention and the linear mixer of every layer.
  package private(set) var counts: [Int]
  private let sampling: PathSampling?
  private let layers: Int
  private let seed: UInt64

  /// - Parameter sampling: how the paths are drawn; nil for a model that is no supernet
  package init(of model: HybridLM, _ sampling: PathSampling?, seed: UInt64) {
    layers = model.layers.count
    counts = [Int](repeating: 0, count: Self.groups(of: model))
    (self.sampling, self.seed) = (sampling, seed)
  }

  /// The counts after the steps `steps` of the run, which belong to one phase: a pure function of seed and steps.
  package mutating func replay(_ steps: Range<Int>) {
    counts = counts.map { _ in 0 }
    for step in steps { _ = count(step) }
  }

  /// Goes on from what a checkpoint has counted; one of another number of groups is none of this model.
  ///
  /// - Returns: whether it fits
  package mutating func restore(_ counts: [Int]) -> Bool {
    guard counts.count == self.counts.count else { return false }
    self.counts = counts
    return true
  }

  /// Counts the update of `step`.
  ///
  /// - Returns: by group, how many there were with it; 0 where this one leaves the group as it is
  package mutating func count(_ step: Int) -> [Int] {
    let path = sampling?.path(step: step, layers: layers, seed: seed)
    return counts.indices.map { group in
      if let path, group > 0, (path.role(of: (group - 1) / 2) == .linear) != (group % 2 == 0) { return 0 }
      counts[group] += 1
      return counts[group]
    }
  }

  private static func groups(of model: HybridLM) -> Int {
    model.configuration.supernetMixer == nil ? 1 : 1 + 2 * model.layers.count
  }

  /// The group of a parameter of `model`.
  package static func group(of parameter: Parameter, in model: HybridLM) -> Int {
    guard model.configuration.supernetMixer != nil, case .layer(let layer) = parameter.part else { return 0 }
    switch parameter.group {
    case .attention: return 1 + 2 * layer
    case .mixers: return 2 + 2 * layer
    default: return 0
    }
  }

  /// What a first step gives the optimizer that updates all parameters.
  package static func all(of model: HybridLM) -> [Int] { [Int](repeating: 1, count: groups(of: model)) }
}
