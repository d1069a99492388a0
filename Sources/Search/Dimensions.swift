import Models

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

  /// The shapes d_K, d_V and heads over the grid whose state is `elements` large, d_V a whole number.
  package static func grid(keySizes: [Int], heads: [Int], elements: Int) -> [(keySize: Int, valueSize: Int, heads: Int)]
  {
    heads.flatMap { heads in
      keySizes.compactMap { keys in
        elements % (heads * keys) == 0 && elements / (heads * keys) > 0
          ? (keySize: keys, valueSize: elements / (heads * keys), heads: heads) : nil
      }
    }
  }

  /// Chooses among `results`, of the shapes in their order: of those fast enough the best by the mean of its scores, each
  /// over the mean of all shapes, by weight.
  package init(
    objectives: [String], weights: [Double], elements: Int, tolerance: Double,
    shapes: [(keySize: Int, valueSize: Int, heads: Int)], results: [CandidateResult]
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
