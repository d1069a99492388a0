import ArgumentParser
import Foundation
import Training

/// When a run is to stop by itself.
struct StopOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Stop at a checkpoint and exit with 75 after this time, such as 90s, 30m, 23h or 1d12h.", valueName: "time"),
    transform: Self.seconds)
  var maxTime: Double?

  @Option(
    help: ArgumentHelp(
      "Stop at a checkpoint and exit with 75 in time before this moment, by what saves have taken: auto asks Slurm for the "
        + "job's end; or a date such as 2026-11-30T08:00:00Z.",
      valueName: "auto|date"))
  var deadline: String?

  @Option(
    help: "With --deadline: seconds from the wish to stop to a checkpoint on disk, until a save has shown it.",
    transform: Real.from(0, to: 86_400))
  var deadlineLead = Deadline.firstNeed

  /// - Parameter isCoordinator: whether this rank's deadline counts
  func request(runFolder: String, isCoordinator: Bool) throws -> StopRequest {
    StopRequest(
      runFolder: runFolder, maxSeconds: maxTime,
      deadline: isCoordinator ? try deadline.map(moment) : nil)
  }

  private func moment(_ text: String) throws -> Deadline {
    guard text == "auto" else {
      guard let date = ISO8601DateFormatter().date(from: text) else {
        throw JobError(.usage, "--deadline \(text): expected auto, or a date such as 2026-11-30T08:00:00Z")
      }
      return Deadline(at: date, lead: deadlineLead)
    }
    guard let job = ProcessInfo.processInfo.environment["SLURM_JOB_ID"] else {
      throw JobError(
        .usage, "--deadline auto: SLURM_JOB_ID is not set, this is no Slurm job; give --max-time or a date")
    }
    return try Deadline(slurmJob: job, lead: deadlineLead)
  }

  /// The longest time that can be asked for.
  private static let longest = 10_000 * 86_400.0

  private static func seconds(_ text: String) throws -> Double {
    var (total, digits) = (0.0, "")
    for character in text {
      if let unit = ["d": 86_400.0, "h": 3_600, "m": 60, "s": 1][String(character)], let count = Int(digits) {
        total += Double(count) * unit
        digits = ""
      } else {
        digits.append(character)
      }
    }
    guard digits.isEmpty, total > 0, total <= longest else {
      throw NumberError(description: "expected a time such as 90s, 30m, 23h or 1d12h, at most 10000d")
    }
    return total
  }
}
