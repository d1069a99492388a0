import Tensors

/// What of a layer the backward pass computes again, by its halves: the mixer with its norm, the MLP with its.
package struct LayerRecomputation: Sendable, Equatable {
  package var mixer: Recomputation
  package var mlp: Recomputation

  package init(mixer: Recomputation, mlp: Recomputation) { (self.mixer, self.mlp) = (mixer, mlp) }

  /// The same of both halves.
  package init(_ both: Recomputation) { self.init(mixer: both, mlp: both) }

  package static let none = LayerRecomputation(.none)

  /// From what computes nothing again to what keeps the least.
  package static let byCost = [
    none, LayerRecomputation(.cheap), LayerRecomputation(mixer: .cheap, mlp: .layer), LayerRecomputation(.layer),
  ]
}

extension LayerRecomputation: CustomStringConvertible {
  package var description: String { mixer == mlp ? mixer.rawValue : "\(mixer.rawValue), mlp \(mlp.rawValue)" }
}
