import NN
import Tensors

/// The optimizer state of the part of an arena that this rank owns: moments, and the masters of what the arena holds as
/// compute copies.
package final class AdamW {
  /// The settings of a phase.
  package struct Settings: Sendable, Equatable {
    package var beta1: Float
    package var beta2: Float
    package var epsilon: Float
    package var weightDecay: Float

    package init(beta1: Float, beta2: Float, epsilon: Float, weightDecay: Float) {
      self.beta1 = beta1
      self.beta2 = beta2
      self.epsilon = epsilon
      self.weightDecay = weightDecay
    }
  }

  package let arena: Arena
  /// Elements of the arena that this rank updates, in ascending order; the moments hold them end to end.
  package let slices: [Range<Int>]
  package let firstMoment: Tensor
  package let secondMoment: Tensor
  /// The float32 values of what this rank owns of the matrices, end to end as in the moments, which begin with them; nil
  /// where the values of the arena are the masters.
  private let masters: Tensor?
  private let settings: Settings
  /// Of each slice: runs of elements that are updated alike, and where they lie in the moments.
  private let runs: [[(run: Arena.Run, range: Range<Int>, local: Range<Int>)]]

  /// Moments of zero for the elements `slices` of `arena`, and masters with the values that it has before it begins.
  ///
  /// - Parameter group: parameters that every step updates or leaves alone together, numbered from 0
  package init(_ arena: Arena, slices: [Range<Int>], settings: Settings, group: (Parameter) -> Int = { _ in 0 }) {
    self.arena = arena
    self.slices = slices
    self.settings = settings
    let backend = arena.backend
    let count = slices.reduce(0) { $0 + $1.count }
    masters = Self.masters(arena, slices)
    firstMoment = backend.zeros([count])
    secondMoment = backend.zeros([count])
    let all = arena.runs(group: group)
    runs = slices.indices.map { index in
      let base = slices[..<index].reduce(0) { $0 + $1.count } - slices[index].lowerBound
      return all.compactMap { run in
        let part = run.range.clamped(to: slices[index])
        return part.isEmpty ? nil : (run, part, part.lowerBound + base..<part.upperBound + base)
      }
    }
  }

  /// Copies of the matrices among `slices`, where the arena is going to hold them in less than float32.
  private static func masters(_ arena: Arena, _ slices: [Range<Int>]) -> Tensor? {
    guard arena.precision == .bfloat16 else { return nil }
    let matrices = arena.sections[0].range
    let owned = slices.map { $0.clamped(to: matrices) }
    let masters = arena.backend.empty([owned.reduce(0) { $0 + $1.count }])
    var local = 0
    for range in owned where !range.isEmpty {
      arena.backend.copy(arena.values(range), into: masters.rows(local..<local + range.count))
      local += range.count
    }
    return masters
  }

  /// The float32 values that updates go to, of the elements `range` of the arena, which lie at `local` in the moments.
  package func master(_ range: Range<Int>, _ local: Range<Int>) -> Tensor {
    guard let masters, arena.sections[0].range.contains(range.lowerBound) else { return arena.values(range) }
    return masters.rows(local)
  }

  /// Replaces the values of the elements `range`, which lie in one section: those in the arena, and the masters of what this
  /// rank owns of them.
  package func set(_ range: Range<Int>, to values: UnsafeBufferPointer<Float>) {
    guard arena.isLowered(range) else { return arena.values(range).upload(values) }
    let fresh = arena.backend.empty([range.count])
    fresh.upload(values)
    arena.backend.copy(fresh, into: arena.values(range))
    for (part, local) in parts(of: range) {
      let start = part.lowerBound - range.lowerBound
      arena.backend.copy(fresh.rows(start..<start + part.count), into: master(part, local))
    }
  }

  /// What this rank owns of `range` of the arena, and where it lies in the moments.
  package func parts(of range: Range<Int>) -> [(range: Range<Int>, local: Range<Int>)] {
    var base = 0
    var parts: [(range: Range<Int>, local: Range<Int>)] = []
    for slice in slices {
      let part = slice.clamped(to: range)
      if !part.isEmpty {
        let start = base + part.lowerBound - slice.lowerBound
        parts.append((part, start..<start + part.count))
      }
      base += slice.count
    }
    return parts
  }

  /// Updates one of the slices from its gradients, each multiplied by `gradientScale`.
  ///
  /// - Parameter updates: how many updates each group has seen, this one included; 0 for a group that this step leaves as
  ///   it is, moments and weight decay included
  package func update(slice: Int, updates: [Int], learningRate: Double, gradientScale: Double) {
    for (run, range, local) in runs[slice] where updates[run.group] > 0 {
      let (values, gradients) = (master(range, local), arena.gradients.rows(range))
      let (first, second) = (firstMoment.rows(local), secondMoment.rows(local))
      let step = AdamWStep(
        learningRate: Float(learningRate), beta1: settings.beta1, beta2: settings.beta2, epsilon: settings.epsilon,
        weightDecay: run.decays ? settings.weightDecay : 0, step: updates[run.group],
        gradientScale: Float(gradientScale))
      if arena.isLowered(range) {
        // The compute copies are made anew with the masters.
        arena.backend.adamW(
          parameters: values, gradients: gradients, moment1: first, moment2: second, step: step,
          copy: arena.values(range))
      } else {
        arena.backend.adamW(parameters: values, gradients: gradients, moment1: first, moment2: second, step: step)
      }
    }
  }
}
