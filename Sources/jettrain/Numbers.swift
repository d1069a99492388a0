import Foundation
import Reporting
import Training

/// Whole numbers that options take: what is outside their range is refused by the option's name before anything runs.
enum Whole {
  /// - Parameter most: by default no count of this program comes near it, and no product of two can overflow
  static func from(_ least: Int, to most: Int = YAMLReader.most) -> @Sendable (String) throws -> Int {
    { text in
      guard let value = Int(text), (least...most).contains(value) else {
        throw NumberError(description: "expected a whole number from \(least) to \(most)")
      }
      return value
    }
  }

  /// Of a text such as `1024,4096`.
  static func list(from least: Int, to most: Int) -> @Sendable (String) throws -> [Int] {
    { text in
      let values = text.split(separator: ",", omittingEmptySubsequences: false).map { Int($0) ?? least - 1 }
      guard values.allSatisfy({ (least...most).contains($0) }) else {
        throw NumberError(description: "expected whole numbers from \(least) to \(most), separated by commas")
      }
      return values
    }
  }
}

/// Numbers with a fraction that options take.
enum Real {
  static func from(_ least: Double, to most: Double) -> @Sendable (String) throws -> Double {
    { text in
      guard let value = Double(text), value >= least, value <= most else {
        throw NumberError(description: "expected a number from \(least) to \(most)")
      }
      return value
    }
  }

  static func above(_ limit: Double, to most: Double) -> @Sendable (String) throws -> Double {
    { text in
      guard let value = Double(text), value > limit, value <= most else {
        throw NumberError(description: "expected a number above \(limit), at most \(most)")
      }
      return value
    }
  }
}

/// What an option should have been.
struct NumberError: Error, CustomStringConvertible { let description: String }

/// Bounds of what a process can do, and no reason to forbid less.
enum Most {
  static let context = 1 << 24
  static let sequences = 100_000
  static let threads = 1024
  static let ranks = 1 << 20
  static let timedRuns = 10_000
  /// Of a measurement.
  static let seconds = 3600.0
}

/// Refuses a folder to write that nobody means: none, the one at hand or one above it.
func refusePlace(_ path: String, _ option: String) throws {
  let place = URL(fileURLWithPath: path).standardizedFileURL.path
  let here = FileManager.default.currentDirectoryPath
  guard !path.isEmpty, place != here, !(here + "/").hasPrefix(place.hasSuffix("/") ? place : place + "/") else {
    throw JobError(.usage, "\(option) \(path.isEmpty ? "''" : path): name a folder of its own, such as Data/my-set")
  }
}

/// Refuses what this machine cannot hold.
///
/// - Parameter what: named with the options that decide its size
func refuse(_ what: String, of bytes: Double, in machine: Double = Double(ProcessInfo.processInfo.physicalMemory))
  throws
{
  guard bytes <= machine else {
    throw JobError(
      .usage, "\(what): takes \(Format.bytes(bytes)), this machine has \(Format.bytes(machine)) of memory")
  }
}
