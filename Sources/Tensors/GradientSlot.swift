/// Where the gradient of one tensor gathers during backward.
///
/// The first contribution overwrites and later ones add, so that nothing needs to be zeroed.
package final class GradientSlot {
  private let shape: [Int]
  private let dtype: DType
  private let backend: any Backend
  /// Gives a fixed place for the gradient: of a parameter in the gradient arena, of columns in the gradient of all.
  private let place: (() -> Tensor)?
  /// The sum of the contributions so far; nil before the first.
  package private(set) var gradient: Tensor?
  /// Whether `gradient` is a tensor that another slot may hold too.
  private var isShared = false
  /// What ``room()`` gave last, which nobody else holds.
  private var lent: Tensor?
  /// Makes the tensor again, where nobody keeps its values: set by the tape.
  var recipe: Recipe?

  /// - Parameter place: Where the gradient shall lie, asked for when there is one; a fresh tensor when nil.
  package init(shape: [Int], dtype: DType = .float32, backend: any Backend, place: (() -> Tensor)? = nil) {
    (self.shape, self.dtype, self.backend, self.place) = (shape, dtype, backend, place)
  }

  /// A slot whose gradient shall lie in `home`.
  package convenience init(shape: [Int], backend: any Backend, home: Tensor) {
    self.init(shape: shape, dtype: home.dtype, backend: backend) { home }
  }

  /// A slot for the gradient of `x`, of the same type.
  package convenience init(_ x: Tensor) { self.init(shape: x.shape, dtype: x.dtype, backend: x.backend) }

  /// Room for a contribution that overwrites: the gradient's own place where it is the first. What was written there is
  /// handed to ``accumulate(_:)-(Tensor)``.
  package func room() -> Tensor {
    let room = gradient == nil ? place?() ?? backend.empty(shape, dtype) : backend.empty(shape, dtype)
    lent = room
    return room
  }

  /// Lets `contribute` write (`adds == false`) or add (`adds == true`) to the gradient.
  package func accumulate(_ contribute: (_ destination: Tensor, _ adds: Bool) -> Void) {
    if let shared = gradient, isShared {
      let own = backend.empty(shape, dtype)
      backend.copy(shared, into: own)
      gradient = own
      isShared = false
    }
    if let gradient {
      contribute(gradient, true)
    } else {
      let fresh = place?() ?? backend.empty(shape, dtype)
      contribute(fresh, false)
      gradient = fresh
    }
  }

  /// Lets `contribute` write the sum of `base`, which may be `destination` itself, and its own.
  package func write(onto contribute: (_ destination: Tensor, _ base: Tensor?) -> Void) {
    let destination: Tensor
    if let gradient, !isShared {
      destination = gradient
    } else {
      destination = (gradient == nil ? place?() : nil) ?? backend.empty(shape, dtype)
    }
    contribute(destination, gradient)
    gradient = destination
    isShared = false
  }

  /// Adds `contribution`; keeps it as it is when it is the first and there is no fixed place, or it is there already.
  package func accumulate(_ contribution: Tensor) {
    let isLent = lent.map { $0.storage === contribution.storage && $0.offset == contribution.offset } ?? false
    lent = nil
    if gradient == nil && (place == nil || isLent) {
      gradient = contribution.detached.reshaped(shape)
      isShared = !isLent
    } else {
      accumulate { destination, adds in
        if adds {
          backend.add(contribution, scale: 1, into: destination)
        } else {
          backend.copy(contribution, into: destination)
        }
      }
    }
  }

  /// Takes the gradient out, so that its memory goes as soon as the caller is done with it.
  package func take() -> Tensor? {
    defer { gradient = nil }
    return gradient
  }
}
