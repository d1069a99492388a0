import Tensors

/// The oracle of all backends: the core in the most obvious way, in double precision, one element after the other; all
/// else by the compositions. Its tensors hold doubles, whatever their type says, which nobody else can address: what
/// tests compare with, and take finite differences of.
///
/// Its copies are as late as a device's may be: what is downloaded arrives when somebody waits for it, and a source must
/// be as it was until then.
package final class ReferenceBackend: Backend {
  package var tape: Tape?
  package private(set) var liveBytes = 0
  package private(set) var peakBytes = 0
  package private(set) var operations = 0.0
  /// How often elements came from the host.
  package private(set) var uploads = 0
  /// How often elements were asked for by the host.
  package private(set) var downloads = 0
  package var deviceDescription: String { "reference" }
  package var kernelIdentity: String { "reference" }
  package func companion() -> any Backend { ReferenceBackend(roundsToSingle: roundsToSingle) }

  /// Whether every element is rounded to float32 when it is written: what the compositions are worth on a device.
  private let roundsToSingle: Bool

  package init(roundsToSingle: Bool = false) { self.roundsToSingle = roundsToSingle }

  // MARK: - Memory

  private final class Values: Storage {
    let owner: ReferenceBackend
    let byteCount: Int
    /// One for every element that could be there; NaN until it is written.
    let elements: UnsafeMutableBufferPointer<Double>
    var backend: any Backend { owner }

    init(_ owner: ReferenceBackend, byteCount: Int) {
      (self.owner, self.byteCount) = (owner, byteCount)
      elements = .allocate(capacity: byteCount / 2)
      elements.initialize(repeating: .nan)
    }

    deinit {
      elements.deallocate()
      owner.liveBytes -= byteCount
    }
  }

  /// The elements of a tensor; those beside it are out of reach.
  struct View {
    private let start: UnsafeMutablePointer<Double>
    let count: Int
    private let rounds: Bool

    init(_ start: UnsafeMutablePointer<Double>, count: Int, rounds: Bool) {
      (self.start, self.count, self.rounds) = (start, count, rounds)
    }

    subscript(index: Int) -> Double {
      get {
        precondition(index >= 0 && index < count, "element \(index) of \(count)")
        return start[index]
      }
      nonmutating set {
        precondition(index >= 0 && index < count, "element \(index) of \(count)")
        start[index] = rounds ? Double(Float(newValue)) : newValue
      }
    }

    var array: [Double] { (0..<count).map { self[$0] } }
  }

  func view(_ x: Tensor) -> View {
    guard let values = x.storage as? Values else { preconditionFailure("a tensor of another backend") }
    return View(
      values.elements.baseAddress! + x.offset, count: x.count, rounds: roundsToSingle && x.dtype != .float64)
  }

  package func allocate(byteCount: Int) -> any Storage {
    liveBytes += byteCount
    peakBytes = max(peakBytes, liveBytes)
    return Values(self, byteCount: byteCount)
  }

  package func upload(_ bytes: UnsafeRawBufferPointer, into x: Tensor) -> any Event {
    uploads += 1
    let values = view(x)
    precondition(bytes.count == x.count * x.dtype.size, "\(bytes.count) bytes into \(x.dtype) of shape \(x.shape)")
    let before = Array(bytes)
    for i in 0..<x.count {
      let at = i * x.dtype.size
      values[i] =
        switch x.dtype {
        case .float32: Double(bytes.loadUnaligned(fromByteOffset: at, as: Float.self))
        case .int32: Double(bytes.loadUnaligned(fromByteOffset: at, as: Int32.self))
        case .float64: bytes.loadUnaligned(fromByteOffset: at, as: Double.self)
        case .bfloat16:
          Double(Float(bitPattern: UInt32(bytes.loadUnaligned(fromByteOffset: at, as: UInt16.self)) << 16))
        }
    }
    return LateEvent { precondition(bytes.elementsEqual(before), "the source of an upload changed before it was done") }
  }

  package func download(_ x: Tensor, into bytes: UnsafeMutableRawBufferPointer) -> any Event {
    downloads += 1
    let values = view(x).array
    let (type, size) = (x.dtype, x.dtype.size)
    precondition(bytes.count == values.count * size, "\(type) of shape \(x.shape) into \(bytes.count) bytes")
    bytes.initializeMemory(as: UInt8.self, repeating: 0xFF)
    return LateEvent {
      for (i, value) in values.enumerated() {
        switch type {
        case .float32: bytes.storeBytes(of: Float(value), toByteOffset: i * size, as: Float.self)
        case .int32: bytes.storeBytes(of: Int32(value), toByteOffset: i * size, as: Int32.self)
        case .float64: bytes.storeBytes(of: value, toByteOffset: i * size, as: Double.self)
        case .bfloat16:
          bytes.storeBytes(of: UInt16(Float(value).bitPattern >> 16), toByteOffset: i * size, as: UInt16.self)
        }
      }
    }
  }

  /// A copy that is done when somebody waits for it.
  private final class LateEvent: Event {
    private var finish: (() -> Void)?
    var isDone: Bool { finish == nil }

    init(_ finish: @escaping () -> Void) { self.finish = finish }

    func wait() {
      finish?()
      finish = nil
    }

    deinit { precondition(isDone, "nobody waited for a copy: its memory may be gone before it is done") }
  }

  /// A tensor with these elements, not rounded: finite differences need steps that float32 does not have.
  package func tensor(doubles: [Double], _ shape: [Int]) -> Tensor {
    let tensor = empty(shape)
    let values = view(tensor)
    precondition(doubles.count == tensor.count, "\(doubles.count) values for shape \(shape)")
    for (index, value) in doubles.enumerated() { values[index] = value }
    return tensor
  }

  /// The elements of x, not rounded.
  package func doubles(_ x: Tensor) -> [Double] { view(x).array }

  func count(_ operations: Int) { self.operations += Double(operations) }
}
