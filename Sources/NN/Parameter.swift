import Foundation
import Tensors

/// How a parameter that no file gives begins.
package enum Initialization: Sendable, Equatable {
  case zeros
  case ones
  /// Gaussian of this standard deviation.
  case normal(Float)
  /// One in the last of `taps` places of every row of taps: a convolution that passes its input on.
  case identityTap(taps: Int)
  /// log of a decay rate, uniform in (0, 16) (RECIPE section 5).
  case logDecay
  /// Inverse softplus of a step size, log-uniform in [1e-3, 0.1] with floor 1e-4.
  case timeStepBias
}

/// One named array of a model.
package final class Parameter {
  /// Hugging Face's name.
  package let name: String
  package let shape: [Int]
  package let initialization: Initialization
  /// Whether only products and look-ups read it: a matrix that may stay bfloat16 in a file, and that weight decay applies
  /// to.
  package let isMatrix: Bool
  /// The values; a slot is attached while the parameter trains. Reading it before it was loaded is a mistake.
  package var value: Tensor {
    get {
      guard let stored else { preconditionFailure("\(name) was read before it had a value") }
      return stored
    }
    set {
      precondition(newValue.count == count, "\(name) \(shape) cannot take a value of shape \(newValue.shape)")
      stored = newValue
      home = .elsewhere
    }
  }
  private var stored: Tensor?

  /// Where the values lie.
  package enum Home: Sendable {
    /// In a mapped file, or where another model has them too: they must not be written to.
    case elsewhere
    /// In float32 memory of this parameter alone.
    case own
    /// In an arena, with the other parameters that train.
    case arena
  }
  package private(set) var home = Home.elsewhere

  fileprivate init(name: String, shape: [Int], initialization: Initialization, isMatrix: Bool) {
    self.name = name
    self.shape = shape
    self.initialization = initialization
    self.isMatrix = isMatrix
  }

  package var count: Int { shape.reduce(1, *) }
  package var hasValue: Bool { stored != nil }
  package var isTrained: Bool { stored?.slot != nil }

  /// Gives the parameter float32 values of its own, a copy of those it has: what it shares with a file or another
  /// model must not change with it, and what left its arena must not keep that alive.
  package func own(on backend: any Backend) {
    guard home != .own else { return }
    let copy = backend.empty(shape)
    backend.copy(value, into: copy)
    value = copy
    home = .own
  }

  /// Moves the values to `place`, a part of an arena.
  func move(to place: Tensor) {
    if hasValue { place.backend.copy(value, into: place) }
    lie(at: place)
  }

  /// Says that the values lie at `place`, a part of an arena, where somebody has put them.
  func lie(at place: Tensor) {
    value = place
    home = .arena
  }

  /// Gives the parameter a place for its gradient: it trains from now on.
  func attach(_ slot: GradientSlot) { stored?.slot = slot }

  /// Lets go of the gradient: the parameter does not train any more.
  func rest() { stored?.slot = nil }

  /// Replaces some of the values, which must be the parameter's own.
  package func set(_ elements: Range<Int>, to values: UnsafeBufferPointer<Float>) {
    precondition(home != .elsewhere, "\(name) would be written to where others read it")
    precondition(elements.upperBound <= count, "elements \(elements) of \(name) \(shape)")
    value.detached.elements(elements).upload(values)
  }

  /// The initial values, a pure function of the seed and the name: no matter in which order, or on which rank.
  package func initialValues(seed: UInt64) -> [Float] {
    var random = RandomStream(seed: seed, name: name)
    switch initialization {
    case .zeros: return [Float](repeating: 0, count: count)
    case .ones: return [Float](repeating: 1, count: count)
    case .normal(let deviation): return (0..<count).map { _ in random.gaussian() * deviation }
    case .identityTap(let taps): return (0..<count).map { $0 % taps == taps - 1 ? 1 : 0 }
    case .logDecay: return (0..<count).map { _ in log(max(random.uniform() * 16, 1e-4)) }
    case .timeStepBias:
      return (0..<count).map { _ in
        let step = max(exp(random.uniform() * (log(0.1) - log(1e-3)) + log(1e-3)), 1e-4)
        return step + log(-expm1(-step))
      }
    }
  }
}

/// All parameters of a model, in the order of their creation.
package final class ParameterStore {
  package private(set) var parameters: [Parameter] = []
  private var index: [String: Parameter] = [:]

  package init() {}

  package subscript(name: String) -> Parameter? { index[name] }

  /// Elements in all.
  package var count: Int { parameters.reduce(0) { $0 + $1.count } }

  fileprivate func add(_ parameter: Parameter) {
    precondition(index[parameter.name] == nil, "parameter \(parameter.name) exists twice")
    index[parameter.name] = parameter
    parameters.append(parameter)
  }
}

/// A place in a model's tree of names.
package struct ParameterScope {
  package let store: ParameterStore
  /// Standard deviation of matrices that begin at random (`initializer_range`).
  package let deviation: Float
  private let path: String

  /// The scope at `path` of `store`.
  package init(_ store: ParameterStore, path: String = "", deviation: Float = 0.02) {
    self.store = store
    self.path = path
    self.deviation = deviation
  }

  /// The scope below this one, named `name`.
  package func scope(_ name: String) -> ParameterScope {
    ParameterScope(store, path: qualified(name), deviation: deviation)
  }

  /// Creates the parameter `name` here. Two-dimensional ones named `weight` are matrices; other names, such as RWKV's
  /// `r_k`, are read element by element whatever their shape.
  package func parameter(_ name: String, _ shape: [Int], _ initialization: Initialization) -> Parameter {
    let parameter = Parameter(
      name: qualified(name), shape: shape, initialization: initialization,
      isMatrix: shape.count == 2 && name == "weight")
    store.add(parameter)
    return parameter
  }

  private func qualified(_ name: String) -> String { path.isEmpty ? name : path + "." + name }
}
