/// A permutation of 0..<count that needs no memory: an additive Feistel network over two digits of mixed radix, with
/// murmur finalisers as round functions, walked until it lands inside (Black and Rogaway, 2002).
///
/// Each half has its own modulus, so that it is a bijection at every size.
package struct Permutation: Sendable {
  package let count: Int
  private let left: UInt64
  private let right: UInt64
  private let keys: [UInt64]

  private static let rounds = 6

  /// - Parameter key: Decides the permutation; derive it by hash, not by adding.
  package init(count: Int, key: UInt64) {
    precondition(count > 0, "a permutation of nothing")
    self.count = count
    var side = UInt64(Double(count).squareRoot())
    while side * side < UInt64(count) { side += 1 }
    left = side
    right = (UInt64(count) + side - 1) / side
    keys = (0..<Self.rounds).map { Self.mixed(key ^ Self.mixed(UInt64($0) &+ 0x9E37_79B9_7F4A_7C15)) }
  }

  /// Murmur3's 64-bit finaliser.
  static func mixed(_ value: UInt64) -> UInt64 {
    var z = value
    z = (z ^ (z >> 33)) &* 0xFF51_AFD7_ED55_8CCD
    z = (z ^ (z >> 33)) &* 0xC4CE_B9FE_1A85_EC53
    return z ^ (z >> 33)
  }

  /// Where `index` goes.
  package subscript(index: Int) -> Int {
    precondition((0..<count).contains(index), "index \(index) of a permutation of \(count)")
    var value = UInt64(index)
    repeat {
      var (a, b) = (value / right, value % right)
      for (round, key) in keys.enumerated() {
        if round % 2 == 0 {
          a = (a + Self.mixed(b ^ key) % left) % left
        } else {
          b = (b + Self.mixed(a ^ key) % right) % right
        }
      }
      value = a * right + b
    } while value >= UInt64(count)
    return Int(value)
  }
}
