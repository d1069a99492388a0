import Models
import Training

/// The linear state of one head, and how many there are.
package struct StateShape: Sendable, Equatable {
  package let keySize: Int
  package let valueSize: Int
  package let heads: Int

  package init(_ keySize: Int, _ valueSize: Int, _ heads: Int) {
    (self.keySize, self.valueSize, self.heads) = (keySize, valueSize, heads)
  }
}

/// Which shapes of the linear state are tried.
package struct DimensionsRequest: Sendable {
  package var keySizes: [Int]
  package var heads: [Int]
  /// Elements of the state of one layer; nil for as many as the configuration has.
  package var elements: Int?
  /// Share of the fastest shape's decoding speed that a shape must reach.
  package var tolerance: Double

  package init(keySizes: [Int], heads: [Int], elements: Int? = nil, tolerance: Double) {
    (self.keySizes, self.heads, self.elements, self.tolerance) = (keySizes, heads, elements, tolerance)
  }

  /// Elements of the state of a linear layer of `base`.
  package func stateElements(of base: ModelConfiguration) throws -> Int {
    guard let shape = base.linearShape else {
      throw ModelError(path: "config.json", reason: "has no linear layer whose dimensions could be searched")
    }
    return elements ?? shape.heads * shape.keySize * shape.valueSize
  }

  /// The shapes d_K, d_V and heads over the grid whose state is as large, d_V a whole number. RWKV7's d_V is its d_K, so
  /// that few shapes of a grid are left for it, or none.
  package func shapes(of base: ModelConfiguration) throws -> [StateShape] {
    let elements = try stateElements(of: base)
    let isSquare = base.linearShape?.mixer == .rwkv7
    return heads.flatMap { heads in
      keySizes.compactMap { keys in
        let values = elements / (heads * keys)
        guard elements % (heads * keys) == 0, values > 0, values == keys || !isSquare else { return nil }
        return StateShape(keys, values, heads)
      }
    }
  }

  /// `base` in each of these shapes.
  ///
  /// - Throws: where there is none, or one that the mixer cannot have
  package func candidates(of base: ModelConfiguration) throws -> (shapes: [StateShape], candidates: [Candidate]) {
    guard tolerance > 0, tolerance <= 1 else {
      throw JobError(.usage, "a tolerance of \(tolerance): it must be above 0 and at most 1")
    }
    let shapes = try shapes(of: base)
    let mixer = base.linearShape?.mixer.rawValue ?? ""
    guard !shapes.isEmpty else {
      throw JobError(
        .usage,
        "no d_K × heads of the grid divides a state of \(try stateElements(of: base)) elements as \(mixer) needs it: "
          + "d_K \(keySizes), heads \(heads)")
    }
    return (
      shapes,
      try shapes.map { shape in
        do {
          return Candidate(
            name: "\(shape.keySize)-\(shape.valueSize)-\(shape.heads)",
            configuration: try base.reshapingLinear(
              heads: shape.heads, keySize: shape.keySize, valueSize: shape.valueSize))
        } catch let error as ModelError {
          throw JobError(
            .usage, "\(mixer) cannot have \(shape.heads) heads of \(shape.keySize)/\(shape.valueSize): \(error.reason)")
        }
      }
    )
  }
}

/// The hardware-aware step (RECIPE section 6.4): shapes of the linear state that all take the same memory. Decoding speed as
/// measured here is the constraint, the objectives choose.
package struct DimensionsResult: Codable, Sendable {
  package let objectives: [String]
  /// Elements of the state of one layer that all shapes share.
  package let stateElements: Int
  /// Share of the fastest shape's decoding speed that a shape must reach.
  package let tolerance: Double
  package let shapes: [Shape]
  /// Index of the choice.
  package let chosen: Int

  /// One shape and what it gave.
  package struct Shape: Codable, Sendable {
    package let keySize: Int
    package let valueSize: Int
    package let heads: Int
    package let joint: Double
    /// Whether it decodes fast enough.
    package let isAllowed: Bool
    package let result: CandidateResult
  }

  /// Chooses among `results`, of the shapes in their order: of those fast enough the best by the mean of its scores, each
  /// over the mean of all shapes, by weight.
  package init(
    objectives: [String], weights: [Double], elements: Int, tolerance: Double,
    shapes: [StateShape], results: [CandidateResult]
  ) {
    self.objectives = objectives
    stateElements = elements
    self.tolerance = tolerance
    let means = objectives.indices.map { o in
      results.reduce(0) { $0 + $1.scores[o] } / Double(results.count)
    }
    let fastest = results.map(\.decodeTokensPerSecond).max() ?? 0
    let judged = zip(shapes, results).map { shape, result in
      Shape(
        keySize: shape.keySize, valueSize: shape.valueSize, heads: shape.heads,
        joint: means.indices.reduce(0) { sum, o in
          sum + weights[o] * (means[o] > 0 ? result.scores[o] / means[o] : 0)
        } / weights.reduce(0, +),
        isAllowed: result.decodeTokensPerSecond >= tolerance * fastest, result: result)
    }
    self.shapes = judged
    chosen = judged.indices.filter { judged[$0].isAllowed }.min { judged[$0].joint < judged[$1].joint } ?? 0
  }
}
