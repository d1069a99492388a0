import Foundation

/// Looks for a rank that holds the others up in one phase of the steps, time and again.
struct Straggler {
  private let phase: String
  /// Of the steps since the last look: how many there were, and in how many of them each rank was slow.
  private var steps = 0
  private var slowSteps: [Int: Int] = [:]

  /// What a rank must take of the median of all, and how much of a step it must cost.
  private static let ratio = 1.5
  private static let share = 0.05
  /// Steps between looks, and in how many of them a rank must be slow: a busy machine makes any rank slow now and then.
  private static let window = 50
  private static let slowShare = 0.7

  init(phase: String) { self.phase = phase }

  /// - Parameters:
  ///   - seconds: that every rank took for the phase
  ///   - step: seconds of the whole step
  /// - Returns: what there is to say, now and then
  mutating func report(_ seconds: [Double], step: Double) -> String? {
    let sorted = seconds.sorted()
    let median = sorted[(sorted.count - 1) / 2]
    let slowest = seconds.indices.max { seconds[$0] < seconds[$1] }!
    steps += 1
    if seconds[slowest] > Self.ratio * median && seconds[slowest] - median > Self.share * step {
      slowSteps[slowest, default: 0] += 1
    }
    guard steps == Self.window else { return nil }
    defer { (steps, slowSteps) = (0, [:]) }
    guard let (rank, count) = slowSteps.max(by: { $0.value < $1.value }),
      Double(count) >= Self.slowShare * Double(steps)
    else { return nil }
    let times = String(format: "%.1f", seconds[rank] / max(median, 1e-9))
    return "rank \(rank) held the others up in \(count) of \(steps) steps: \(phase) takes it \(times) times the median"
  }
}
