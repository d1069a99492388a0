import Files
import Foundation
import Models
import Training

/// Scores of paths of a supernet on one or several objectives, smaller is better. Each path is evaluated once, by one rank;
/// what is known stays on disk and survives a kill.
package final class PathEvaluator {
  /// The scores of one path on all objectives, computed on this rank alone.
  package typealias Measure = (SupernetPath) throws -> [Double]

  private var known: [SupernetPath: [Double]] = [:]
  private let file: String?
  private let identity: String
  package let weights: [Double]
  package let world: any PathExchange
  private let measure: Measure
  let wantsStop: () -> Bool

  /// - Parameters:
  ///   - file: lines of JSON, appended to by the coordinator
  ///   - identity: of model, data and objectives; lines of another are passed over
  ///   - weights: of the objectives in the joint score
  ///   - wantsStop: whether this rank wants the search to end early
  package init(
    file: String?, identity: String, weights: [Double], world: any PathExchange,
    wantsStop: @escaping () -> Bool = { false }, measure: @escaping Measure
  ) throws {
    self.file = file
    self.identity = identity
    self.weights = weights
    self.world = world
    self.measure = measure
    self.wantsStop = wantsStop
    guard let file, FileManager.default.fileExists(atPath: file) else { return }
    // The last line may have been cut by a kill; it is evaluated again.
    for line in String(decoding: try readFile(file), as: UTF8.self).split(separator: "\n") {
      guard let record = try? JSONDecoder().decode(Record.self, from: Data(line.utf8)), record.identity == identity,
        record.bits.count == weights.count
      else { continue }
      known[record.path] = record.bits.map(Double.init(bitPattern:))
    }
  }

  private struct Record: Codable {
    let identity: String
    let path: SupernetPath
    let scores: [Double]
    /// The scores to the bit.
    let bits: [UInt64]
  }

  /// Of one objective its score; of several the weighted sum of their scores over those of the path without attention.
  package func joint(_ scores: [Double]) throws -> Double {
    guard weights.count > 1 else { return scores[0] }
    let none = try measurements([SupernetPath()])[0]
    return weights.indices.reduce(0) { $0 + weights[$1] * (none[$1] > 0 ? scores[$1] / none[$1] : scores[$1]) }
  }

  /// The scores of `paths` by objective; new ones are shared out over the ranks.
  ///
  /// - Throws: `Stopped` on all ranks, when one wants to stop; what was measured is kept
  package func measurements(_ paths: [SupernetPath]) throws -> [[Double]] {
    var fresh: [SupernetPath] = []
    for path in paths where known[path] == nil && !fresh.contains(path) { fresh.append(path) }
    let width = weights.count
    // A line of every rank at a time, so that a kill loses one round and no more.
    for first in stride(from: 0, to: fresh.count, by: world.size) {
      let round = fresh[first..<min(fresh.count, first + world.size)]
      let mine = round.startIndex + world.rank
      let scores = try round.indices.contains(mine) ? measure(round[mine]) : [Double](repeating: 0, count: width)
      let all = try world.allGather(scores + [wantsStop() ? 1 : 0])
      var lines = Data()
      for (index, path) in round.enumerated() {
        let scores = Array(all[index * (width + 1)..<(index + 1) * (width + 1) - 1])
        known[path] = scores
        let record = Record(identity: identity, path: path, scores: scores, bits: scores.map(\.bitPattern))
        lines += try JSONEncoder().encode(record) + Data("\n".utf8)
      }
      if let file, world.rank == 0 { try append(lines, to: file) }
      if (1...world.size).contains(where: { all[$0 * (width + 1) - 1] > 0 }) { throw Stopped() }
    }
    return paths.map { known[$0]! }
  }

  private func append(_ lines: Data, to path: String) throws {
    let descriptor = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o666)
    guard descriptor >= 0 else { throw FileError.system(path, "cannot be opened") }
    defer { close(descriptor) }
    // A line that a kill cut short must not swallow the next one.
    let content = Data("\n".utf8) + lines
    let written = content.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
    guard written == content.count, fsync(descriptor) == 0 else { throw FileError.system(path, "cannot be written") }
  }
}

/// What the search needs of its ranks.
package protocol PathExchange {
  var rank: Int { get }
  var size: Int { get }
  func allGather(_ values: [Double]) throws -> [Double]
}

/// One strategy's way through the space: what it asked for, in order, and the best it found. Strategies are compared by
/// this, whatever another one had measured before.
package final class SearchTrace {
  /// A path that was asked for.
  package struct Entry: Sendable {
    package let path: SupernetPath
    /// By objective.
    package let scores: [Double]
    package let joint: Double
  }

  package let space: PlacementSpace
  package let evaluator: PathEvaluator
  /// Different paths that were asked for, in order.
  package private(set) var history: [Entry] = []
  /// Tokens read apart from evaluations of paths.
  package var extraTokens = 0
  private var asked: Set<SupernetPath> = []

  package init(_ space: PlacementSpace, _ evaluator: PathEvaluator) {
    (self.space, self.evaluator) = (space, evaluator)
  }

  /// The joint scores of `paths`, in their order.
  package func scores(_ paths: [SupernetPath]) throws -> [Double] { try entries(paths).map(\.joint) }

  /// The scores of `paths`, in their order.
  package func entries(_ paths: [SupernetPath]) throws -> [Entry] {
    try zip(paths, evaluator.measurements(paths)).map { path, scores in
      let entry = Entry(path: path, scores: scores, joint: try evaluator.joint(scores))
      if asked.insert(path).inserted { history.append(entry) }
      return entry
    }
  }

  /// Whether `path` was asked for.
  package func knows(_ path: SupernetPath) -> Bool { asked.contains(path) }

  /// The whole placements that were asked for.
  package var whole: [Entry] { history.filter { space.isWhole($0.path) } }

  /// The best whole placement so far.
  package var best: Entry? { whole.min(by: Self.precedes) }

  /// Ties go to the path that comes first in the order of its layers.
  package static func precedes(_ a: Entry, _ b: Entry) -> Bool {
    a.joint != b.joint ? a.joint < b.joint : a.path.precedes(b.path)
  }

  /// Best joint score of a whole placement after each evaluation; nil before the first.
  package var curve: [Double?] {
    var best: Double?
    return history.map { entry in
      if space.isWhole(entry.path) { best = min(best ?? entry.joint, entry.joint) }
      return best
    }
  }
}
