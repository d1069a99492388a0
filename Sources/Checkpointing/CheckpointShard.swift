import Files
import Foundation
import NN
import Parallel
import Safetensors
import Tensors

/// A piece of a named array: elements `range` of its flat order.
package struct Piece {
  /// `parameter`, `moment1` or `moment2`.
  package let role: String
  package let name: String
  package let shape: [Int]
  package let range: Range<Int>
  package let values: UnsafeMutablePointer<Float>

  package init(
    role: String, name: String, shape: [Int], range: Range<Int>, values: UnsafeMutablePointer<Float>
  ) {
    self.role = role
    self.name = name
    self.shape = shape
    self.range = range
    self.values = values
  }

  /// `parameter/NAME` for a whole array, `parameter/NAME[a:b]` for a part of one.
  fileprivate var key: String {
    let whole = range == 0..<shape.reduce(1, *)
    return "\(role)/\(name)" + (whole ? "" : "[\(range.lowerBound):\(range.upperBound)]")
  }
}

/// One rank's part of a checkpoint: a safetensors file, compressed as zstd frames that end to end are one stream.
enum CheckpointShard {
  /// Bytes of one frame before compression: a unit for the threads.
  private static let frameBytes = 4 << 20

  /// Writes the pieces to `path` and returns the manifest's entry.
  ///
  /// - Parameter digest: of the pieces when they were copied, for the manifest
  static func write(
    _ pieces: [Piece], to path: String, level: Int32, pool: ThreadPool, digest: UInt64
  ) throws -> CheckpointManifest.Shard {
    let header = try SafetensorsHeader(
      pieces.map { piece in
        .init(name: piece.key, shape: piece.range == 0..<piece.shape.reduce(1, *) ? piece.shape : [piece.range.count])
      }, metadata: ["format": "jettrain-checkpoint"])
    var spans: [UnsafeRawBufferPointer] = []
    for piece in pieces {
      let bytes = UnsafeRawBufferPointer(start: piece.values, count: piece.range.count * 4)
      for first in stride(from: 0, to: bytes.count, by: frameBytes) {
        spans.append(UnsafeRawBufferPointer(rebasing: bytes[first..<min(first + frameBytes, bytes.count)]))
      }
    }
    let file = try DurableFile(path)
    try header.bytes.withUnsafeBytes { try file.write(Zstd.compress($0, level: level)) }
    try FailPoint.reach(.midShard, path: path)
    // A few frames at a time, compressed side by side and written in order.
    let batch = pool.threadCount * 2
    for first in stride(from: 0, to: spans.count, by: batch) {
      let group = spans[first..<min(first + batch, spans.count)]
      var frames = [[UInt8]](repeating: [], count: group.count)
      frames.withUnsafeMutableBufferPointer { frames in
        let out = frames.baseAddress!
        pool.run(group.count) { out[$0] = Zstd.compress(group[first + $0], level: level) }
      }
      for frame in frames { try file.write(frame) }
    }
    let bytes = file.byteCount
    return .init(
      file: (path as NSString).lastPathComponent, bytes: bytes, sha256: try file.finish(),
      state: String(digest, radix: 16))
  }

  /// Decompresses a shard, after checking that it is what the manifest says.
  static func read(_ shard: CheckpointManifest.Shard, folder: String) throws -> SafetensorsFile {
    let path = folder + "/" + shard.file
    try verify(shard, folder: folder)
    var content: [UInt8] = []
    let reader = try ZstdReader(path)
    var buffer = [UInt8](repeating: 0, count: 4 << 20)
    while true {
      let count = try buffer.withUnsafeMutableBytes { try reader.read(into: $0) }
      if count == 0 { break }
      content.append(contentsOf: buffer[..<count])
    }
    return try SafetensorsFile(content: content, path: path)
  }

  /// Compares size and SHA-256 with the manifest.
  static func verify(_ shard: CheckpointManifest.Shard, folder: String) throws {
    let path = folder + "/" + shard.file
    guard let size = try? FileManager.default.attributesOfItem(atPath: path)[.size] as? Int else {
      throw CheckpointError(path, "is missing")
    }
    guard size == shard.bytes else {
      throw CheckpointError(path, "has \(size) bytes, the manifest says \(shard.bytes)")
    }
    guard try sha256(file: path) == shard.sha256 else {
      throw CheckpointError(path, "its SHA-256 differs from the manifest: bytes were changed")
    }
  }
}
