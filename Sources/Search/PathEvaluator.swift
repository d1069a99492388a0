import Files
import Foundation

/// Scores of paths of a supernet on one or several objectives, smaller is better. Each path is evaluated once, by one rank;
/// what is known stays on disk and survives a kill.
package final class PathEvaluator {
  /// The scores of one path on all objectives, computed on this rank alone.
  package typealias Measure = ([Int]) throws -> [Double]

  /// A path that this search asked for.
  package struct Evaluation: Sendable {
    package let path: [Int]
    /// By objective.
    package let scores: [Double]
    /// Of one objective its score; of several the weighted sum of their scores over those of the path without attention.
    package let joint: Double
  }

  /// Paths evaluated for this search, those known before included.
  package private(set) var history: [Evaluation] = []
  private var known: [[Int]: [Double]] = [:]
  private var asked: Set<[Int]> = []
  private let file: String?
  private let identity: String
  private let weights: [Double]
  private let world: any PathExchange
  private let measure: Measure

  /// - Parameters:
  ///   - file: lines of JSON, appended to by the coordinator
  ///   - identity: of model, data and objectives; lines of another are passed over
  ///   - weights: of the objectives in the joint score
  package init(
    file: String?, identity: String, weights: [Double], world: any PathExchange, measure: @escaping Measure
  ) throws {
    self.file = file
    self.identity = identity
    self.weights = weights
    self.world = world
    self.measure = measure
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
    let path: [Int]
    let scores: [Double]
    /// The scores to the bit.
    let bits: [UInt64]
  }

  /// Evaluations that this search asked for.
  package var count: Int { history.count }

  /// The joint scores of `paths`, in their order; new ones are shared out over the ranks.
  package func scores(_ paths: [[Int]]) throws -> [Double] {
    let sorted = paths.map { $0.sorted() }
    let none = try weights.count > 1 ? measurements([[]])[0] : nil
    let measured = try measurements(sorted)
    return zip(sorted, measured).map { path, scores in
      let joint =
        none.map { none in
          zip(weights, zip(scores, none)).reduce(0) { $0 + $1.0 * $1.1.0 / max($1.1.1, .leastNormalMagnitude) }
        } ?? scores[0]
      if asked.insert(path).inserted { history.append(Evaluation(path: path, scores: scores, joint: joint)) }
      return joint
    }
  }

  /// The scores of `paths` by objective.
  package func measurements(_ paths: [[Int]]) throws -> [[Double]] {
    var fresh: [[Int]] = []
    for path in paths where known[path] == nil && !fresh.contains(path) { fresh.append(path) }
    let width = weights.count
    let rows = (fresh.count + world.size - 1) / world.size
    var mine = [Double](repeating: 0, count: rows * width)
    for (index, path) in fresh.enumerated() where index % world.size == world.rank {
      let row = index / world.size * width
      mine.replaceSubrange(row..<row + width, with: try measure(path))
    }
    let all = try world.allGather(mine)
    var lines = Data()
    for (index, path) in fresh.enumerated() {
      let row = (index % world.size * rows + index / world.size) * width
      let scores = Array(all[row..<row + width])
      known[path] = scores
      let record = Record(identity: identity, path: path, scores: scores, bits: scores.map(\.bitPattern))
      lines += try JSONEncoder().encode(record) + Data("\n".utf8)
    }
    if let file, world.rank == 0, !lines.isEmpty { try append(lines, to: file) }
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
