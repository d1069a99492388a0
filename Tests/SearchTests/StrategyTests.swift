import Foundation
import Models
import NN
import Search
import TestSupport
import Testing

/// Strategies on a score that is known everywhere: layers have worths, and two of them only matter together.
@Suite struct StrategyTests {
  private struct Alone: PathExchange {
    let rank = 0
    let size = 1
    func allGather(_ values: [Double]) throws -> [Double] { values }
  }

  private static let space = PlacementSpace(layers: 9, full: 3)
  private static let settings = SearchSettings(width: 4, evaluations: 40, seed: 3)

  private static func score(_ path: SupernetPath) -> Double {
    let worth = path.full.reduce(0.0) { $0 + Double($1 * 7 % 10) / 10 }
    let windows = path.sliding.reduce(0.0) { $0 + Double($1 * 3 % 10) / 40 }
    return 5 - worth - windows - (path.full.contains(1) && path.full.contains(8) ? 2 : 0)
  }

  private func evaluator(_ file: String? = nil, counting count: @escaping () -> Void = {}) throws -> PathEvaluator {
    try PathEvaluator(file: file, identity: "test", weights: [1], world: Alone()) { path in
      count()
      return [Self.score(path)]
    }
  }

  private func trace(_ strategy: any Strategy, _ space: PlacementSpace = space) throws -> SearchTrace {
    let trace = SearchTrace(space, try evaluator())
    try strategy.search(trace)
    return trace
  }

  /// Each strategy, how many placements it may ask for, and whether it must find the best.
  private static var strategies: [(StrategyName, any Strategy, asks: ClosedRange<Int>, findsBest: Bool)] {
    [
      (.beam, BeamSearch(width: 4), 20...83, true), (.greedy, BeamSearch(width: 1), 25...25, false),
      (.uniform, UniformPlacement(), 1...1, false), (.random, RandomSearch(settings: settings), 40...40, false),
      (.evolution, Evolution(settings: settings), 8...40, false),
      (.predictor, Predictor(settings: settings), 40...40, true),
      (.reinforce, Reinforce(settings: SearchSettings(evaluations: 200, seed: 3)), 8...84, true),
      (.klRestore, RestorationRanking(objective: 0), 11...11, false), (.exhaustive, ExhaustiveSearch(), 84...84, true),
    ]
  }

  @Test func everyStrategySearchesWithinItsMeans() throws {
    for (name, strategy, asks, findsBest) in Self.strategies {
      let trace = try trace(strategy)
      let best = try #require(trace.best)
      #expect(Self.space.isWhole(best.path) && Set(best.path.full).count == 3, "\(name)")
      #expect(
        best.joint == Self.score(best.path) && asks.contains(trace.history.count), "\(name) \(trace.history.count)")
      #expect(!findsBest || best.path == SupernetPath(full: [1, 7, 8]), "\(name) found \(best.path)")
      #expect(trace.curve.last == best.joint && trace.curve.count == trace.history.count)
      let again = try self.trace(strategy)
      #expect(again.history.map(\.path) == trace.history.map(\.path), "\(name) repeats itself")
    }
  }

  @Test func slidingLayersArePlacedBesideFullOnes() throws {
    let space = PlacementSpace(layers: 7, full: 2, sliding: 2)
    #expect(space.count == 210 && space.all.count == 210 && Set(space.all).count == 210)
    let truth = try #require(try trace(ExhaustiveSearch(), space).best)
    for (name, strategy, _, _) in Self.strategies {
      let best = try #require(try trace(strategy, space).best)
      #expect(space.isWhole(best.path) && Set(best.path.full + best.path.sliding).count == 4, "\(name)")
      #expect(best.joint >= truth.joint)
    }
    #expect(try trace(BeamSearch(width: 8), space).best?.joint == truth.joint)
    #expect(PlacementSpace(layers: 10_000, full: 4000, sliding: 3000).count > 100_000)
    #expect(space.uniform == SupernetPath(full: [1, 5], sliding: [2, 4]))
    var random = RandomStream(seed: 1, name: "test")
    for _ in 0..<50 {
      let path = space.draw(&random)
      let child = space.mutated(path, &random)
      #expect(space.isWhole(child) && child != path)
    }
  }

  /// What was evaluated before a kill is not evaluated again, and a torn line is.
  @Test func evaluationsSurvive() throws {
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-search-\(UUID())").path
    defer { try? FileManager.default.removeItem(atPath: file) }
    func search(_ evaluator: PathEvaluator) throws -> SearchTrace.Entry? {
      let trace = SearchTrace(Self.space, evaluator)
      try BeamSearch(width: 4).search(trace)
      return trace.best
    }
    let whole = try search(evaluator(file))
    let content = try Data(contentsOf: URL(fileURLWithPath: file))
    try content.dropLast(20).write(to: URL(fileURLWithPath: file))
    nonisolated(unsafe) var calls = 0
    let again = try search(evaluator(file) { calls += 1 })
    #expect(again?.path == whole?.path && again?.joint == whole?.joint && calls == 1)
    nonisolated(unsafe) var others = 0
    let other = try PathEvaluator(file: file, identity: "another model", weights: [1], world: Alone()) { path in
      others += 1
      return [Self.score(path)]
    }
    let one = SupernetPath(full: [1])
    _ = try other.measurements([one, one, SupernetPath(full: [2])])
    #expect(others == 2)
  }

  /// Of several objectives the joint score weighs each against the path without attention.
  @Test func objectivesAreWeighedJointly() throws {
    let evaluator = try PathEvaluator(file: nil, identity: "test", weights: [1, 3], world: Alone()) { path in
      [path.full.isEmpty ? 4 : 2, path.full.isEmpty ? 10 : Double(path.full[0])]
    }
    let trace = SearchTrace(PlacementSpace(layers: 9, full: 1), evaluator)
    #expect(try trace.scores([SupernetPath(full: [5]), SupernetPath()]) == [0.5 + 3 * 0.5, 4])
    #expect(trace.history.map(\.scores) == [[2, 5], [4, 10]])
  }

  @Test func shapesOfOneStateSize() throws {
    let request = DimensionsRequest(
      keySizes: [64, 96, 128, 192, 256, 7], heads: [4, 8, 12], elements: 294_912, tolerance: 0.97)
    let shapes = try request.shapes(of: linearModel(.gatedDeltaNet, heads: 12, keySize: 96, valueSize: 256))
    // The paper's table 2, with the sizes that divide.
    for (keys, values, heads) in [(256, 288, 4), (128, 288, 8), (96, 256, 12), (64, 384, 12), (192, 192, 8)] {
      #expect(shapes.contains(StateShape(keys, values, heads)))
    }
    #expect(shapes.allSatisfy { $0.keySize * $0.valueSize * $0.heads == 294_912 })
    #expect(!shapes.contains { $0.keySize == 7 })
    func result(_ name: String, _ score: Double, _ speed: Double) -> CandidateResult {
      CandidateResult(
        name: name, parameters: 1, cacheBytes: 1, scores: [score], trainTokensPerSecond: 1, decodeTokensPerSecond: speed
      )
    }
    let chosen = DimensionsResult(
      objectives: ["loss"], weights: [1], elements: 8, tolerance: 0.9,
      shapes: [StateShape(1, 8, 1), StateShape(2, 4, 1), StateShape(4, 2, 1)],
      results: [result("a", 2, 100), result("b", 1.5, 95), result("c", 1, 80)])
    #expect(chosen.chosen == 1 && chosen.shapes.map(\.isAllowed) == [true, true, false])
  }
}
