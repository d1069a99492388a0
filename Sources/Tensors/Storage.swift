/// The element types of a tensor.
package enum DType: Sendable, Equatable {
  case float32, int32, bfloat16

  /// Bytes of one element.
  package var size: Int { self == .bfloat16 ? 2 : 4 }
}

/// A block of memory that a backend lent out; it returns there when its last tensor is gone.
package final class Storage {
  package let backend: any Backend
  /// Where the elements lie, for backends on the host; nil where only shapes are computed.
  package let address: UnsafeMutableRawPointer?
  package let byteCount: Int

  package init(backend: any Backend, address: UnsafeMutableRawPointer?, byteCount: Int) {
    self.backend = backend
    self.address = address
    self.byteCount = byteCount
  }

  deinit { backend.release(address, byteCount: byteCount) }
}
