import NN

/// A supernet's other mixers of a layer that holds attention.
package struct SupernetMixers {
  /// Its parameters are under `linear_attn`.
  package let linear: any TokenMixer
  /// The layer's attention over a window; nil where the supernet has none.
  fileprivate let sliding: (any TokenMixer)?

  /// Nil where the model is no supernet.
  init?(beside mixer: any TokenMixer, _ scope: ParameterScope, _ configuration: Architecture) {
    guard let type = configuration.supernetMixer else { return nil }
    linear = makeMixer(type, configuration, scope.scope("linear_attn", group: .mixers))
    sliding = configuration.slidingWindow.flatMap { window in (mixer as? Attention)?.sliding(over: window) }
  }
}

extension DecoderLayer {
  /// The mixer that runs in this role.
  package func mixer(as role: LayerRole) -> any TokenMixer {
    switch role {
    case .full: return mixer
    case .sliding:
      guard let sliding = alternatives?.sliding else { preconditionFailure("this supernet has no sliding window") }
      return sliding
    case .linear:
      guard let linear = alternatives?.linear else {
        preconditionFailure("only layers of a supernet have a linear path")
      }
      return linear
    }
  }
}

/// What a layer of a supernet runs.
package enum LayerRole: Sendable {
  case full, sliding, linear
}

/// What the layers of a supernet run: these their attention, full or over its window, all others the linear path.
package struct SupernetPath: Hashable, Sendable, Codable {
  /// In ascending order.
  package let full: [Int]
  package let sliding: [Int]

  package init(full: some Sequence<Int> = [], sliding: some Sequence<Int> = []) {
    self.full = full.sorted()
    self.sliding = sliding.sorted()
  }

  package func role(of layer: Int) -> LayerRole {
    full.contains(layer) ? .full : sliding.contains(layer) ? .sliding : .linear
  }
}
