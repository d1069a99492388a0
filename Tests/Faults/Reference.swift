import Foundation
import TestSupport

/// How many cases there were, and how many failed.
struct Tally {
  var cases = 0
  var failures = 0

  mutating func check(_ isRight: Bool, _ what: @autoclosure () -> String) {
    cases += 1
    if !isRight {
      failures += 1
      print("FAILED: \(what())")
    }
  }
}

/// What an undisturbed run leaves.
struct Reference {
  let run: SmallRun
  let name: String
  let losses: [String]

  init(_ run: SmallRun, _ name: String, job: [String] = []) throws {
    self.run = run
    self.name = name
    let (status, output) = try run.run(["distill", "--job", "distill.yaml", "--run-dir", name] + job)
    guard status == 0 else { throw SmallRun.Failure(description: output) }
    losses = try run.losses(name)
  }

  /// Whether `other` has the same weights and the same losses at every step, each step once.
  func equals(_ other: String) throws -> Bool {
    let diff = try run.run(["checkpoint", "diff", name, other])
    return try diff.status == 0 && diff.output.contains("identical") && run.losses(other) == losses
  }
}
