import Foundation
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

  /// A slice as it is copied.
  struct Slice {
    let key: ShardKey
    let shape: [Int]
    let values: UnsafeMutableBufferPointer<Float>
  }

  /// Slices on their way into a buffer.
  struct Copy: @unchecked Sendable {
    let slices: [Slice]
    private let areTrained: [Bool]
    private let digests: Digests
    private let arrival: any Event

    fileprivate init(_ slices: [Slice], areTrained: [Bool], _ digests: Digests, _ arrival: any Event) {
      (self.slices, self.areTrained, self.digests, self.arrival) = (slices, areTrained, digests, arrival)
    }

    /// Returns when all is copied: what was copied may change from then on. Any thread may wait.
    func wait() { arrival.wait() }

    /// A digest of all copies; they must have arrived.
    var digest: UInt64 { combined(digests.values) }

    /// A digest of those that updates change, nil without any; they must have arrived.
    var trainedDigest: UInt64? {
      let trained = zip(areTrained, digests.values).compactMap { $0 ? $1 : nil }
      return trained.isEmpty ? nil : combined(trained)
    }
  }

  /// Where the slices' digests gather; each is written by one thread at a time.
  fileprivate final class Digests: @unchecked Sendable {
    private let places: UnsafeMutableBufferPointer<(digest: StateDigest, done: Int)>

    init(_ count: Int) {
      places = .allocate(capacity: count)
      places.initialize(repeating: (StateDigest(), 0))
    }
    deinit { places.deallocate() }

    func take(_ index: Int, _ bytes: UnsafeRawBufferPointer, into target: UnsafeMutableRawPointer) {
      places[index].digest.update(bytes, copyingTo: target + places[index].done)
      places[index].done += bytes.count
    }

    var values: [UInt64] { places.map(\.digest.value) }
  }

  /// Memory by large pages, where the system has such: the first save is not held up by millions of small ones.
  private func room(_ bytes: Int) -> UnsafeMutableRawPointer? {
    if memory?.count ?? 0 < bytes {
      memory?.deallocate()
      let page = 2 << 20
      let memory = UnsafeMutableRawBufferPointer.allocate(
        byteCount: (bytes + page - 1) / page * page, alignment: page)
      _ = madvise(memory.baseAddress, memory.count, MADV_HUGEPAGE)
      self.memory = memory
    }
    return memory?.baseAddress
  }

  private static func bytes(_ slice: StateSlice) -> Int { (slice.values.count * 4 + 7) / 8 * 8 }

  /// Begins to copy the slices, which must not change until they have arrived.
  func copy(_ slices: [StateSlice]) -> Copy {
    let start = room(slices.reduce(0) { $0 + Self.bytes($1) })
    var offset = 0
    let copies = slices.map { slice in
      defer { offset += Self.bytes(slice) }
      let target = (start! + offset).bindMemory(to: Float.self, capacity: slice.values.count)
      return Slice(
        key: slice.key, shape: slice.shape,
        values: UnsafeMutableBufferPointer(start: target, count: slice.values.count))
    }
    let digests = Digests(slices.count)
    let targets = Targets(copies)
    let arrival = slices.first?.values.backend.readAside(slices.map(\.values)) { index, bytes in
      digests.take(index, bytes, into: targets.starts[index])
    }
    return Copy(copies, areTrained: slices.map(\.isTrained), digests, arrival ?? PassedEvent())
  }

  private struct Targets: @unchecked Sendable {
    let starts: [UnsafeMutableRawPointer]
    init(_ slices: [Slice]) { starts = slices.map { UnsafeMutableRawPointer($0.values.baseAddress!) } }
  }

  /// The digest of copies, as they are now.
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
