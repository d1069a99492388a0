import Foundation
import Synchronization

/// The moment at which the batch system ends the job, and whether it is so near that the run must stop to be saved in time.
///
/// Slurm is asked at the start, every ten minutes, since a limit can be changed, and once more before the run stops.
package final class Deadline: Sendable {
  private struct State {
    var end: Date?
    /// When Slurm was last asked.
    var asked = Date.distantPast
    /// Seconds from the wish to stop to a checkpoint on disk.
    var need: Double
  }

  private let state: Mutex<State>
  private let asksSlurm: Bool

  /// Seconds that are allowed for a first save, of which nothing is known, unless somebody knows better.
  package static let firstNeed = 120.0
  /// What is added to what saves have taken.
  private static let margin = 30.0
  private static let interval = 600.0
  /// Seconds that Slurm has for its answer.
  private static let patience = 30.0

  /// A fixed moment.
  ///
  /// - Parameter lead: seconds that are allowed for a first save
  package init(at end: Date, lead: Double = firstNeed) {
    state = Mutex(State(end: end, need: lead))
    asksSlurm = false
  }

  /// The end of the Slurm job `identifier`, asked for by a thread of its own from now on.
  ///
  /// - Parameter lead: seconds that are allowed for a first save
  /// - Throws: When Slurm cannot be asked at all
  package init(slurmJob identifier: String, lead: Double = firstNeed) throws {
    state = Mutex(State(end: try Self.askSlurm(identifier), asked: Date(), need: lead))
    asksSlurm = true
    let thread = Thread { [weak self] in
      while let pause = self?.pause {
        Thread.sleep(forTimeInterval: pause)
        // Without an answer the last one stands.
        let end = try? Self.askSlurm(identifier)
        self?.state.withLock { state in
          if let end { state.end = end }
          state.asked = Date()
        }
      }
    }
    thread.name = "deadline"
    thread.start()
  }

  /// Seconds until Slurm is to be asked again.
  private var pause: Double {
    state.withLock { state in
      let left = state.end.map { $0.timeIntervalSinceNow - state.need } ?? Self.interval
      return min(Self.interval, max(1, left + 0.1))
    }
  }

  /// A stop, from the wish to the checkpoint on disk, took so many seconds.
  func needs(_ seconds: Double) {
    state.withLock { $0.need = 2 * seconds + Self.margin }
  }

  /// Whether the run must stop now.
  var isNear: Bool {
    state.withLock { state in
      guard let end = state.end else { return false }
      let left = end.timeIntervalSinceNow - state.need
      guard left <= 0 else { return false }
      let wasAskedSince = state.asked >= end.addingTimeInterval(-state.need)
      return !asksSlurm || wasAskedSince || -left > Self.patience
    }
  }

  /// The end of a job by `squeue`; nil for one without a limit.
  private static func askSlurm(_ identifier: String) throws -> Date? {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = ["squeue", "-h", "-j", identifier, "-o", "%e"]
    let output = Pipe()
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    process.standardInput = FileHandle.nullDevice
    do { try process.run() } catch {
      throw JobError(
        .usage, "--deadline auto: squeue cannot be run (\(error.localizedDescription)); give --max-time instead")
    }
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      .trimmingCharacters(in: .whitespacesAndNewlines)
    process.waitUntilExit()
    guard process.terminationStatus == 0, !text.isEmpty else {
      throw JobError(
        .usage,
        "--deadline auto: squeue does not know job \(identifier) (exit \(process.terminationStatus)); give --max-time instead"
      )
    }
    if ["N/A", "NONE", "UNLIMITED"].contains(text.uppercased()) { return nil }
    let format = DateFormatter()
    format.locale = Locale(identifier: "en_US_POSIX")
    format.dateFormat = "yyyy-MM-dd'T'HH:mm:ss"
    guard let end = format.date(from: text) else {
      throw JobError(.usage, "--deadline auto: squeue gives the end of job \(identifier) as \(text), which is no date")
    }
    return end
  }
}
