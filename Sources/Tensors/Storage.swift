/// The element types of a tensor; float64 is that of sums alone.
package enum DType: Sendable, Equatable {
  case float32, int32, bfloat16, float64

  /// Bytes of one element.
  package var size: Int {
    switch self {
    case .bfloat16: 2
    case .float32, .int32: 4
    case .float64: 8
    }
  }
}

/// A block of a backend's memory, which returns there when its last tensor is gone. Only the backend knows where it
/// lies; everyone else has ``Memory``'s copies.
package protocol Storage: AnyObject {
  var backend: any Backend { get }
  var byteCount: Int { get }
}
