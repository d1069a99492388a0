import Files
import Foundation

/// How the tokens of a frame become bytes before compression.
package enum TokenCodec: String, Codable, Sendable {
  /// Little-endian 32-bit ids: what `zstd -dc` shows is what other programs read.
  case u32
  /// The id's frequency rank as a prefix varint: one byte for the 128 most frequent, two for the next 16,384,
  /// then three. The low bits of the first byte tell the length: 0, 01, 11.
  case rank
}

/// Frequency ranks of a dataset's tokens, both ways.
package struct Codebook: Sendable {
  /// Ids by rank.
  package let ids: [UInt32]
  private let ranks: [UInt32]

  /// - Parameter ids: A permutation of 0..<vocabulary.
  package init?(ids: [UInt32]) {
    var ranks = [UInt32](repeating: .max, count: ids.count)
    for (rank, id) in ids.enumerated() {
      guard Int(id) < ids.count, ranks[Int(id)] == .max else { return nil }
      ranks[Int(id)] = UInt32(rank)
    }
    self.ids = ids
    self.ranks = ranks
  }

  /// The most frequent tokens of `sample` first; the others follow by id.
  package init(sample: [UInt32], vocabulary: Int) {
    var counts = [Int](repeating: 0, count: vocabulary)
    for token in sample { counts[Int(token)] += 1 }
    let ids = (0..<vocabulary).sorted { (counts[$0], $1) > (counts[$1], $0) }.map(UInt32.init)
    self.init(ids: ids)!
  }

  private static let twoByteBase: UInt32 = 1 << 7
  private static let threeByteBase: UInt32 = (1 << 7) + (1 << 14)

  /// The bytes of one frame.
  package func encode(_ tokens: ArraySlice<UInt32>) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(tokens.count * 2)
    for token in tokens {
      let rank = ranks[Int(token)]
      if rank < Self.twoByteBase {
        bytes.append(UInt8(rank << 1))
      } else if rank < Self.threeByteBase {
        let value = (rank - Self.twoByteBase) << 2 | 1
        bytes.append(UInt8(truncatingIfNeeded: value))
        bytes.append(UInt8(value >> 8))
      } else {
        let value = (rank - Self.threeByteBase) << 2 | 3
        bytes.append(UInt8(truncatingIfNeeded: value))
        bytes.append(UInt8(truncatingIfNeeded: value >> 8))
        bytes.append(UInt8(truncatingIfNeeded: value >> 16))
      }
    }
    return bytes
  }

  /// Decodes exactly `out.count` tokens from `count` bytes at `source`, behind which at least four more bytes must
  /// be readable.
  ///
  /// - Returns: Whether the bytes held just these tokens, all of them in the vocabulary.
  func decode(_ source: UnsafeRawPointer, count: Int, into out: UnsafeMutableBufferPointer<UInt32>) -> Bool {
    ids.withUnsafeBufferPointer { ids in
      let limit = UInt32(ids.count)
      var offset = 0
      // Indexed by the two low bits: length − 1, and what to subtract, without a branch.
      for index in 0..<out.count {
        guard offset < count else { return false }
        let word = source.loadUnaligned(fromByteOffset: offset, as: UInt32.self)
        let first = word & 1
        let second = first & (word >> 1)
        let length = 1 + first + second
        let shift = 1 + first
        let mask = (1 &<< (8 &* length)) &- 1
        let rank = ((word & mask) >> shift) &+ first &* Self.twoByteBase &+ second &* (1 << 14)
        guard rank < limit else { return false }
        out[index] = ids[Int(rank)]
        offset += Int(length)
      }
      return offset == count
    }
  }
}
