import CPUBackend
import Tensors

/// A backend that a test runs on, over memory that begins as NaN.
package enum TestBackend: Sendable, CustomStringConvertible {
  case cpu(threads: Int)
  case reference
  /// The reference with float32's precision between kernels.
  case singleReference

  /// Those that are held against references: a new device is a line here.
  package static let all: [TestBackend] = [.cpu(threads: 1), .cpu(threads: 2), .reference, .singleReference]
  /// Those whose kernels are held against ``reference``: the fast ones, and the compositions in float32.
  package static let fast: [TestBackend] = [.cpu(threads: 2), .singleReference]

  package func make() -> any Backend {
    switch self {
    case .cpu(let threads):
      let backend = CPUBackend(threads: threads)
      backend.poisonsNewTensors = true
      return backend
    case .reference: return ReferenceBackend()
    case .singleReference: return ReferenceBackend(roundsToSingle: true)
    }
  }

  package var description: String {
    switch self {
    case .cpu(let threads): "CPUBackend, \(threads) threads"
    case .reference: "ReferenceBackend"
    case .singleReference: "ReferenceBackend in float32"
    }
  }
}
