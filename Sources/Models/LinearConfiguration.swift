/// The shape of a linear token mixer, of whichever kind.
package struct LinearConfiguration: Sendable, Equatable {
  package var heads: Int
  /// Key channels of a head; Mamba2's state size.
  package var keySize: Int
  /// Value channels of a head; Mamba2's head dimension.
  package var valueSize: Int
  /// Mamba2: groups of heads that share B and C.
  package var groups = 1
  /// Channels between the two projections of a gate (GLA, RWKV7).
  package var gateRank = 16
  /// The same of RWKV7's decay and learning rate.
  package var decayRank = 32
  package var rateRank = 32
  package var epsilon: Float = 1e-5

  package init(heads: Int, keySize: Int, valueSize: Int) {
    (self.heads, self.keySize, self.valueSize) = (heads, keySize, valueSize)
  }

  /// Elements of the states of one sequence.
  var stateElements: Int { heads * keySize * valueSize }
  var headShape: HeadShape { HeadShape(heads: heads, keySize: keySize, valueSize: valueSize) }
}

/// Heads of a mixer whose q, k, v and o projections are laid out head by head.
package struct HeadShape: Sendable, Equatable {
  package let heads: Int
  package let keySize: Int
  package let valueSize: Int

  package init(heads: Int, keySize: Int, valueSize: Int) {
    (self.heads, self.keySize, self.valueSize) = (heads, keySize, valueSize)
  }
}

extension Architecture {
  /// Heads, key and value channels of the linear mixer `type`, where the file gives them.
  package func state(of type: LayerType) -> HeadShape? {
    if type == .jet { return jet.map { HeadShape(heads: $0.heads, keySize: $0.keySize, valueSize: $0.valueSize) } }
    return linear[type]?.headShape
  }

  /// Gives the linear mixer `type` this state; its other settings stay, or are the usual ones.
  package mutating func setState(of type: LayerType, _ state: HeadShape) {
    if type == .jet {
      var shape = jet ?? JetConfiguration(heads: 0, keySize: 0, valueSize: 0)
      (shape.heads, shape.keySize, shape.valueSize) = (state.heads, state.keySize, state.valueSize)
      jet = shape
    } else {
      var shape = linear[type] ?? LinearConfiguration(heads: 0, keySize: 0, valueSize: 0)
      (shape.heads, shape.keySize, shape.valueSize) = (state.heads, state.keySize, state.valueSize)
      linear[type] = shape
    }
  }
}

extension LinearConfiguration {
  /// Reads the settings of a mixer of `type` out of `efficient_attention_config`.
  init(_ type: LayerType, _ reader: ConfigurationReader) throws {
    heads = try reader.positive("num_heads")
    let size = try reader.positive("head_dim")
    if type == .mamba2 {
      keySize = try reader.positive("state_size")
      valueSize = size
    } else {
      keySize = size
      let values = (Double(size) * (reader.number("expand_v") ?? 1)).rounded()
      guard values >= 1, values * Double(heads) <= 0x1p24 else {
        throw ModelError(path: reader.path, reason: "expand_v makes \(values) value channels of \(heads) heads")
      }
      valueSize = Int(values)
    }
    groups = try reader.optionalPositive("n_groups") ?? 1
    gateRank = try reader.optionalPositive("gate_low_rank_dim") ?? 16
    decayRank = try reader.optionalPositive("decay_low_rank_dim") ?? 32
    rateRank = try reader.optionalPositive("a_low_rank_dim") ?? 32
    epsilon = Float(reader.number("norm_eps") ?? 1e-5)
    guard epsilon > 0, epsilon.isFinite, heads % groups == 0, keySize % 2 == 0 || type != .retention else {
      throw ModelError(
        path: reader.path,
        reason:
          "norm_eps must be above zero, n_groups \(groups) divide num_heads \(heads), and retention's head size be even"
      )
    }
    guard valueSize == keySize || type != .rwkv7 else {
      throw ModelError(
        path: reader.path, reason: "RWKV7 has as many value channels as key channels; leave out expand_v")
    }
  }
}
