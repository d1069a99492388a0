import Foundation

/// Looks for a rank that holds the others up in one phase of the steps, time and again.
struct Straggler {
  private let phase: String
  private var rank = 0
  /// Steps in a row.
  private var steps = 0

  /// What a rank must take of the median of all, and how much of a step it must cost.
  private static let ratio = 1.5
  private static let share = 0.05
  private static let stepsBetweenReports = 50

  init(phase: String) { self.phase = phase }

  /// - Parameters:
  ///   - seconds: that every rank took for the phase
  ///   - step: seconds of the whole step
  /// - Returns: what there is to say, now and then
  mutating func report(_ seconds: [Double], step: Double) -> String? {
    let sorted = seconds.sorted()
    let median = sorted[(sorted.count - 1) / 2]
    let slowest = seconds.indices.max { seconds[$0] < seconds[$1] }!
    let isSlow = seconds[slowest] > Self.ratio * median && seconds[slowest] - median > Self.share * step
    steps = isSlow ? (slowest == rank ? steps + 1 : 1) : 0
    rank = slowest
    guard steps > 0, steps % Self.stepsBetweenReports == 0 else { return nil }
    let times = String(format: "%.1f", seconds[slowest] / max(median, 1e-9))
    return "rank \(rank) has held the others up for \(steps) steps: \(phase) takes it \(times) times the median"
  }
}
