import Files
import Foundation

/// The layout of a token shard, a zstd file in the seekable format (docs/token-shards.md).
enum ShardLayout {
  static let version = 1
  /// Tokens of every frame but the last.
  static let tokensPerFrame = 32_768
  static let headerMagic: UInt32 = 0x184D_2A50
  static let documentsMagic: UInt32 = 0x184D_2A51
  static let seekTableMagic: UInt32 = 0x184D_2A5E
  static let seekableMagic: UInt32 = 0x8F92_EAB1
  /// Low half of XXH64 of nothing: the checksum of frames without content.
  static let emptyChecksum: UInt32 = 0x51D8_E999
  static let headerLimit = 1 << 16

  /// A skippable frame.
  static func skippable(_ magic: UInt32, _ payload: [UInt8]) -> [UInt8] {
    littleEndian(magic) + littleEndian(UInt32(payload.count)) + payload
  }

  static func littleEndian(_ value: UInt32) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
  }
}

/// What the first frame of a shard says.
package struct ShardHeader: Codable, Sendable, Equatable {
  package var magic = "jettrain tokens"
  package var version = ShardLayout.version
  package let codec: TokenCodec
  package let tokenizer: String
  package let vocabulary: Int
  package let endOfText: UInt32
  package var tokensPerFrame = ShardLayout.tokensPerFrame
  /// Name of the dataset and position of the shard in it.
  package let dataset: String
  package let ordinal: Int
}

/// Tokens of a document that all count in the loss, or all do not.
struct TokenRun: Sendable, Equatable {
  var length: Int
  let counts: Bool
}

/// Where the documents of a shard begin and which tokens count in the loss.
package struct DocumentIndex: Sendable, Equatable {
  /// First token of every document, and the end of the last.
  package private(set) var starts: [Int] = [0]
  /// Ends of the runs, of which the first counts, the second does not, and so on.
  package private(set) var runEnds: [Int] = []

  package init() {}

  package var documentCount: Int { starts.count - 1 }
  package var tokenCount: Int { starts[starts.count - 1] }

  /// Adds a document of these runs, of which each counts in the loss or does not.
  mutating func append(_ runs: [TokenRun]) {
    starts.append(tokenCount + runs.reduce(0) { $0 + $1.length })
    for run in runs { extend(counts: run.counts, by: run.length) }
  }

  private mutating func extend(counts: Bool, by count: Int) {
    guard count > 0 else { return }
    let end = (runEnds.last ?? 0) + count
    if runEnds.isEmpty && !counts { runEnds.append(0) }
    if !runEnds.isEmpty && (runEnds.count % 2 == 1) == counts {
      runEnds[runEnds.count - 1] = end
    } else {
      runEnds.append(end)
    }
  }

  /// Calls `body` with the parts of `range` that belong to one document each.
  package func forEachDocument(in range: Range<Int>, _ body: (Range<Int>) -> Void) {
    var document = Self.lastIndex(in: starts, notAfter: range.lowerBound)
    while document < documentCount, starts[document] < range.upperBound {
      let part = (starts[document]..<starts[document + 1]).clamped(to: range)
      if !part.isEmpty { body(part) }
      document += 1
    }
  }

  /// Whether the token at `position` counts in the loss.
  package func counts(_ position: Int) -> Bool {
    // Runs that have ended by then; the first counts.
    var (low, high) = (0, runEnds.count)
    while low < high {
      let middle = (low + high) / 2
      if runEnds[middle] <= position { low = middle + 1 } else { high = middle }
    }
    return low % 2 == 0
  }

  private static func lastIndex(in starts: [Int], notAfter position: Int) -> Int {
    var (low, high) = (0, starts.count - 1)
    while low < high {
      let middle = (low + high + 1) / 2
      if starts[middle] <= position { low = middle } else { high = middle - 1 }
    }
    return low
  }

  /// LEB128 varints: number of documents, their lengths, number of runs, their lengths.
  func encoded() -> [UInt8] {
    var bytes: [UInt8] = []
    func append(_ value: Int) {
      var rest = UInt64(value)
      while rest >= 0x80 {
        bytes.append(UInt8(rest & 0x7F) | 0x80)
        rest >>= 7
      }
      bytes.append(UInt8(rest))
    }
    append(documentCount)
    for (start, end) in zip(starts, starts.dropFirst()) { append(end - start) }
    append(runEnds.count)
    for (index, end) in runEnds.enumerated() { append(end - (index == 0 ? 0 : runEnds[index - 1])) }
    return bytes
  }

  init(encoded bytes: [UInt8], path: String) throws {
    var offset = 0
    func next() throws -> Int {
      var value: UInt64 = 0
      for shift in stride(from: UInt64(0), to: 56, by: 7) {
        guard offset < bytes.count else { break }
        let byte = bytes[offset]
        offset += 1
        value |= UInt64(byte & 0x7F) << shift
        if byte < 0x80 { return Int(value) }
      }
      throw FileError(path, "damaged document index")
    }
    func lengths() throws -> [Int] {
      let count = try next()
      guard count <= bytes.count else { throw FileError(path, "damaged document index") }
      var end = 0
      return try (0..<count).map { _ in
        end += try next()
        return end
      }
    }
    starts = [0] + (try lengths())
    runEnds = try lengths()
    guard offset == bytes.count, (runEnds.last ?? 0) == tokenCount else {
      throw FileError(path, "damaged document index")
    }
  }
}
