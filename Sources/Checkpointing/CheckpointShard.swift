import Files
import Foundation
import Hashing
import Parallel
import Safetensors

/// Names an array of a shard, or a part of one: `ROLE/NAME` for a whole array, `ROLE/NAME[a:b]` for elements a to b of its
/// flat order.
package struct ShardKey: Sendable, Equatable, CustomStringConvertible {
  /// What the elements are to the parameter.
  package enum Role: String, Sendable {
    case parameter
    /// Of AdamW: the running means of gradients and of their squares.
    case firstMoment = "moment1"
    case secondMoment = "moment2"
  }

  package let role: Role
  /// Of the parameter.
  package let name: String
  /// The elements; nil for all.
  package let range: Range<Int>?

  package init(_ role: Role, _ name: String, _ range: Range<Int>? = nil) {
    (self.role, self.name, self.range) = (role, name, range)
  }

  package var description: String {
    "\(role.rawValue)/\(name)" + (range.map { "[\($0.lowerBound):\($0.upperBound)]" } ?? "")
  }

  /// Reads what ``description`` wrote for an array of `count` elements; nil when it is something else.
  init?(_ text: String, count: Int) {
    let parts = text.split(separator: "/", maxSplits: 1)
    guard parts.count == 2, let role = Role(rawValue: String(parts[0])) else { return nil }
    self.role = role
    var name = parts[1]
    var range: Range<Int>?
    if name.hasSuffix("]"), let open = name.lastIndex(of: "[") {
      let bounds = name[name.index(after: open)...].dropLast().split(separator: ":")
      guard bounds.count == 2, let first = Int(bounds[0]), let end = Int(bounds[1]), first >= 0,
        end.subtractingReportingOverflow(first) == (count, false)
      else { return nil }
      range = first..<end
      name = name[..<open]
    }
    self.name = String(name)
    self.range = range
  }
}

/// One rank's part of a checkpoint: a safetensors file, compressed as zstd frames that end to end are one stream.
enum CheckpointShard {
  /// The file of a rank.
  static func fileName(of rank: Int) -> String {
    let digits = String(rank)
    return "shard-" + String(repeating: "0", count: max(0, 5 - digits.count)) + digits + ".safetensors.zst"
  }

  /// Bytes of one frame before compression: a unit for the threads.
  static let frameBytes = 4 << 20

  /// Elements that are read at a time.
  private static let stretch = 1 << 20

  /// Writes the slices to `path` and returns the manifest's entry.
  ///
  /// - Parameter digest: of the slices when they were copied, for the manifest
  static func write(
    _ slices: [SnapshotBuffer.Slice], to path: String, level: Int32, pool: ThreadPool, digest: UInt64
  ) throws -> CheckpointManifest.Shard {
    let header = try SafetensorsHeader(
      slices.map { .init(name: $0.key.description, shape: $0.key.range.map { [$0.count] } ?? $0.shape) },
      metadata: ["format": "jettrain-checkpoint"])
    var spans: [UnsafeRawBufferPointer] = []
    for slice in slices {
      let bytes = UnsafeRawBufferPointer(slice.values)
      for first in stride(from: 0, to: bytes.count, by: frameBytes) {
        spans.append(UnsafeRawBufferPointer(rebasing: bytes[first..<min(first + frameBytes, bytes.count)]))
      }
    }
    let file = try DurableFile(path)
    let headerFrame = header.bytes.withUnsafeBytes { Zstd.compress($0, level: level) }
    try file.write(headerFrame)
    try FailPoint.reach(.midShard, path: path)
    var written: [ShardIndex.Frame] = []
    // A few frames at a time, compressed side by side and written in order.
    let batch = pool.threadCount * 2
    for first in stride(from: 0, to: spans.count, by: batch) {
      let group = spans[first..<min(first + batch, spans.count)]
      var frames = [[UInt8]](repeating: [], count: group.count)
      frames.withUnsafeMutableBufferPointer { frames in
        let out = frames.baseAddress!
        pool.run(group.count) { out[$0] = Zstd.compress(group[first + $0], level: level) }
      }
      for frame in frames {
        written.append(.init(bytes: frame.count, hash: hash(of: frame)))
        try file.write(frame)
      }
    }
    let bytes = file.byteCount
    var rest = written[...]
    let index = ShardIndex(
      header: .init(bytes: headerFrame.count, hash: hash(of: headerFrame)),
      slices: slices.map { slice in
        let count = (slice.values.count + ShardIndex.frameElements - 1) / ShardIndex.frameElements
        defer { rest = rest.dropFirst(count) }
        return .init(key: slice.key, count: slice.values.count, frames: Array(rest.prefix(count)))
      })
    // The folder is flushed once, when all shards are there.
    return .init(
      file: (path as NSString).lastPathComponent, bytes: bytes, sha256: try file.finish(flushesFolder: false),
      state: String(digest, radix: 16), index: index)
  }

  /// What an index says of a frame.
  private static func hash(of frame: [UInt8]) -> String { String(sha256(Data(frame)).prefix(ShardIndex.digits)) }

  /// Reads what of the slices of a shard overlaps `wanted`, by role and name, frame by frame, each compared with the index.
  /// A file of which nothing is wanted is not opened.
  ///
  /// - Parameter checksHeader: whether to compare the header too, which this reading does without
  static func read(
    _ shard: CheckpointManifest.Shard, _ index: ShardIndex, folder: String, wanted: [String: [Range<Int>]],
    checksHeader: Bool,
    _ body: (_ key: ShardKey, _ elements: Range<Int>, _ values: UnsafeBufferPointer<Float>) throws -> Void
  ) throws {
    let path = folder + "/" + shard.file
    var descriptor: Int32 = -1
    defer { if descriptor >= 0 { close(descriptor) } }
    /// The bytes of a frame, compared, which `body` may find damaged too.
    func frame(_ frame: ShardIndex.Frame, at offset: Int, _ body: ([UInt8]) throws -> Void) throws {
      try readingAgain(path) { attempt in
        if descriptor < 0 || attempt > 0 {
          if descriptor >= 0 { close(descriptor) }
          descriptor = -1
          descriptor = try open(path, anew: attempt > 0)
        }
        let bytes = try bytes(frame.bytes, at: offset, of: descriptor, path)
        guard hash(of: bytes) == frame.hash else {
          try refusePointer(at: path)
          throw CheckpointError(path, "a frame differs from the manifest: bytes were changed", isDamage: true)
        }
        try body(bytes)
      }
    }
    if checksHeader { try frame(index.header, at: 0) { _ in } }
    var values = [Float](repeating: 0, count: ShardIndex.frameElements)
    var offset = index.header.bytes
    for slice in index.slices {
      let start = slice.key.range?.lowerBound ?? 0
      let ranges = wanted[ShardKey(slice.key.role, slice.key.name).description] ?? []
      for (place, part) in slice.frames.enumerated() {
        defer { offset += part.bytes }
        let first = start + place * ShardIndex.frameElements
        let elements = first..<min(first + ShardIndex.frameElements, start + slice.count)
        let parts = ranges.map { $0.clamped(to: elements) }.filter { !$0.isEmpty }
        guard !parts.isEmpty else { continue }
        try frame(part, at: offset) { bytes in
          try values.withUnsafeMutableBytes { values in
            try bytes.withUnsafeBytes {
              try Zstd.decompress(
                $0, into: UnsafeMutableRawBufferPointer(rebasing: values[..<(elements.count * 4)]), path: path)
            }
          }
        }
        try values.withUnsafeBufferPointer { values in
          for part in parts {
            let local = part.lowerBound - first..<part.upperBound - first
            try body(slice.key, part, UnsafeBufferPointer(rebasing: values[local]))
          }
        }
      }
    }
  }

  /// Opens a shard; `anew` lets go of what the system keeps of it, so that it is read from the disk once more.
  private static func open(_ path: String, anew: Bool) throws -> Int32 {
    let descriptor = Foundation.open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else {
      throw errno == ENOENT
        ? CheckpointError(path, "is missing", isDamage: true) : FileError.system(path, "cannot be opened")
    }
    FileOperations.opened()
    if anew { posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED) }
    return descriptor
  }

  private static func bytes(_ count: Int, at offset: Int, of descriptor: Int32, _ path: String) throws -> [UInt8] {
    try FailPoint.reach(.checkpointRead, path: path)
    var bytes = try [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
      while filled < count {
        let part = pread(descriptor, buffer.baseAddress! + filled, count - filled, off_t(offset + filled))
        if part < 0 && errno == EINTR { continue }
        guard part >= 0 else { throw FileError.system(path, "cannot be read") }
        guard part > 0 else {
          try refusePointer(at: path)
          throw CheckpointError(path, "is cut off", isDamage: true)
        }
        filled += part
      }
    }
    FileOperations.read(count)
    if FailPoint.flips(.checkpointRead) { bytes[count / 2] ^= 1 }
    return bytes
  }

  /// The arrays of a shard and the elements that each holds, in the order of the file. Only the header is read.
  static func keys(_ shard: CheckpointManifest.Shard, folder: String) throws -> [(key: ShardKey, count: Int)] {
    let path = folder + "/" + shard.file
    return try entries(ZstdReader(path), path)
  }

  /// Reads a shard once from end to end, in stretches of bounded memory, and compares it with the manifest on the way:
  /// what `body` was given counts only once this returns.
  static func read(
    _ shard: CheckpointManifest.Shard, folder: String,
    _ body: (_ key: ShardKey, _ elements: Range<Int>, _ values: UnsafeBufferPointer<Float>) throws -> Void
  ) throws {
    let path = folder + "/" + shard.file
    let reader = try ZstdReader(path, hashes: true)
    var buffer: [Float] = []
    for (key, count) in try entries(reader, path) {
      let start = key.range?.lowerBound ?? 0
      for first in stride(from: 0, to: count, by: stretch) {
        let length = min(stretch, count - first)
        if buffer.count < length { buffer = [Float](repeating: 0, count: length) }
        try buffer.withUnsafeMutableBytes { bytes in
          let part = UnsafeMutableRawBufferPointer(rebasing: bytes[..<(length * 4)])
          guard try reader.read(into: part) == part.count else {
            throw CheckpointError(path, "ends before \(key), which its header names", isDamage: true)
          }
        }
        try buffer.withUnsafeBufferPointer {
          try body(key, start + first..<start + first + length, UnsafeBufferPointer(rebasing: $0[..<length]))
        }
      }
    }
    let hash = try reader.finish()
    guard reader.byteCount == shard.bytes else {
      throw CheckpointError(path, "has \(reader.byteCount) bytes, the manifest says \(shard.bytes)", isDamage: true)
    }
    guard hash == shard.sha256 else {
      throw CheckpointError(path, "its SHA-256 differs from the manifest: bytes were changed", isDamage: true)
    }
  }

  /// Reads the header of a shard; `reader` then stands at its first array.
  private static func entries(_ reader: ZstdReader, _ path: String) throws -> [(key: ShardKey, count: Int)] {
    func read(_ count: Int) throws -> [UInt8] {
      try [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
        filled = try reader.read(into: UnsafeMutableRawBufferPointer(buffer))
        guard filled == count else { throw CheckpointError(path, "ends within its header", isDamage: true) }
      }
    }
    let length = try read(8).reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) }
    guard length <= UInt64(SafetensorsHeader.mostBytes) else {
      throw CheckpointError(path, "its header claims \(length) bytes", isDamage: true)
    }
    let entries = try read(Int(length)).withUnsafeBytes {
      try SafetensorsFile.entries(header: $0, fileSize: .max, path: path).entries
    }
    var end = 8 + Int(length)
    return try entries.sorted { $0.value.bytes.lowerBound < $1.value.bytes.lowerBound }.map { name, entry in
      guard let key = ShardKey(name, count: entry.count) else {
        throw CheckpointError(path, "holds an array of unknown kind: \(name)", isDamage: true)
      }
      guard entry.type == .float32, entry.bytes.lowerBound == end else {
        throw CheckpointError(path, "\(name) is not float32, or not where the array before it ends", isDamage: true)
      }
      end = entry.bytes.upperBound
      return (key, entry.count)
    }
  }

  /// Compares size and SHA-256 with the manifest.
  static func verify(_ shard: CheckpointManifest.Shard, folder: String) throws {
    let path = folder + "/" + shard.file
    guard let size = try? FileManager.default.attributesOfItem(atPath: path)[.size] as? Int else {
      throw CheckpointError(path, "is missing", isDamage: true)
    }
    guard size == shard.bytes else {
      try refusePointer(at: path)
      throw CheckpointError(path, "has \(size) bytes, the manifest says \(shard.bytes)", isDamage: true)
    }
    guard try sha256(file: path) == shard.sha256 else {
      throw CheckpointError(path, "its SHA-256 differs from the manifest: bytes were changed", isDamage: true)
    }
  }
}
