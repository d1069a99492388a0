import CUDA
import Foundation
import Tensors

/// Pinned host memory through which copies pass, so that neither side waits for the other.
final class Staging {
  /// A block, and when the card is done with it.
  final class Block {
    let buffer: PinnedBuffer
    let event: CUDA.Event
    var isUsed = false

    init(_ device: Device, byteCount: Int) throws {
      buffer = try PinnedBuffer(device, byteCount: byteCount)
      event = try CUDA.Event(device, isTimed: false)
    }
  }

  static let small = 64 << 10
  static let large = 16 << 20
  private let device: Device
  private var smallBlocks: [Block] = []
  private var largeBlocks: [Block] = []
  private var turn = (small: 0, large: 0)
  private var spare: [Block] = []

  init(_ device: Device) throws { self.device = device }

  /// A block for an upload of so many bytes, which the card has read before.
  func upload(_ byteCount: Int) throws -> Block {
    func next(_ blocks: inout [Block], _ turn: inout Int, count: Int, size: Int) throws -> Block {
      turn = (turn + 1) % count
      if blocks.count < count {
        let block = try Block(device, byteCount: size)
        blocks.append(block)
        turn = blocks.count - 1
        return block
      }
      let block = blocks[turn]
      if block.isUsed { try block.event.synchronize() }
      return block
    }
    return byteCount <= Self.small
      ? try next(&smallBlocks, &turn.small, count: 64, size: Self.small)
      : try next(&largeBlocks, &turn.large, count: 4, size: Self.large)
  }

  /// A small block for a download, which comes back by ``giveBack(_:)``.
  func download() throws -> Block { try spare.popLast() ?? Block(device, byteCount: Self.small) }

  func giveBack(_ block: Block) { spare.append(block) }
}

/// A place in a backend's stream.
final class DeviceEvent: Tensors.Event {
  private let backend: CUDABackend
  let event: CUDA.Event

  init(_ backend: CUDABackend) throws {
    (self.backend, event) = (backend, try CUDA.Event(backend.device, isTimed: false))
    try event.record()
  }

  var isDone: Bool { backend.must { try event.isDone() } }

  func wait() {
    backend.must {
      try backend.device.makeCurrent()
      try event.synchronize()
    }
  }
}

/// A copy to the host that is whole once somebody has waited.
private final class Download: Tensors.Event {
  private let backend: CUDABackend
  private let target: UnsafeMutableRawBufferPointer
  private var block: Staging.Block?

  init(_ backend: CUDABackend, _ block: Staging.Block, _ target: UnsafeMutableRawBufferPointer) {
    (self.backend, self.block, self.target) = (backend, block, target)
  }

  var isDone: Bool { block == nil }

  func wait() {
    guard let block else { return }
    backend.must { try block.event.synchronize() }
    target.copyMemory(from: UnsafeRawBufferPointer(rebasing: block.buffer.bytes[..<target.count]))
    backend.staging.giveBack(block)
    self.block = nil
  }
}

extension CUDABackend {
  package var liveBytes: Int { memory.liveBytes }
  package var peakBytes: Int { memory.peakBytes }
  package func trim() {
    must {
      try device.synchronize()
      memory.trim()
    }
  }

  package func allocate(byteCount: Int) -> any Storage {
    let address = must { try memory.take(byteCount) }
    if poisonsNewTensors { must { try device.fill(address, byte: 0xff, byteCount: byteCount) } }
    return DeviceStorage(self, address, byteCount: byteCount)
  }

  package func upload(_ bytes: UnsafeRawBufferPointer, into x: Tensor) -> any Tensors.Event {
    require(bytes.count == x.count * x.dtype.size, "\(bytes.count) bytes into \(x.dtype) of shape \(x.shape)")
    require(!isRecording, "an upload in recorded work would be repeated from memory that others have by then")
    let target = x.deviceView.address
    must {
      try device.makeCurrent()
      for first in stride(from: 0, to: bytes.count, by: Staging.large) {
        let part = UnsafeRawBufferPointer(rebasing: bytes[first..<min(first + Staging.large, bytes.count)])
        let block = try staging.upload(part.count)
        let staged = UnsafeMutableRawBufferPointer(rebasing: block.buffer.bytes[..<part.count])
        staged.copyMemory(from: part)
        try device.copy(from: UnsafeRawBufferPointer(staged), to: target + UInt64(first))
        try block.event.record()
        block.isUsed = true
      }
    }
    // The source was read whole.
    return PassedEvent()
  }

  package func download(_ x: Tensor, into bytes: UnsafeMutableRawBufferPointer) -> any Tensors.Event {
    require(bytes.count == x.count * x.dtype.size, "\(x.dtype) of shape \(x.shape) into \(bytes.count) bytes")
    guard bytes.count > 0 else { return PassedEvent() }
    require(!isRecording, "recorded work waits for nothing")
    return must {
      try device.makeCurrent()
      let source = x.deviceView.address
      if bytes.count <= Staging.small {
        let block = try staging.download()
        try device.copy(
          from: source, to: UnsafeMutableRawBufferPointer(rebasing: block.buffer.bytes[..<bytes.count]))
        try block.event.record()
        return Download(self, block, bytes)
      }
      // Long copies: one piece arrives while the one before is taken out.
      var arriving: (block: Staging.Block, place: Range<Int>)?
      func take() throws {
        guard let (block, place) = arriving else { return }
        try block.event.synchronize()
        UnsafeMutableRawBufferPointer(rebasing: bytes[place]).copyMemory(
          from: UnsafeRawBufferPointer(rebasing: block.buffer.bytes[..<place.count]))
        arriving = nil
      }
      for first in stride(from: 0, to: bytes.count, by: Staging.large) {
        let place = first..<min(first + Staging.large, bytes.count)
        let block = try staging.upload(Staging.large)
        try device.copy(
          from: source + UInt64(first),
          to: UnsafeMutableRawBufferPointer(rebasing: block.buffer.bytes[..<place.count]))
        try block.event.record()
        block.isUsed = true
        try take()
        arriving = (block, place)
      }
      try take()
      return PassedEvent()
    }
  }

  /// In pieces as they lie in pinned memory: one arrives while `body` has the one before.
  package func read(_ x: Tensor, _ body: (UnsafeRawBufferPointer) throws -> Void) rethrows {
    let (source, count) = (x.deviceView.address, x.deviceView.byteCount)
    func fetch(_ first: Int) -> (block: Staging.Block, bytes: UnsafeRawBufferPointer)? {
      guard first < count else { return nil }
      return must {
        try device.makeCurrent()
        let block = try staging.upload(Staging.large)
        let bytes = UnsafeMutableRawBufferPointer(rebasing: block.buffer.bytes[..<min(Staging.large, count - first)])
        try device.copy(from: source + UInt64(first), to: bytes)
        try block.event.record()
        block.isUsed = true
        return (block, UnsafeRawBufferPointer(bytes))
      }
    }
    var next = fetch(0)
    var first = 0
    while let (block, bytes) = next {
      first += Staging.large
      next = fetch(first)
      must { try block.event.synchronize() }
      try body(bytes)
    }
  }

  /// Where the elements of `x` lie on the card.
  package func address(of x: Tensor) -> UInt64 { x.deviceView.address }

  package func mark() -> any Tensors.Event {
    must {
      try device.makeCurrent()
      return try DeviceEvent(self)
    }
  }

  package func hold(until event: any Tensors.Event) {
    guard let event = event as? DeviceEvent else { return event.wait() }
    must {
      try device.makeCurrent()
      try device.stream.wait(for: event.event)
    }
  }
}
