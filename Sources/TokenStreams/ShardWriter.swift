import Files
import Foundation
import Parallel

/// Writes one token shard. Frames are compressed on the pool in batches and written in order, so that the file
/// does not depend on the number of threads.
final class ShardWriter {
  private let file: DurableFile
  private let codec: TokenCodec
  private let codebook: Codebook
  private let level: Int32
  private let pool: ThreadPool
  private var pending: [UInt32] = []
  private var index = DocumentIndex()
  /// Compressed size, decompressed size and checksum of every frame so far.
  private var frames: [(UInt32, UInt32, UInt32)] = []

  private static let batch = 64

  init(_ path: String, header: ShardHeader, codebook: Codebook, level: Int32, pool: ThreadPool) throws {
    file = try DurableFile(path)
    codec = header.codec
    self.codebook = codebook
    self.level = level
    self.pool = pool
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    try writeSkippable(ShardLayout.headerMagic, Array(encoder.encode(header)))
  }

  var tokenCount: Int { index.tokenCount }

  /// Adds one document, whose tokens count in the loss as `runs` say.
  func append(_ tokens: [UInt32], runs: [TokenRun]) throws {
    index.append(runs)
    pending += tokens
    if pending.count >= Self.batch * ShardLayout.tokensPerFrame {
      try flush(pending.count / ShardLayout.tokensPerFrame)
    }
  }

  private func writeSkippable(_ magic: UInt32, _ payload: [UInt8]) throws {
    let frame = ShardLayout.skippable(magic, payload)
    try file.write(frame)
    frames.append((UInt32(frame.count), 0, ShardLayout.emptyChecksum))
  }

  /// Compresses the first `count` frames of what is pending; the last one may be short.
  private func flush(_ count: Int) throws {
    let size = ShardLayout.tokensPerFrame
    var results = [(bytes: [UInt8], size: Int)](repeating: ([], 0), count: count)
    results.withUnsafeMutableBufferPointer { results in
      let out = results.baseAddress!
      pool.run(count) { i in
        let tokens = pending[i * size..<min(pending.count, (i + 1) * size)]
        switch codec {
        case .u32:
          let words = tokens.map(\.littleEndian)
          out[i] = words.withUnsafeBytes { (Zstd.compress($0, level: level), $0.count) }
        case .rank:
          let bytes = codebook.encode(tokens)
          out[i] = bytes.withUnsafeBytes { (Zstd.compress($0, level: level), $0.count) }
        }
      }
    }
    for result in results {
      try file.write(result.bytes)
      // The frame's content checksum is its last four bytes.
      let checksum = result.bytes.suffix(4).reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
      frames.append((UInt32(result.bytes.count), UInt32(result.size), checksum))
    }
    pending.removeFirst(min(pending.count, count * size))
  }

  /// Writes the rest and gives what the manifest says of this shard.
  func finish() throws -> ShardRecord {
    try flush((pending.count + ShardLayout.tokensPerFrame - 1) / ShardLayout.tokensPerFrame)
    let documents = index.encoded().withUnsafeBytes { Zstd.compress($0, level: level) }
    try writeSkippable(ShardLayout.documentsMagic, documents)
    var table: [UInt8] = []
    for (compressed, decompressed, checksum) in frames {
      table += ShardLayout.littleEndian(compressed) + ShardLayout.littleEndian(decompressed)
      table += ShardLayout.littleEndian(checksum)
    }
    table += ShardLayout.littleEndian(UInt32(frames.count)) + [0x80]
    table += ShardLayout.littleEndian(ShardLayout.seekableMagic)
    try file.write(ShardLayout.skippable(ShardLayout.seekTableMagic, table))
    let bytes = file.byteCount
    return ShardRecord(
      file: (file.path as NSString).lastPathComponent, bytes: bytes, tokens: index.tokenCount,
      documents: index.documentCount, sha256: try file.finish())
  }
}
