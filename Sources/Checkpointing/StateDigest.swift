/// A digest of bytes that are given piece by piece, and copied on the way where that is asked: one pass over memory, far
/// faster than a hash. It tells states of a run apart, it is no defence against anybody.
package struct StateDigest {
  private static let step = 0x9E37_79B9_7F4A_7C15 as UInt64
  // Sums of products with odd numbers that change along the way: four words at a time.
  private var sums = SIMD4<UInt64>(repeating: 0)
  private var factors = SIMD4<UInt64>(step, step &* 3, step &* 5, step &* 7)
  /// Of what is left behind the last 32 bytes.
  private var rest: UInt64?

  package init() {}

  /// Takes `bytes` in. All pieces but the last must be multiples of 32 bytes.
  package mutating func update(_ bytes: UnsafeRawBufferPointer, copyingTo target: UnsafeMutableRawPointer? = nil) {
    precondition(rest == nil, "a digest was given more behind its last piece")
    guard let from = bytes.baseAddress else { return }
    let words = bytes.count / 32
    for index in 0..<words {
      let value = from.loadUnaligned(fromByteOffset: index * 32, as: SIMD4<UInt64>.self)
      target?.storeBytes(of: value, toByteOffset: index * 32, as: SIMD4<UInt64>.self)
      sums &+= (value ^ (value &>> 29)) &* factors
      factors &+= SIMD4(repeating: 2 &* Self.step &+ 2)
    }
    guard words * 32 < bytes.count else { return }
    var sum = 0 as UInt64
    for index in words * 32..<bytes.count {
      target?.storeBytes(of: bytes[index], toByteOffset: index, as: UInt8.self)
      sum = sum &* 31 &+ UInt64(bytes[index]) &+ 1
    }
    rest = sum
  }

  /// The digest of all pieces.
  package var value: UInt64 { (sums[0] &+ sums[1] &* 3 &+ sums[2] &* 5 &+ sums[3] &* 7) &* 31 &+ (rest ?? 0) }
}
