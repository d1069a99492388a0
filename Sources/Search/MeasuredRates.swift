import Files
import Foundation

/// Rates that were measured once, apart from results, so that a search can be repeated exactly.
package struct MeasuredRates: Codable {
  private var rates: [String: Double] = [:]

  /// Reads `path`, where it is.
  package init(path: String) throws {
    guard FileManager.default.fileExists(atPath: path) else { return }
    guard let known = try? JSONDecoder().decode(MeasuredRates.self, from: readFile(path)) else {
      throw FileError(path, "is not a file of measured rates; remove it to measure again")
    }
    self = known
  }

  /// The rate of this name, measured when it is not known.
  package mutating func rate(_ name: String, measure: () throws -> Double) rethrows -> Double {
    if let known = rates[name] { return known }
    let rate = try measure()
    rates[name] = rate
    return rate
  }

  package func write(to path: String) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    try writeDurably(encoder.encode(self) + Data("\n".utf8), to: path)
  }
}
