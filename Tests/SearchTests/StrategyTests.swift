import Foundation
import TestSupport
import Testing

@testable import Search

/// Strategies on a score that is known everywhere: layers have worths, and two of them only matter together.
@Suite struct StrategyTests {
  private struct Alone: PathExchange {
    let rank = 0
    let size = 1
    func allGather(_ values: [Double]) throws -> [Double] { values }
  }

  private static let settings = SearchSettings(full: 3, layers: 9, width: 4, evaluations: 40, seed: 3)

  private static func score(_ path: [Int]) -> Double {
    let worth = path.reduce(0.0) { $0 + Double($1 * 7 % 10) / 10 }
    return 5 - worth - (path.contains(1) && path.contains(8) ? 2 : 0)
  }

  private func evaluator(_ file: String? = nil, counting count: @escaping () -> Void = {}) throws -> PathEvaluator {
    try PathEvaluator(file: file, identity: "test", weights: [1], world: Alone()) { path in
      count()
      return [Self.score(path)]
    }
  }

  @Test(arguments: Strategy.allCases) func findsWithinItsMeans(_ strategy: Strategy) throws {
    let truth = try Strategy.exhaustive.search(Self.settings, evaluator())
    #expect(truth.path == [1, 7, 8])
    let evaluator = try evaluator()
    let found = try strategy.search(Self.settings, evaluator)
    #expect(found.path.count == 3 && Set(found.path).count == 3)
    #expect(found.score == Self.score(found.path) && found.score >= truth.score)
    let again = try strategy.search(Self.settings, self.evaluator())
    #expect(again.path == found.path && again.score == found.score)
    switch strategy {
    case .uniform: #expect(evaluator.count == 1 && found.path == [1, 4, 7])
    case .random, .evolution: #expect(evaluator.count <= 40)
    case .exhaustive: #expect(evaluator.count == 84)
    case .greedy: #expect(evaluator.count == 1 + 9 + 8 + 7)
    case .beam:
      #expect(found.path == truth.path, "beam keeps what greedy drops")
      #expect(evaluator.count < 84)
    }
  }

  /// What was evaluated before a kill is not evaluated again, and a torn line is.
  @Test func evaluationsSurvive() throws {
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-search-\(UUID())").path
    defer { try? FileManager.default.removeItem(atPath: file) }
    let whole = try Strategy.beam.search(Self.settings, evaluator(file))
    let content = try Data(contentsOf: URL(fileURLWithPath: file))
    try content.dropLast(20).write(to: URL(fileURLWithPath: file))
    nonisolated(unsafe) var calls = 0
    let again = try Strategy.beam.search(Self.settings, evaluator(file) { calls += 1 })
    #expect(again.path == whole.path && again.score == whole.score && calls == 1)
    nonisolated(unsafe) var others = 0
    let other = try PathEvaluator(file: file, identity: "another model", weights: [1], world: Alone()) { path in
      others += 1
      return [Self.score(path)]
    }
    _ = try other.scores([[1], [1], [2]])
    #expect(others == 2)
  }

  /// Of several objectives the joint score weighs each against the path without attention.
  @Test func objectivesAreWeighedJointly() throws {
    let evaluator = try PathEvaluator(file: nil, identity: "test", weights: [1, 3], world: Alone()) { path in
      [path.isEmpty ? 4 : 2, path.isEmpty ? 10 : Double(path[0])]
    }
    #expect(try evaluator.scores([[5], []]) == [0.5 + 3 * 0.5, 4])
    #expect(evaluator.history.map(\.scores) == [[2, 5], [4, 10]])
  }
}
