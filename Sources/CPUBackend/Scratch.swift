import Foundation
import Synchronization

/// Working memory of one slice of a kernel, cut from a single block at a 64-byte boundary; the slice frees it when it is
/// done. Blocks are kept for the next slice, because fresh pages cost more than most slices.
struct Scratch {
  private let block: ScratchBlocks.Block
  private var used = 0

  init(_ capacity: Int) { block = ScratchBlocks.shared.take(capacity) }

  /// The next `count` floats, undefined, at a 64-byte boundary.
  mutating func take(_ count: Int) -> FloatPointer {
    let rounded = Self.rounded(count)
    precondition(used + rounded <= block.capacity, "scratch of \(block.capacity) floats is too small")
    defer { used += rounded }
    return block.start + used
  }

  /// What `count` floats take up.
  static func rounded(_ count: Int) -> Int { (count + 15) / 16 * 16 }

  func free() { ScratchBlocks.shared.put(block) }
}

/// The blocks that no slice has now: as many as slices ran at once.
private final class ScratchBlocks: Sendable {
  struct Block: @unchecked Sendable {
    let start: FloatPointer
    let capacity: Int
  }

  static let shared = ScratchBlocks()

  /// Floats of the smallest block; others are powers of two times it.
  private static let least = 1 << 12

  /// By the logarithm of their size.
  private let spare = Mutex([[Block]](repeating: [], count: Int.bitWidth))

  private static func sizeClass(_ capacity: Int) -> Int {
    Int.bitWidth - ((max(capacity, least) - 1) / least).leadingZeroBitCount
  }

  func take(_ capacity: Int) -> Block {
    let sizeClass = Self.sizeClass(capacity)
    if let block = spare.withLock({ $0[sizeClass].popLast() }) { return block }
    let floats = Self.least << sizeClass
    var memory: UnsafeMutableRawPointer?
    guard posix_memalign(&memory, 64, floats * MemoryLayout<Float>.stride) == 0, let memory else {
      preconditionFailure("out of memory: \(floats) floats of scratch")
    }
    return Block(start: memory.bindMemory(to: Float.self, capacity: floats), capacity: floats)
  }

  func put(_ block: Block) {
    let sizeClass = Self.sizeClass(block.capacity)
    spare.withLock { $0[sizeClass].append(block) }
  }
}
