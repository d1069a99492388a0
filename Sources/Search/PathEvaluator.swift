import Files
import Foundation

/// Scores of paths of a supernet, smaller is better. Each path is evaluated once, by one rank; what is known stays on disk
/// and survives a kill.
package final class PathEvaluator {
  /// Evaluates one path on this rank alone.
  package typealias Score = ([Int]) throws -> Double

  /// Paths evaluated for this search, those known before included.
  package private(set) var history: [(path: [Int], score: Double)] = []
  private var known: [[Int]: Double] = [:]
  private var asked: Set<[Int]> = []
  private let file: String?
  private let identity: String
  private let world: any PathExchange
  private let score: Score

  /// - Parameters:
  ///   - file: lines of JSON, appended to by the coordinator
  ///   - identity: of model, data and objective; lines of another are passed over
  package init(file: String?, identity: String, world: any PathExchange, score: @escaping Score) throws {
    self.file = file
    self.identity = identity
    self.world = world
    self.score = score
    guard let file, FileManager.default.fileExists(atPath: file) else { return }
    // The last line may have been cut by a kill; it is evaluated again.
    for line in String(decoding: try readFile(file), as: UTF8.self).split(separator: "\n") {
      guard let record = try? JSONDecoder().decode(Record.self, from: Data(line.utf8)), record.identity == identity
      else { continue }
      known[record.path] = Double(bitPattern: record.bits)
    }
  }

  private struct Record: Codable {
    let identity: String
    let path: [Int]
    let score: Double
    /// The score to the bit.
    let bits: UInt64
  }

  /// Evaluations that this search asked for.
  package var count: Int { history.count }

  /// The scores of `paths`, in their order; new ones are shared out over the ranks.
  package func scores(_ paths: [[Int]]) throws -> [Double] {
    let sorted = paths.map { $0.sorted() }
    var fresh: [[Int]] = []
    for path in sorted where known[path] == nil && !fresh.contains(path) { fresh.append(path) }
    var mine = [Double](repeating: 0, count: (fresh.count + world.size - 1) / world.size)
    for (index, path) in fresh.enumerated() where index % world.size == world.rank {
      mine[index / world.size] = try score(path)
    }
    let all = try world.allGather(mine)
    var lines = Data()
    for (index, path) in fresh.enumerated() {
      let value = all[index % world.size * mine.count + index / world.size]
      known[path] = value
      let record = Record(identity: identity, path: path, score: value, bits: value.bitPattern)
      lines += try JSONEncoder().encode(record) + Data("\n".utf8)
    }
    if let file, world.rank == 0, !lines.isEmpty { try append(lines, to: file) }
    for path in sorted where asked.insert(path).inserted { history.append((path, known[path]!)) }
    return sorted.map { known[$0]! }
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
