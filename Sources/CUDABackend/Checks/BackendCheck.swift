import CUDA
import Foundation
import Tensors

/// Every operation of a backend beside those of another that is right: float32 against float32, bfloat16 against float32 on
/// the same rounded inputs. Two runs must give the same bits; where new tensors begin as NaN, what is not written shows.
package struct BackendCheck {
  /// What a case makes its tensors with, on either backend.
  struct Maker {
    let backend: any Backend
    /// The type that is checked, of activations on the card.
    let type: DType
    let isReference: Bool

    /// Normal numbers, rounded to the type; float32 on the reference.
    func random(_ shape: [Int], _ seed: Int, scale: Float = 1, shift: Float = 0) -> Tensor {
      var random = Random(seed: UInt64(seed))
      let values = (0..<shape.reduce(1, *)).map { _ in Float(random.normal()) * scale + shift }
      guard type == .bfloat16 else { return backend.tensor(values, shape) }
      let rounded = bfloat16(values)
      if isReference { return backend.tensor(widened(rounded), shape) }
      let tensor = backend.empty(shape, .bfloat16)
      rounded.withUnsafeBytes { backend.upload($0, into: tensor).wait() }
      return tensor
    }

    /// Normal numbers in float32 whatever is checked: weights, gates.
    func floats(_ shape: [Int], _ seed: Int, scale: Float = 1, shift: Float = 0) -> Tensor {
      var random = Random(seed: UInt64(seed))
      return backend.tensor((0..<shape.reduce(1, *)).map { _ in Float(random.normal()) * scale + shift }, shape)
    }

    func output(_ shape: [Int]) -> Tensor { backend.empty(shape, isReference ? .float32 : type) }
    func layout(_ documents: [Int], starts: [Int]? = nil) -> Layout {
      Layout(Segments(Self.ranges(documents)), starts: starts, on: backend)
    }
    static func ranges(_ documents: [Int]) -> [Range<Int>] {
      documents.reduce(into: []) { all, length in
        let first = all.last?.upperBound ?? 0
        all.append(first..<first + length)
      }
    }
  }

  /// One operation at one size; outputs, then gradients.
  struct Case {
    let name: String
    let shape: String
    /// Whether activations may be bfloat16.
    var narrow = true
    let run: (Maker) -> (outputs: [Tensor], gradients: [Tensor])
  }

  private let backend: any Backend
  private let reference: any Backend
  private let types: [DType]

  /// - Parameter types: of activations
  package init(_ backend: any Backend, against reference: any Backend, types: [DType] = [.float32, .bfloat16]) {
    (self.backend, self.reference, self.types) = (backend, reference, types)
  }

  /// Runs all cases, or those in whose names `only` is, and hands each result to `report` as it comes.
  package func run(small: Bool, only: String? = nil, report: (CheckResult) -> Void) {
    for one in Self.cases(small: small) where only.map(one.name.contains) ?? true {
      for type in types where one.narrow || type == .float32 { report(compare(one, type)) }
    }
  }

  private func compare(_ one: Case, _ type: DType) -> CheckResult {
    func values(_ tensors: [Tensor]) -> [[Double]] {
      tensors.map { $0.dtype == .float64 ? $0.toDoubles() : $0.toArray().map(Double.init) }
    }
    func results(_ backend: any Backend, isReference: Bool) -> (outputs: [[Double]], gradients: [[Double]]) {
      let (outputs, gradients) = one.run(Maker(backend: backend, type: type, isReference: isReference))
      return (values(outputs), values(gradients))
    }
    let expected = results(reference, isReference: true)
    let (first, second) = (results(backend, isReference: false), results(backend, isReference: false))
    func worst(_ x: [[Double]], _ y: [[Double]]) -> Double? {
      let errors = zip(x, y).map { relativeError($0, $1) }
      return errors.isEmpty ? nil : errors.reduce(0) { $1.isNaN || $1 > $0 ? $1 : $0 }
    }
    let isExact = type == .float32
    return CheckResult(
      kernel: "\(one.name), \(isExact ? "float32" : "bf16")", shape: one.shape,
      outputError: worst(first.outputs, expected.outputs) ?? 0,
      gradientError: worst(first.gradients, expected.gradients), outputBound: isExact ? 2e-5 : 1e-2,
      gradientBound: isExact ? 1e-4 : 2e-2,
      repeats: first.outputs == second.outputs && first.gradients == second.gradients)
  }
}
