import Files
import Foundation
import TestSupport

/// A stopped rank.
func hang() throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  // Also in the very first step, of which nobody knows how long it may take.
  for (point, step) in [(FailPoint.loader, 12), (.step, 12), (.collective, 12), (.step, 1)] {
    let begin = Date()
    let arguments = [
      "distill", "--job", "distill.yaml", "--run-dir", "hang-\(point)-\(step)", "--set", "watchdog.floor=2",
    ]
    let (status, output) = try run.run(
      ranks: 2, arguments, environment: ["JETTRAIN_FAILPOINT": "\(point.rawValue):1:\(step):stop"])
    let seconds = Date().timeIntervalSince(begin)
    print("hang in \(point) of step \(step): ended after \(String(format: "%.1f", seconds)) s")
    tally.check(
      status != 0 && output.contains("rank 1 on") && output.contains("is silent") && seconds < 30,
      "a rank stopped in \(point): \(status)\n\(output.suffix(1500))")
  }
  return tally
}
