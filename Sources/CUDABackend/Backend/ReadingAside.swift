import CUDA
import Foundation
import Synchronization
import Tensors

/// Copies to the host beside what the card computes: each of several threads takes a tensor after the other through pinned
/// blocks of its own, one of which arrives while the one before is taken out.
final class AsideReader: @unchecked Sendable {
  /// Pinned memory of all threads together, at most; the blocks are what plans count.
  static let blockBytes = 16 << 20
  static let blocks = 3

  static var threads: Int { min(8, max(1, ProcessInfo.processInfo.activeProcessorCount)) }

  /// One thread's stream and blocks, made by that thread at its first use: pinning takes a while.
  private final class Lane: @unchecked Sendable {
    let stream: CUDA.Stream
    let blocks: [(bytes: UnsafeMutableRawBufferPointer, event: CUDA.Event)]
    /// Pinned, or the system's where it does not let so much be pinned.
    private let pinned: [PinnedBuffer]

    init(_ device: Device, says: Said) throws {
      stream = try CUDA.Stream(device)
      var pinned: [PinnedBuffer] = []
      do {
        for _ in 0..<AsideReader.blocks {
          pinned.append(try PinnedBuffer(device, byteCount: AsideReader.blockBytes))
        }
      } catch {
        pinned = []
        if !says.flag.exchange(true, ordering: .relaxed) {
          FileHandle.standardError.write(
            Data(
              ("jettrain: saves read the card through memory that is not pinned, which is slower: \(error); raise the limit of "
                + "locked memory (ulimit -l)\n").utf8))
        }
      }
      self.pinned = pinned
      let memory =
        pinned.isEmpty
        ? (0..<AsideReader.blocks).map { _ in
          UnsafeMutableRawBufferPointer.allocate(byteCount: AsideReader.blockBytes, alignment: 4096)
        } : pinned.map(\.bytes)
      blocks = try memory.map { ($0, try CUDA.Event(device, isTimed: false)) }
    }

    deinit {
      if pinned.isEmpty { for block in blocks { block.bytes.deallocate() } }
    }
  }

  private let device: Device
  private let lanes: [LazyLane]
  /// Whether it was said that memory cannot be pinned.
  private let hasSaid = Said()

  private final class Said: Sendable { let flag = Atomic(false) }

  /// A lane that one thread at a time asks for.
  private final class LazyLane: @unchecked Sendable {
    private var lane: Lane?

    func get(_ device: Device, _ said: Said) throws -> Lane {
      let made = try lane ?? Lane(device, says: said)
      lane = made
      return made
    }
  }

  init(_ device: Device) {
    self.device = device
    lanes = (0..<Self.threads).map { _ in LazyLane() }
  }

  /// Begins to read `places` once `begin` has passed.
  ///
  /// - Returns: what passes when all is read
  func read(
    _ places: [(address: UInt64, byteCount: Int)], after begin: CUDA.Event,
    fail: @escaping @Sendable (any Error) -> Never,
    _ body: @escaping @Sendable (Int, UnsafeRawBufferPointer) -> Void
  ) -> DispatchGroup {
    let (done, next) = (DispatchGroup(), Counter())
    // The longest first, so that no thread is left alone with one at the end.
    let order = places.indices.sorted { (places[$0].byteCount, $1) > (places[$1].byteCount, $0) }
    for lane in lanes {
      done.enter()
      let thread = Thread { [device, hasSaid] in
        do {
          try device.makeCurrent()
          let lane = try lane.get(device, hasSaid)
          try lane.stream.wait(for: begin)
          while let turn = next.take(below: order.count) {
            try Self.read(places[order[turn]], device, lane) { body(order[turn], $0) }
          }
        } catch { fail(error) }
        done.leave()
      }
      thread.stackSize = 1 << 20
      thread.start()
    }
    return done
  }

  private static func read(
    _ place: (address: UInt64, byteCount: Int), _ device: Device, _ lane: Lane,
    _ body: (UnsafeRawBufferPointer) -> Void
  ) throws {
    let pieces = stride(from: 0, to: place.byteCount, by: blockBytes).map { $0..<min($0 + blockBytes, place.byteCount) }
    func fetch(_ index: Int) throws {
      guard index < pieces.count else { return }
      let (bytes, event) = lane.blocks[index % blocks]
      try device.copy(
        from: place.address + UInt64(pieces[index].lowerBound),
        to: UnsafeMutableRawBufferPointer(rebasing: bytes[..<pieces[index].count]), on: lane.stream)
      try event.record(on: lane.stream)
    }
    for index in 0..<blocks - 1 { try fetch(index) }
    for (index, piece) in pieces.enumerated() {
      try fetch(index + blocks - 1)
      let (bytes, event) = lane.blocks[index % blocks]
      try event.synchronize()
      body(UnsafeRawBufferPointer(rebasing: bytes[..<piece.count]))
    }
  }

  /// Turns that several threads take.
  private final class Counter: Sendable {
    private let count = Atomic(0)
    func take(below limit: Int) -> Int? {
      let turn = count.wrappingAdd(1, ordering: .relaxed).oldValue
      return turn < limit ? turn : nil
    }
  }
}

/// Passes when all threads are done.
private final class AsideEvent: Tensors.Event {
  private let group: DispatchGroup
  init(_ group: DispatchGroup) { self.group = group }
  var isDone: Bool { group.wait(timeout: .now()) == .success }
  func wait() { group.wait() }
}

extension CUDABackend {
  package func readAside(
    _ tensors: [Tensor], _ body: @escaping @Sendable (Int, UnsafeRawBufferPointer) -> Void
  ) -> any Tensors.Event {
    must {
      try device.makeCurrent()
      let reader = asideReader ?? AsideReader(device)
      asideReader = reader
      let begin = try CUDA.Event(device, isTimed: false)
      try begin.record()
      let places = tensors.map { ($0.deviceView.address, $0.deviceView.byteCount) }
      return AsideEvent(reader.read(places, after: begin, fail: Self.end, body))
    }
  }

  /// Bytes of host memory that reading aside pins.
  package static var asideBytes: Int { AsideReader.threads * AsideReader.blocks * AsideReader.blockBytes }
}
