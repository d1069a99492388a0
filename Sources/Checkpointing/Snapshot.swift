import Tensors

/// A part of a parameter or of its moments that one rank saves.
package struct StateSlice {
  package let key: ShardKey
  /// Of the whole array.
  package let shape: [Int]
  /// The elements, float32.
  package let values: Tensor
  /// Whether updates change it, as against what only another phase trains.
  package let isTrained: Bool

  package init(_ key: ShardKey, shape: [Int], values: Tensor, isTrained: Bool) {
    precondition(values.count == key.range?.count ?? shape.reduce(1, *), "\(key) \(shape) of \(values.shape)")
    (self.key, self.shape, self.values, self.isTrained) = (key, shape, values, isTrained)
  }
}

/// Memory for the state of one moment, kept from save to save.
package final class SnapshotBuffer {
  private var memory: UnsafeMutableRawBufferPointer?

  package init() {}
  deinit { memory?.deallocate() }

  /// A slice as it was copied.
  struct Slice {
    let key: ShardKey
    let shape: [Int]
    let values: UnsafeMutableBufferPointer<Float>
  }

  private static func bytes(_ slice: StateSlice) -> Int { (slice.values.count * 4 + 7) / 8 * 8 }

  /// Copies the slices, and gives the copies, a digest of them, and one of those that updates change: nil without any.
  func take(_ slices: [StateSlice]) -> (slices: [Slice], digest: UInt64, trained: UInt64?) {
    let bytes = slices.reduce(0) { $0 + Self.bytes($1) }
    if memory?.count ?? 0 < bytes {
      memory?.deallocate()
      memory = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes, alignment: 64)
    }
    var digests: [UInt64] = []
    var offset = 0
    let copies = slices.map { slice in
      let count = slice.values.count
      let target = (memory!.baseAddress! + offset).bindMemory(to: Float.self, capacity: count)
      var digest = StateDigest()
      var done = 0
      slice.values.backend.read(slice.values) { bytes in
        digest.update(bytes, copyingTo: UnsafeMutableRawPointer(target) + done)
        done += bytes.count
      }
      digests.append(digest.value)
      offset += Self.bytes(slice)
      return Slice(
        key: slice.key, shape: slice.shape, values: UnsafeMutableBufferPointer(start: target, count: count))
    }
    let trained = zip(slices, digests).compactMap { $0.isTrained ? $1 : nil }
    return (copies, combined(digests), trained.isEmpty ? nil : combined(trained))
  }

  /// The digest of copies that ``take(_:)`` gave, as they are now.
  static func digest(_ slices: [Slice]) -> UInt64 {
    combined(
      slices.map {
        var digest = StateDigest()
        digest.update(UnsafeRawBufferPointer($0.values))
        return digest.value
      })
  }
}

private func combined(_ digests: [UInt64]) -> UInt64 { digests.reduce(0) { $0 &* 31 &+ $1 } }
