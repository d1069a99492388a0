/// Tokens of pieces met before. Each place holds the last piece that fell there, so that its size is fixed.
struct PieceCache {
  /// A piece of at most fifteen bytes, with its length.
  struct Key: Equatable {
    fileprivate let low: UInt64
    fileprivate let high: UInt64

    /// - Parameter readable: bytes that may be read from where the piece begins
    @inline(__always)
    init?(_ piece: UnsafeBufferPointer<UInt8>, readable: Int) {
      let count = piece.count
      guard count < 16, let base = UnsafeRawPointer(piece.baseAddress) else { return nil }
      if readable >= 16 {
        let (first, second) = (base.loadUnaligned(as: UInt64.self), (base + 8).loadUnaligned(as: UInt64.self))
        low = count >= 8 ? first : first & ((1 << UInt64(8 * count)) - 1)
        high = (count > 8 ? second & ((1 << UInt64(8 * (count - 8))) - 1) : 0) | UInt64(count) << 56
      } else {
        var (low, high) = (UInt64(0), UInt64(count) << 56)
        for (i, byte) in piece.enumerated() {
          if i < 8 { low |= UInt64(byte) << UInt64(8 * i) } else { high |= UInt64(byte) << UInt64(8 * (i - 8)) }
        }
        (self.low, self.high) = (low, high)
      }
    }

    @inline(__always)
    fileprivate var place: Int {
      let mixed = (low ^ high &* 0x9E37_79B9_7F4A_7C15) &* 0xBF58_476D_1CE4_E5B9
      return Int(truncatingIfNeeded: mixed >> 40) & (PieceCache.size - 1)
    }
  }

  private struct Entry {
    var low: UInt64 = 0
    var high: UInt64 = 0
    var tokens = SIMD4<UInt32>.zero
    var count = 0
  }

  private static let size = 1 << 16
  private var entries = [Entry](repeating: Entry(), count: size)

  /// Adds the tokens of `key` to `out`, if they are known.
  @inline(__always)
  func append(_ key: Key, to out: inout [UInt32]) -> Bool {
    entries.withUnsafeBufferPointer { entries in
      let entry = entries[key.place]
      guard entry.low == key.low, entry.high == key.high else { return false }
      for i in 0..<entry.count { out.append(entry.tokens[i]) }
      return true
    }
  }

  mutating func store(_ key: Key, _ tokens: [UInt32]) {
    guard tokens.count <= 4 else { return }
    var entry = Entry(low: key.low, high: key.high, count: tokens.count)
    for (i, token) in tokens.enumerated() { entry.tokens[i] = token }
    entries[key.place] = entry
  }
}
