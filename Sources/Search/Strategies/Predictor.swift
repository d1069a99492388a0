import Models
import NN

/// Fits a small model to the placements measured so far and measures those next that it thinks best, with one in four drawn
/// at random so that it learns of the rest (Progressive NAS; NAT).
///
/// The model is kernel ridge regression with the kernel (1 + layers in common)², which holds every layer's worth and that
/// of every pair.
package struct Predictor: Strategy {
  let settings: SearchSettings

  private static let round = 4
  private static let ridge = 0.1

  package init(settings: SearchSettings) { self.settings = settings }

  package func search(_ trace: SearchTrace) throws {
    let space = trace.space
    var random = RandomStream(seed: settings.seed, name: "search.predictor")
    let limit = min(settings.evaluations, space.count)
    while trace.history.count < limit {
      let candidates = proposals(trace, &random)
      guard !candidates.isEmpty else { break }
      let count = min(Self.round, limit - trace.history.count, candidates.count)
      if trace.history.count < 2 * Self.round {
        _ = try trace.scores(Array(candidates.prefix(count)))
        continue
      }
      let predict = fit(trace.history)
      let ranked = candidates.map { ($0, predict($0)) }.sorted { a, b in
        a.1 != b.1 ? a.1 < b.1 : a.0.precedes(b.0)
      }.map(\.0)
      // The last place of a round is the first proposal that is not among the best.
      let best = Array(ranked.prefix(max(1, count - 1)))
      let other = candidates.first { !best.contains($0) }
      _ = try trace.scores(Array((best + [other].compactMap { $0 }).prefix(count)))
    }
  }

  /// Placements that were not measured: random ones, and neighbours of the best.
  private func proposals(_ trace: SearchTrace, _ random: inout RandomStream) -> [SupernetPath] {
    let space = trace.space
    if space.count <= 4096 {
      var all = space.all.filter { !trace.knows($0) }
      all.shuffle(using: &random)
      return all
    }
    var proposals: [SupernetPath] = []
    var seen: Set<SupernetPath> = []
    let elite = trace.whole.sorted(by: SearchTrace.precedes).prefix(8).map(\.path)
    for index in 0..<512 {
      let path =
        index % 2 == 0 || elite.isEmpty
        ? space.draw(&random) : space.mutated(elite[index / 2 % elite.count], &random)
      if !trace.knows(path), seen.insert(path).inserted { proposals.append(path) }
    }
    return proposals
  }

  /// The predicted joint score.
  private func fit(_ history: [SearchTrace.Entry]) -> (SupernetPath) -> Double {
    let mean = history.reduce(0) { $0 + $1.joint } / Double(history.count)
    let deviation = (history.reduce(0) { $0 + ($1.joint - mean) * ($1.joint - mean) } / Double(history.count))
      .squareRoot()
    let scale = deviation > 0 ? deviation : 1
    let paths = history.map(\.path)
    var matrix = paths.map { a in paths.map { b in Self.kernel(a, b) } }
    for i in matrix.indices { matrix[i][i] += Self.ridge }
    let weights = Self.solve(&matrix, history.map { ($0.joint - mean) / scale })
    return { path in
      zip(paths, weights).reduce(0) { $0 + $1.1 * Self.kernel($1.0, path) } * scale + mean
    }
  }

  private static func kernel(_ a: SupernetPath, _ b: SupernetPath) -> Double {
    let shared = a.full.count(where: b.full.contains) + a.sliding.count(where: b.sliding.contains)
    return Double((1 + shared) * (1 + shared))
  }

  /// Solves `matrix` x = `right` for a symmetric positive definite matrix, by Cholesky's factors.
  private static func solve(_ matrix: inout [[Double]], _ right: [Double]) -> [Double] {
    let n = right.count
    for i in 0..<n {
      for j in 0...i {
        var sum = matrix[i][j]
        for k in 0..<j { sum -= matrix[i][k] * matrix[j][k] }
        matrix[i][j] = i == j ? max(sum, 1e-12).squareRoot() : sum / matrix[j][j]
      }
    }
    var x = right
    for i in 0..<n {
      for k in 0..<i { x[i] -= matrix[i][k] * x[k] }
      x[i] /= matrix[i][i]
    }
    for i in (0..<n).reversed() {
      for k in i + 1..<n { x[i] -= matrix[k][i] * x[k] }
      x[i] /= matrix[i][i]
    }
    return x
  }
}
