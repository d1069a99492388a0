import Tensors

/// Memory of this process: lent out by a backend on the host, or borrowed, for reading alone, from whoever owns it.
final class HostStorage: Storage {
  private let host: CPUBackend
  let address: UnsafeMutableRawPointer
  let byteCount: Int
  /// Whoever the memory belongs to, kept alive; nil when it is the backend.
  private let owner: AnyObject?

  var backend: any Backend { host }

  init(_ host: CPUBackend, _ address: UnsafeMutableRawPointer, byteCount: Int, owner: AnyObject?) {
    self.host = host
    self.address = address
    self.byteCount = byteCount
    self.owner = owner
  }

  deinit {
    if owner == nil { host.release(address, byteCount: byteCount) }
  }
}

extension CPUBackend {
  package func borrow(_ bytes: UnsafeRawBufferPointer, shape: [Int], dtype: DType, owner: AnyObject) -> Tensor {
    guard let base = bytes.baseAddress else { preconditionFailure("nothing to borrow for shape \(shape)") }
    let storage = HostStorage(self, UnsafeMutableRawPointer(mutating: base), byteCount: bytes.count, owner: owner)
    return Tensor(storage: storage, shape: shape, dtype: dtype)
  }

  package func upload(_ bytes: UnsafeRawBufferPointer, into x: Tensor) -> any Event {
    precondition(bytes.count == x.count * x.dtype.size, "\(bytes.count) bytes into \(x.dtype) of shape \(x.shape)")
    if let base = bytes.baseAddress { x.hostAddress.copyMemory(from: base, byteCount: bytes.count) }
    return PassedEvent()
  }

  package func download(_ x: Tensor, into bytes: UnsafeMutableRawBufferPointer) -> any Event {
    precondition(bytes.count == x.count * x.dtype.size, "\(x.dtype) of shape \(x.shape) into \(bytes.count) bytes")
    bytes.baseAddress?.copyMemory(from: x.hostAddress, byteCount: bytes.count)
    return PassedEvent()
  }

  package func read(_ x: Tensor, _ body: (UnsafeRawBufferPointer) throws -> Void) rethrows {
    try withExtendedLifetime(x) {
      try body(UnsafeRawBufferPointer(start: x.hostAddress, count: x.count * x.dtype.size))
    }
  }
}

/// Elements in host memory: of tensors of a backend on the host alone.
extension Tensor {
  /// The elements of a float32 tensor.
  package var floats: UnsafeMutablePointer<Float> {
    precondition(isDense, "a view of columns, shape \(shape), where rows must lie one behind the other")
    return floatsOfColumns
  }

  /// The elements of a float32 tensor whose rows may lie apart.
  var floatsOfColumns: UnsafeMutablePointer<Float> {
    precondition(dtype == .float32, "expected float32, got \(dtype)")
    return hostAddress.assumingMemoryBound(to: Float.self)
  }

  /// The elements of an int32 tensor.
  package var integers: UnsafeMutablePointer<Int32> {
    precondition(dtype == .int32, "expected int32, got \(dtype)")
    return hostAddress.assumingMemoryBound(to: Int32.self)
  }

  /// The elements of a float64 tensor.
  package var doubles: UnsafeMutablePointer<Double> {
    precondition(dtype == .float64, "expected float64, got \(dtype)")
    return hostAddress.assumingMemoryBound(to: Double.self)
  }

  /// The elements of a bfloat16 tensor, as the upper halves of float32.
  package var bfloats: UnsafeMutablePointer<UInt16> {
    precondition(dtype == .bfloat16, "expected bfloat16, got \(dtype)")
    return hostAddress.assumingMemoryBound(to: UInt16.self)
  }

  /// Where the first element lies.
  fileprivate var hostAddress: UnsafeMutableRawPointer {
    // As `as!`, which asks the runtime about protocols and takes as long as a small kernel.
    precondition(type(of: storage) == HostStorage.self, "a tensor of another backend")
    return unsafeDowncast(storage, to: HostStorage.self).address + offset * dtype.size
  }
}
