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
  package let kind: ParameterKind
  /// Where in the model it is, and what it is frozen with.
  package let part: ModelPart
  package let group: ParameterGroup
  /// The parameters that it lies among; nil where it is read by itself.
  package fileprivate(set) weak var pack: ParameterPack?
  package var isMatrix: Bool { kind == .matrix }
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

  fileprivate init(
    name: String, shape: [Int], initialization: Initialization, kind: ParameterKind, part: ModelPart,
    group: ParameterGroup
  ) {
    self.name = name
    self.shape = shape
    self.initialization = initialization
    (self.kind, self.part, self.group) = (kind, part, group)
  }

  package var count: Int { shape.reduce(1, *) }
  package var hasValue: Bool { stored != nil }
  package var isTrained: Bool { stored?.slot != nil }

  /// Gives the parameter float32 values of its own, a copy of those it has: what it shares with a file or another
  /// model must not change with it, and what left its arena must not keep that alive. Its pack comes along.
  package func own(on backend: any Backend) {
    guard home != .own else { return }
    let parameters = pack?.parameters ?? [self]
    let copy = backend.empty([parameters.reduce(0) { $0 + $1.count }])
    var first = 0
    for parameter in parameters {
      let place = copy.rows(first..<first + parameter.count).reshaped(parameter.shape)
      backend.copy(parameter.value, into: place)
      parameter.value = place
      parameter.home = .own
      first += parameter.count
    }
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

/// Parameters that are read as one array, their rows one behind the other in the order of their creation. Where they lie in
/// memory of their own, or in an arena, they are neighbours; in a file they lie where it has them. Files, checkpoints and
/// initial values know them one by one.
package final class ParameterPack {
  package private(set) var parameters: [Parameter] = []

  package init() {}

  fileprivate func add(_ parameter: Parameter) {
    precondition(
      parameters.first.map { $0.shape.dropFirst() == parameter.shape.dropFirst() && $0.kind == parameter.kind } ?? true,
      "\(parameter.name) \(parameter.shape) in a pack with \(parameters.first?.name ?? "")")
    parameters.append(parameter)
    parameter.pack = self
  }

  /// The values in as few arrays as they lie in: one, unless they are apart in a file, or some train and others do not.
  package var blocks: [Tensor] {
    parameters.reduce(into: []) { blocks, parameter in
      let value = parameter.value
      if let last = blocks.last, let joined = last.joined(by: value) {
        blocks[blocks.count - 1] = joined
      } else {
        blocks.append(value)
      }
    }
  }
}

extension Tensor {
  /// The rows of this tensor and those of `next`, where they are neighbours whose gradients go to one place.
  fileprivate func joined(by next: Tensor) -> Tensor? {
    guard storage === next.storage, offset + count == next.offset, dtype == next.dtype, slot === next.slot,
      shape.dropFirst() == next.shape.dropFirst()
    else { return nil }
    return Tensor(
      storage: storage, offset: offset, shape: [rows + next.rows] + shape.dropFirst(), dtype: dtype, slot: slot)
  }
}

/// A place in a model's tree of names.
package struct ParameterScope {
  package let store: ParameterStore
  /// Standard deviation of matrices that begin at random (`initializer_range`).
  package let deviation: Float
  private let path: String
  /// Of the parameters that are made here.
  private let part: ModelPart
  private let group: ParameterGroup

  /// The scope at `path` of `store`.
  package init(
    _ store: ParameterStore, path: String = "", deviation: Float = 0.02, part: ModelPart = .head,
    group: ParameterGroup = .embeddings
  ) {
    self.store = store
    self.path = path
    self.deviation = deviation
    (self.part, self.group) = (part, group)
  }

  /// The scope below this one, named `name`; of another part or group of the model, where they are given.
  package func scope(_ name: String, part: ModelPart? = nil, group: ParameterGroup? = nil) -> ParameterScope {
    ParameterScope(
      store, path: qualified(name), deviation: deviation, part: part ?? self.part, group: group ?? self.group)
  }

  /// Creates the parameter `name` here, as the next of `pack` if it belongs to one.
  package func parameter(
    _ name: String, _ shape: [Int], _ initialization: Initialization, kind: ParameterKind = .vector,
    in pack: ParameterPack? = nil
  ) -> Parameter {
    let parameter = Parameter(
      name: qualified(name), shape: shape, initialization: initialization, kind: kind, part: part, group: group)
    store.add(parameter)
    pack?.add(parameter)
    return parameter
  }

  private func qualified(_ name: String) -> String { path.isEmpty ? name : path + "." + name }
}
