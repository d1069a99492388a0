/// The element types of a tensor.
package enum DType: Sendable, Equatable {
  case float32, int32, bfloat16

  /// Bytes of one element.
  package var size: Int { self == .bfloat16 ? 2 : 4 }
}

/// A block of memory that a backend lent out, and that returns there when its last tensor is gone; or one that
/// belongs to something else, such as a mapped file, and is only read.
package final class Storage {
  package let backend: any Backend
  /// Where the elements lie, for backends on the host; nil where only shapes are computed.
  package let address: UnsafeMutableRawPointer?
  package let byteCount: Int

  /// Whoever the memory belongs to, kept alive; nil when it is the backend.
  package let owner: AnyObject?

  /// Memory that `backend` lent out.
  package init(backend: any Backend, address: UnsafeMutableRawPointer?, byteCount: Int) {
    self.backend = backend
    self.address = address
    self.byteCount = byteCount
    owner = nil
  }

  /// Host memory that belongs to `owner`, for reading alone.
  package init(backend: any Backend, borrowed address: UnsafeMutableRawPointer, byteCount: Int, owner: AnyObject) {
    self.backend = backend
    self.address = address
    self.byteCount = byteCount
    self.owner = owner
  }

  deinit {
    if owner == nil { backend.release(address, byteCount: byteCount) }
  }
}
