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
      digests.append(Checkpointing.digest(slice.values.floats, count, copyingTo: target))
      offset += Self.bytes(slice)
      return Slice(
        key: slice.key, shape: slice.shape, values: UnsafeMutableBufferPointer(start: target, count: count))
    }
    let trained = zip(slices, digests).compactMap { $0.isTrained ? $1 : nil }
    return (copies, combined(digests), trained.isEmpty ? nil : combined(trained))
  }

  /// The digest of copies that ``take(_:)`` gave, as they are now.
  static func digest(_ slices: [Slice]) -> UInt64 {
    combined(slices.map { Checkpointing.digest($0.values.baseAddress!, $0.values.count) })
  }
}

/// A digest of the bytes of a tensor, of any type.
package func digest(_ bytes: UnsafeRawBufferPointer) -> UInt64 {
  guard let address = bytes.baseAddress else { return 0 }
  return digest(address.assumingMemoryBound(to: Float.self), bytes.count / 4)
}

/// A digest of floats, which are copied on the way where there is a target: one pass over memory.
func digest(
  _ source: UnsafePointer<Float>, _ count: Int, copyingTo target: UnsafeMutablePointer<Float>? = nil
) -> UInt64 {
  // Sums of products with odd numbers that change along the way: four words at a time.
  let step = 0x9E37_79B9_7F4A_7C15 as UInt64
  var sums = SIMD4<UInt64>(repeating: 0)
  var factors = SIMD4<UInt64>(step, step &* 3, step &* 5, step &* 7)
  let words = count / 8
  let from = UnsafeRawPointer(source)
  let to = UnsafeMutableRawPointer(target)
  for index in 0..<words {
    let value = from.loadUnaligned(fromByteOffset: index * 32, as: SIMD4<UInt64>.self)
    to?.storeBytes(of: value, toByteOffset: index * 32, as: SIMD4<UInt64>.self)
    sums &+= (value ^ (value &>> 29)) &* factors
    factors &+= SIMD4(repeating: 2 &* step &+ 2)
  }
  var sum = sums[0] &+ sums[1] &* 3 &+ sums[2] &* 5 &+ sums[3] &* 7
  for index in words * 8..<count {
    target?[index] = source[index]
    sum = sum &* 31 &+ UInt64(source[index].bitPattern)
  }
  return sum
}

private func combined(_ digests: [UInt64]) -> UInt64 { digests.reduce(0) { $0 &* 31 &+ $1 } }
