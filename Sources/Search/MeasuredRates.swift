import Files
import Foundation
import Hashing
import Models
import Training

/// Rates that were measured once, apart from results, so that a search can be repeated exactly. Each is known by all that
/// decides it: another model, job, context, number of ranks or threads, or machine is measured anew.
package struct MeasuredRates {
  /// What was measured, and on what.
  package struct Key: Codable, Hashable {
    /// `train` or `decode`.
    package var what: String
    package var candidate: String
    /// Of the configuration, to train also of the job and its data.
    package var identity: String
    /// Tokens of a sequence; to decode of those in front.
    package var context: Int
    package var ranks: Int
    /// Processor, kernels and threads.
    package var machine: String

    package init(
      _ what: String, _ candidate: String, identity: String, context: Int, ranks: Int, machine: String
    ) {
      (self.what, self.candidate, self.identity) = (what, candidate, identity)
      (self.context, self.ranks, self.machine) = (context, ranks, machine)
    }
  }

  private struct Entry: Codable {
    let key: Key
    let tokensPerSecond: Double
  }

  private var rates: [Key: Double] = [:]

  /// Reads `path`, where it is.
  package init(path: String) throws {
    guard FileManager.default.fileExists(atPath: path) else { return }
    guard let entries = try? JSONDecoder().decode([Entry].self, from: readFile(path)) else {
      throw FileError(
        path,
        "is not a file of measured rates, or an old one that does not say what was measured; remove it to measure again"
      )
    }
    for entry in entries { rates[entry.key] = entry.tokensPerSecond }
  }

  /// The rate of this key, measured when it is not known.
  package mutating func rate(_ key: Key, measure: () throws -> Double) rethrows -> Double {
    if let known = rates[key] { return known }
    let rate = try measure()
    rates[key] = rate
    return rate
  }

  package func write(to path: String) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    func order(_ key: Key) -> (String, String, String) { (key.candidate, key.what, "\(key)") }
    let entries = rates.keys.sorted { order($0) < order($1) }.map { Entry(key: $0, tokensPerSecond: rates[$0]!) }
    try writeDurably(encoder.encode(entries) + Data("\n".utf8), to: path)
  }
}
