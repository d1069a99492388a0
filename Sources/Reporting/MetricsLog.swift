import Foundation

/// `metrics.jsonl`: one JSON object a line, numbers at full precision.
package final class MetricsLog {
  private let path: String
  private let file: FileHandle
  /// Steps with a validation, of those that were kept.
  package let validatedSteps: Set<Int>

  /// Opens the log for appending after dropping the lines of steps beyond `lastStep`, which will run again.
  package init(_ path: String, keepingStepsTo lastStep: Int) throws {
    self.path = path
    var kept = Data()
    var validated: Set<Int> = []
    if let old = FileManager.default.contents(atPath: path) {
      for line in old.split(separator: UInt8(ascii: "\n")) {
        let object = try? JSONSerialization.jsonObject(with: Data(line)) as? [String: Any]
        if let step = object?["step"] as? Int, step <= lastStep {
          kept += line
          kept.append(UInt8(ascii: "\n"))
          if object?["validation"] != nil { validated.insert(step) }
        }
      }
    }
    validatedSteps = validated
    try kept.write(to: URL(fileURLWithPath: path), options: .atomic)
    file = try FileHandle(forWritingTo: URL(fileURLWithPath: path))
    try file.seekToEnd()
  }

  /// Brings what was written to disk, so that a checkpoint never knows of steps that the log does not.
  package func flush() throws { try file.synchronize() }

  /// Adds one line.
  package func write(_ fields: [String: Any]) throws {
    try file.write(contentsOf: jsonLine(fields))
  }
}

/// An object as one line of JSON, keys sorted. Numbers that JSON cannot hold become strings.
package func jsonLine(_ fields: [String: Any]) throws -> Data {
  func safe(_ value: Any) -> Any {
    switch value {
    case let number as Double where !number.isFinite: return "\(number)"
    case let object as [String: Any]: return object.mapValues(safe)
    case let list as [Any]: return list.map(safe)
    default: return value
    }
  }
  var line = try JSONSerialization.data(
    withJSONObject: safe(fields), options: [.sortedKeys, .withoutEscapingSlashes])
  line.append(UInt8(ascii: "\n"))
  return line
}
