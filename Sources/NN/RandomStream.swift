import Foundation

/// Random numbers that depend on a seed and a name alone (SplitMix64, Steele et al., 2014).
package struct RandomStream: RandomNumberGenerator {
  private var state: UInt64
  private var spare: Float?

  /// The stream of this seed and name; others are independent of it.
  package init(seed: UInt64, name: String) {
    // FNV-1a over the name, started from the mixed seed, so that near seeds and names are far apart.
    var hash: UInt64 = 0xCBF2_9CE4_8422_2325 ^ Self.mixed(seed &+ 0x9E37_79B9_7F4A_7C15)
    for byte in name.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
    state = Self.mixed(hash)
  }

  private static func mixed(_ value: UInt64) -> UInt64 {
    var z = value
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  /// The next 64 bits.
  package mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    return Self.mixed(state)
  }

  /// Uniform in [0, 1), 24 bits.
  package mutating func uniform() -> Float { Float(next() >> 40) * 0x1p-24 }

  /// Standard normal, by the polar form of Box and Muller.
  package mutating func gaussian() -> Float {
    if let value = spare {
      spare = nil
      return value
    }
    while true {
      let (u, v) = (uniform() * 2 - 1, uniform() * 2 - 1)
      let s = u * u + v * v
      guard s > 0, s < 1 else { continue }
      let factor = (-2 * log(s) / s).squareRoot()
      spare = v * factor
      return u * factor
    }
  }
}
