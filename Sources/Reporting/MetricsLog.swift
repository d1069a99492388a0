import Files
import Foundation

/// `metrics.jsonl`: one JSON object a line, numbers at full precision.
///
/// A log that cannot be written does not end what it tells of: its lines wait in memory, and every further one tries again.
package final class MetricsLog {
  private let path: String
  private let warn: (String) -> Void
  private var descriptor: Int32 = -1
  /// What is not in the file yet.
  private var unwritten = Data()
  /// What the file is to hold before that, where it could not be replaced yet.
  private var replacement: Data?
  private var isFailing = false
  /// Steps with a validation, of those that were kept.
  package let validatedSteps: Set<Int>

  /// Opens the log for appending after dropping the lines of steps beyond `lastStep`, which will run again.
  ///
  /// - Parameters:
  ///   - former: the same log as this program had it open before: what of it is not on disk yet is not lost
  ///   - warn: is told when the log cannot be written, and when it can again
  package init(
    _ path: String, keepingStepsTo lastStep: Int, after former: MetricsLog? = nil, warn: @escaping (String) -> Void
  ) {
    (self.path, self.warn) = (path, warn)
    var validated: Set<Int> = []
    var kept = Data()
    var isPrefix = true
    var dropped = false
    FileOperations.opened()
    var old = FileManager.default.contents(atPath: path)
    if let former, !former.unwritten.isEmpty {
      old = (former.replacement ?? old ?? Data()) + former.unwritten
      former.unwritten = Data()
      isPrefix = false
    }
    for line in (old ?? Data()).split(separator: UInt8(ascii: "\n")) {
      let object = try? JSONSerialization.jsonObject(with: Data(line)) as? [String: Any]
      guard let step = object?["step"] as? Int, step <= lastStep else {
        dropped = true
        continue
      }
      isPrefix = isPrefix && !dropped
      kept += line
      kept.append(UInt8(ascii: "\n"))
      if object?["validation"] != nil { validated.insert(step) }
    }
    validatedSteps = validated
    if old == nil {
      // One that is there and cannot be read keeps what it holds.
      if access(path, F_OK) == 0 { warn("\(path): cannot be read; its lines stay as they are") }
    } else if isPrefix, let old, old.starts(with: kept) {
      // Cut, which needs no room on a full disk.
      if kept.count < old.count, truncate(path, off_t(kept.count)) != 0 { replacement = kept }
    } else {
      replacement = kept
    }
    bringToDisk()
  }

  deinit { if descriptor >= 0 { close(descriptor) } }

  /// Adds one line.
  package func write(_ fields: [String: Any]) throws {
    unwritten += try jsonLine(fields)
    bringToDisk()
  }

  /// Brings what was written to disk, so that a checkpoint never knows of steps that the log does not.
  package func flush() {
    bringToDisk()
    guard descriptor >= 0, !isFailing else { return }
    if fsync(descriptor) != 0 { report(FileError.system(path, "cannot be flushed")) }
    FileOperations.synced()
  }

  /// Tries a last time; says what is lost.
  package func finish() {
    flush()
    let lines = unwritten.count { $0 == UInt8(ascii: "\n") }
    if lines > 0 {
      warn(
        "WARNING: \(path): \(Format.counted(lines, "line")) could not be written and \(lines == 1 ? "is" : "are") lost")
    }
  }

  private func bringToDisk() {
    do {
      if FailPoint.isBroken(.metrics) { throw FileError(path, "cannot be written: it is broken", kind: .system) }
      if let replacement {
        if descriptor >= 0 { close(descriptor) }
        descriptor = -1
        try writeDurably(replacement, to: path)
        self.replacement = nil
      }
      if descriptor < 0 {
        descriptor = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0o666)
        guard descriptor >= 0 else { throw FileError.system(path, "cannot be opened") }
        FileOperations.opened()
      }
      while !unwritten.isEmpty {
        try FailPoint.reach(.metrics, path: path)
        let count = unwritten.withUnsafeBytes { Foundation.write(descriptor, $0.baseAddress, $0.count) }
        if count < 0 && errno == EINTR { continue }
        guard count >= 0 else { throw FileError.system(path, "cannot be written") }
        FileOperations.wrote(count)
        unwritten = Data(unwritten.dropFirst(count))
      }
      if isFailing { warn("\(path): is written again, nothing is missing") }
      isFailing = false
    } catch { report(error) }
  }

  private func report(_ error: any Error) {
    if !isFailing { warn("WARNING: \(error); its lines are kept in memory, the run goes on") }
    isFailing = true
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
