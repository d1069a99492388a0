/// What of a forward pass is computed again by the backward pass, instead of being kept.
package enum Recomputation: String, CaseIterable, Sendable {
  case none
  /// What costs little beside its memory: activations, norms, rotations. Products and attention are kept.
  case cheap
  /// All but the input of the layer, or of its half.
  case layer
}

/// The backward half of a forward pass, recorded while it runs: a node for each op, in order.
package final class Tape {
  private var steps: [() -> Void] = []
  /// What the ops recorded from now on leave to be computed again; `layer` is not theirs to decide (``checkpointed(_:_:)``).
  package var recomputation: Recomputation

  package init(_ recomputation: Recomputation = .none) { self.recomputation = recomputation }

  /// Adds the backward half of an op that just ran.
  package func append(_ step: @escaping () -> Void) { steps.append(step) }

  /// Runs the recorded steps from last to first; each frees what it held as soon as it is done.
  package func backward() {
    while let step = steps.popLast() { step() }
  }
}

/// One op on the tape, as its backward half sees it.
package struct Node<Saved> {
  /// The gradient of what the op computed.
  package let dy: Tensor
  /// What it needs of the forward pass.
  package let saved: Saved
  private let gradients: [InputGradient]

  fileprivate init(dy: Tensor, saved: Saved, gradients: [InputGradient]) {
    (self.dy, self.saved, self.gradients) = (dy, saved, gradients)
  }

  package var backend: any Backend { dy.backend }

  /// Where the gradient of input `index` goes.
  package subscript(index: Int) -> InputGradient { gradients[index] }
}

/// Where the gradient of one input of an op goes, if one is asked.
package struct InputGradient {
  private let shape: [Int]
  private let dtype: DType
  private let slot: GradientSlot?

  fileprivate init(of input: Tensor) { (shape, dtype, slot) = (input.shape, input.dtype, input.slot) }

  package var isAsked: Bool { slot != nil }

  /// Room of the input's shape, for a kernel that overwrites; what was written there is handed to ``add(_:)``.
  package func room(on backend: any Backend) -> Tensor { slot?.room().reshaped(shape) ?? backend.empty(shape, dtype) }

  /// Adds `contribution` to the gradient.
  package func add(_ contribution: Tensor) { slot?.accumulate(contribution) }

  /// Lets a kernel write the sum of what is there already and its own.
  package func write(onto contribute: (_ destination: Tensor, _ base: Tensor?) -> Void) {
    slot?.write(onto: contribute)
  }

  /// Lets a kernel that can add write or add to the gradient.
  package func accumulate(_ contribute: (_ destination: Tensor, _ adds: Bool) -> Void) { slot?.accumulate(contribute) }
}

/// A tensor that a node needs again: its values, or the way to them where they are not kept.
package struct SavedTensor {
  private let tensor: Tensor?
  private let recipe: Recipe?
  private let offset: Int
  private let shape: [Int]

  init(_ x: Tensor) {
    recipe = x.slot?.recipe
    tensor = recipe == nil ? x.detached : nil
    (offset, shape) = (x.offset, x.shape)
  }

  /// The values, computed again if need be.
  package var value: Tensor {
    if let tensor { return tensor }
    guard let made = recipe?.made else { preconditionFailure("a tensor of shape \(shape) was neither kept nor made") }
    return Tensor(storage: made.storage, offset: made.offset + offset, shape: shape, dtype: made.dtype)
  }
}

extension Tensor {
  /// For a node that needs the values again.
  package var saved: SavedTensor { SavedTensor(self) }

  /// The same, where the node needs them: for the gradient of another input.
  package func saved(if isNeeded: Bool) -> SavedTensor? { isNeeded ? SavedTensor(self) : nil }
}

/// How a tensor is computed again. What was made stays until the node of the op that makes it has run backward: all who need
/// it have by then.
final class Recipe {
  private let make: () -> Tensor
  private(set) lazy var made = make()

  init(_ make: @escaping () -> Tensor) { self.make = make }
}

extension Backend {
  /// Runs `body` with a new tape that records its ops, and returns both.
  package func recording<Result>(
    recomputing: Recomputation = .none, _ body: () throws -> Result
  ) rethrows -> (Result, Tape) {
    let outer = tape
    let inner = Tape(recomputing)
    tape = inner
    defer { tape = outer }
    return (try body(), inner)
  }

  /// Runs `body` without a tape: teachers, evaluation, the first pass of a checkpointed layer.
  package func withoutRecording<Result>(_ body: () throws -> Result) rethrows -> Result {
    let outer = tape
    tape = nil
    defer { tape = outer }
    return try body()
  }

  /// Whether an op on these inputs will be asked for its backward pass.
  package func records(_ inputs: [Tensor]) -> Bool { tape != nil && inputs.contains { $0.slot != nil } }

  /// What every op ends with: when a tape runs and an input asks for a gradient, gives `output` a slot and leaves a node.
  ///
  /// - Parameters:
  ///   - inputs: whose gradients the node gives, by their places here
  ///   - saved: all of the forward pass that lives on for the node. The closures are `@Sendable`, which tensors are not:
  ///     the compiler refuses one that would keep another.
  ///   - again: computes `output` from what was saved, for ops that cost little beside the memory of their output
  ///   - backward: adds to the gradients of the inputs
  package func record<Saved>(
    _ output: Tensor, from inputs: [Tensor], saving saved: @autoclosure () -> Saved,
    again: (@Sendable (Saved) -> Tensor)? = nil, backward: @escaping @Sendable (Node<Saved>) -> Void
  ) -> Tensor {
    guard let tape, records(inputs) else { return output }
    let saved = saved()
    let gradients = inputs.map(InputGradient.init)
    let slot = GradientSlot(output)
    if let again, tape.recomputation == .cheap { slot.recipe = Recipe { again(saved) } }
    tape.append {
      if let dy = slot.take() { backward(Node(dy: dy, saved: saved, gradients: gradients)) }
      slot.recipe = nil
    }
    var recorded = output
    recorded.slot = slot
    return recorded
  }
}
