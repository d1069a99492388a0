/// Where the elements of tensors live: on this host or on a device with memory of its own.
///
/// Kernels and copies take place in the order in which they were asked for. Copies between host and device may return
/// before they are done: their host memory must stay until their event has passed.
package protocol Memory: AnyObject {
  /// Bytes lent out now.
  var liveBytes: Int { get }
  /// The most bytes ever lent out at once.
  var peakBytes: Int { get }

  /// Memory of undefined content.
  func allocate(byteCount: Int) -> any Storage

  /// Gives back to the system what was released and kept for later.
  func trim()

  /// The elements of a source that lie in host memory for as long as `owner` lives, such as a mapped file: read where
  /// they are by a backend on the host, copied by others. Nobody writes to them.
  func borrow(_ bytes: UnsafeRawBufferPointer, shape: [Int], dtype: DType, owner: AnyObject) -> Tensor

  /// x = the elements at `bytes`, as many bytes as x has.
  func upload(_ bytes: UnsafeRawBufferPointer, into x: Tensor) -> any Event

  /// The bytes at `bytes` = the elements of x, as many as x has.
  func download(_ x: Tensor, into bytes: UnsafeMutableRawBufferPointer) -> any Event

  /// Hands the bytes of x to `body` in order, whole or in pieces: what hashes, digests and files read.
  func read(_ x: Tensor, _ body: (UnsafeRawBufferPointer) throws -> Void) rethrows

  /// Hands the bytes of all `tensors`, as they are when the work so far is done, to `body` with the tensor's index: those of one
  /// in order, those of several side by side on threads of the backend's own, where it has such. The tensors must not change
  /// until the event has passed, for which any thread may wait.
  func readAside(_ tensors: [Tensor], _ body: @escaping @Sendable (Int, UnsafeRawBufferPointer) -> Void) -> any Event

  /// Passes when everything that was asked for so far is done.
  func mark() -> any Event

  /// What is asked for from here on begins when `event` has passed; returns at once where the device can wait by itself.
  func hold(until event: any Event)
}

/// A point in the work of a backend.
package protocol Event: AnyObject {
  var isDone: Bool { get }
  /// Returns when the event has passed.
  func wait()
}

/// The event of backends that are done when they return.
package final class PassedEvent: Event {
  package init() {}
  package var isDone: Bool { true }
  package func wait() {}
}

extension Memory {
  /// A tensor with undefined elements.
  package func empty(_ shape: [Int], _ dtype: DType = .float32) -> Tensor {
    Tensor(storage: allocate(byteCount: max(1, shape.reduce(1, *)) * dtype.size), shape: shape, dtype: dtype)
  }

  /// A tensor with undefined elements, of the shape and type of `x`: results are of the type of what they are made of.
  package func empty(like x: Tensor) -> Tensor { empty(x.shape, x.dtype) }

  /// A copy, for a device that cannot read the bytes where they are.
  package func borrow(_ bytes: UnsafeRawBufferPointer, shape: [Int], dtype: DType, owner: AnyObject) -> Tensor {
    let tensor = empty(shape, dtype)
    withExtendedLifetime(owner) { upload(bytes, into: tensor).wait() }
    return tensor
  }

  /// By downloads into a buffer of 4 MiB.
  package func read(_ x: Tensor, _ body: (UnsafeRawBufferPointer) throws -> Void) rethrows {
    let flat = x.reshaped([x.count])
    let piece = (4 << 20) / x.dtype.size
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: min(piece, x.count) * x.dtype.size, alignment: 64)
    defer { buffer.deallocate() }
    for first in stride(from: 0, to: x.count, by: piece) {
      let part = flat.rows(first..<min(first + piece, x.count))
      let bytes = UnsafeMutableRawBufferPointer(rebasing: buffer[..<(part.count * x.dtype.size)])
      download(part, into: bytes).wait()
      try body(UnsafeRawBufferPointer(bytes))
    }
  }

  /// At once, one by one.
  package func readAside(
    _ tensors: [Tensor], _ body: @escaping @Sendable (Int, UnsafeRawBufferPointer) -> Void
  ) -> any Event {
    for (index, tensor) in tensors.enumerated() { read(tensor) { body(index, $0) } }
    return PassedEvent()
  }

  package func trim() {}

  package func mark() -> any Event { PassedEvent() }

  package func hold(until event: any Event) { event.wait() }
}
