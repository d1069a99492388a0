import Foundation
import TestSupport

/// Data whose losses are not finite: a few steps of it are skipped, of more the whole window after rolling back; a run that is
/// killed on the way ends as one that is not.
func spikes() throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  let job = ["distill", "--job", "distill.yaml", "--set", "spikes.policy=skip", "--set", "spikes.limit=3"]
  // Sequences of phase `end`, 8 a step: steps 14 and 15 of the run are skipped, or 14 to 16, behind the checkpoint of step
  // 10, rolled back.
  for (name, poison, passesOver) in [("skipped", "poison:40:56:nan", false), ("passed", "poison:40:64:nan", true)] {
    let environment = ["JETTRAIN_FAILPOINT": poison]
    let whole = try run.run(ranks: 2, job + ["--run-dir", name], environment: environment)
    tally.check(
      whole.status == 0 && whole.output.contains("skipping sequences") == passesOver
        && whole.output.contains("no update"),
      "\(name): \(whole.status)\n\(whole.output.suffix(1500))")
    for ranks in [1, 4] {
      let other = "\(name)-\(ranks)"
      let first = try run.run(
        ranks: 2, job + ["--run-dir", other, "--stop-at-step", "14"], environment: environment)
      let second = try run.run(ranks: ranks, job + ["--run-dir", other], environment: environment)
      let diff = try run.run(["checkpoint", "diff", name, other])
      tally.check(
        try first.status == 75 && second.status == 0 && diff.output.contains("identical")
          && run.losses(name) == run.losses(other),
        "\(other): \(first.status) \(second.status)\n\(diff.output.suffix(500))\n\(second.output.suffix(1500))")
    }
  }
  let failed = try run.run(
    ranks: 2, ["distill", "--job", "distill.yaml", "--run-dir", "failed"],
    environment: ["JETTRAIN_FAILPOINT": "poison:40:56:nan"])
  tally.check(failed.status == 70 && failed.output.contains("nothing was updated"), failed.output)
  return tally
}
