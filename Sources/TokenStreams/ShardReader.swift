import Files
import Foundation

/// Reads one token shard at any position. Everything in the file is checked before it is believed.
package final class ShardReader {
  package let path: String
  package let header: ShardHeader
  package let index: DocumentIndex
  private let codebook: Codebook?
  /// Position, compressed and decompressed size of every token frame.
  private let frames: [(offset: Int, compressed: Int, decompressed: Int)]
  /// The frame decoded last: the next sequence often goes on in it.
  private var cache: (frame: Int, tokens: [UInt32])?

  /// - Parameters:
  ///   - codebook: of the dataset, for codec `rank`
  ///   - record: what the manifest says, if there is one
  package init(_ path: String, codebook: Codebook?, record: ShardRecord? = nil) throws {
    self.path = path
    self.codebook = codebook
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else {
      throw errno == ENOENT
        ? FileError(path, "shard is missing; restore it or build the dataset anew")
        : FileError.system(path, "cannot be opened")
    }
    FileOperations.opened()
    defer { close(descriptor) }
    let size = Int(lseek(descriptor, 0, SEEK_END))
    if let record, record.bytes != size {
      try refusePointer(at: path)
      throw FileError(
        path,
        "has \(size) bytes, the manifest says \(record.bytes): \(size < record.bytes ? "truncated" : "not the file it was")"
      )
    }
    func bytes(_ offset: Int, _ count: Int) throws -> [UInt8] {
      guard offset >= 0, count >= 0, offset <= size - count else {
        throw FileError(path, "is truncated or not a token shard")
      }
      return try Self.read(descriptor, path, offset, count)
    }
    func word(_ bytes: [UInt8], _ offset: Int) -> Int {
      (0..<4).reversed().reduce(0) { $0 << 8 | Int(bytes[offset + $1]) }
    }
    let footer = try bytes(size - 9, 9)
    let count = word(footer, 0)
    guard word(footer, 5) == Int(ShardLayout.seekableMagic), footer[4] == 0x80, count >= 2,
      count <= size / 12
    else { throw FileError(path, "is truncated or not a token shard (no seek table at its end)") }
    let tableSize = count * 12 + 9
    let table = try bytes(size - tableSize - 8, tableSize + 8)
    guard word(table, 0) == Int(ShardLayout.seekTableMagic), word(table, 4) == tableSize else {
      throw FileError(path, "its seek table is damaged")
    }
    var offset = 0
    var all: [(offset: Int, compressed: Int, decompressed: Int)] = []
    for entry in 0..<count {
      let compressed = word(table, 8 + entry * 12)
      all.append((offset, compressed, word(table, 12 + entry * 12)))
      offset += compressed
    }
    guard offset == size - tableSize - 8 else { throw FileError(path, "its seek table is damaged") }
    func payload(_ entry: (offset: Int, compressed: Int, decompressed: Int), _ magic: UInt32) throws -> Data {
      let frame = try bytes(entry.offset, entry.compressed)
      guard frame.count >= 8, word(frame, 0) == Int(magic), word(frame, 4) == frame.count - 8 else {
        throw FileError(path, "a frame of its index is damaged")
      }
      return Data(frame.dropFirst(8))
    }
    guard all[0].compressed <= ShardLayout.headerLimit,
      let header = try? JSONDecoder().decode(
        ShardHeader.self, from: payload(all[0], ShardLayout.headerMagic))
    else { throw FileError(path, "its header is damaged") }
    guard header.magic == "jettrain tokens", header.version == ShardLayout.version,
      header.tokensPerFrame == ShardLayout.tokensPerFrame
    else { throw FileError(path, "is of format version \(header.version), this program reads \(ShardLayout.version)") }
    self.header = header
    frames = Array(all[1..<count - 1])
    let documents = try payload(all[count - 1], ShardLayout.documentsMagic)
    index = try DocumentIndex(
      encoded: Zstd.decompress(documents, limit: 16 * size + (1 << 20), path: path), path: path)
    let expected = (index.tokenCount + ShardLayout.tokensPerFrame - 1) / ShardLayout.tokensPerFrame
    guard frames.count == expected else {
      throw FileError(path, "has \(frames.count) frames for \(index.tokenCount) tokens")
    }
    // Whatever the codec: a shard is not believed about the ids that its dataset has.
    if let codebook, codebook.ids.count != header.vocabulary {
      throw FileError(
        path, "has a vocabulary of \(header.vocabulary), its dataset one of \(codebook.ids.count): it is of another one"
      )
    }
    guard header.codec != .rank || codebook != nil else {
      throw FileError(path, "needs the codebook of its dataset, with \(header.vocabulary) ids")
    }
    if let record, record.tokens != index.tokenCount || record.documents != index.documentCount {
      throw FileError(
        path, "holds \(index.tokenCount) tokens, the manifest says \(record.tokens)")
    }
  }

  private static func read(_ descriptor: Int32, _ path: String, _ offset: Int, _ count: Int) throws -> [UInt8] {
    try [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
      while filled < count {
        let part = pread(descriptor, buffer.baseAddress! + filled, count - filled, off_t(offset + filled))
        if part < 0 && errno == EINTR { continue }
        guard part >= 0 else { throw FileError.system(path, "cannot be read") }
        guard part > 0 else { throw FileError(path, "is truncated") }
        filled += part
      }
      FileOperations.read(count)
    }
  }

  /// The most bytes that a reader of so many documents, runs and tokens holds.
  static func memoryBytes(documents: Int, runs: Int, tokens: Int) -> Int {
    let frames = (tokens + ShardLayout.tokensPerFrame - 1) / ShardLayout.tokensPerFrame
    return 8 * (documents + 1 + runs) + 24 * frames + 4 * min(tokens, ShardLayout.tokensPerFrame)
  }

  /// The most bytes that this reader holds, with a decoded frame.
  var memoryBytes: Int {
    Self.memoryBytes(documents: index.documentCount, runs: index.runEnds.count, tokens: tokenCount)
  }

  package var tokenCount: Int { index.tokenCount }
  package var frameCount: Int { frames.count }

  /// All tokens of one frame.
  package func frame(_ ordinal: Int) throws -> [UInt32] {
    if let cache, cache.frame == ordinal { return cache.tokens }
    let tokens = try readingAgain(path) { _ in try decode(ordinal) }
    cache = (ordinal, tokens)
    return tokens
  }

  private func decode(_ ordinal: Int) throws -> [UInt32] {
    let entry = frames[ordinal]
    let count = min(
      ShardLayout.tokensPerFrame, index.tokenCount - ordinal * ShardLayout.tokensPerFrame)
    guard entry.decompressed <= count * 4 else { throw FileError(path, "frame \(ordinal) is damaged") }
    // Opened for each frame: a plan jumps between thousands of shards, a process may hold a thousand files.
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw FileError.system(path, "cannot be opened") }
    defer { close(descriptor) }
    FileOperations.opened()
    var compressed = try Self.read(descriptor, path, entry.offset, entry.compressed)
    if FailPoint.flips(.shardRead) { compressed[compressed.count / 2] ^= 1 }
    let place = "\(path): frame \(ordinal)"
    // Four bytes more than needed, so that the decoder may read whole words.
    var raw = [UInt8](repeating: 0, count: entry.decompressed + 4)
    try raw.withUnsafeMutableBytes { raw in
      try compressed.withUnsafeBytes {
        try Zstd.decompress(
          $0, into: UnsafeMutableRawBufferPointer(rebasing: raw[..<entry.decompressed]), path: place)
      }
    }
    let tokens = try [UInt32](unsafeUninitializedCapacity: count) { buffer, filled in
      let out = UnsafeMutableBufferPointer(rebasing: buffer[..<count])
      let isGood = raw.withUnsafeBytes { raw in
        switch header.codec {
        case .u32:
          guard entry.decompressed == count * 4 else { return false }
          for i in 0..<count {
            out[i] = UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: i * 4, as: UInt32.self))
          }
          return out.allSatisfy { $0 < header.vocabulary }
        case .rank:
          return codebook!.decode(raw.baseAddress!, count: entry.decompressed, into: out)
        }
      }
      guard isGood else { throw FileError(place, "holds ids outside the vocabulary, or too many bytes") }
      filled = count
    }
    return tokens
  }

  /// Appends the tokens `range` of the shard to `tokens`.
  package func read(_ range: Range<Int>, into tokens: inout [UInt32]) throws {
    precondition(range.upperBound <= tokenCount, "tokens \(range) of \(tokenCount)")
    var position = range.lowerBound
    while position < range.upperBound {
      let ordinal = position / ShardLayout.tokensPerFrame
      let start = ordinal * ShardLayout.tokensPerFrame
      let frame = try frame(ordinal)
      let end = min(range.upperBound, start + frame.count)
      tokens += frame[position - start..<end - start]
      position = end
    }
  }
}
