import Reporting
import Search
import Training

extension PlanCommand {
  /// What the steps of a search that train will take: a line for each model.
  func planSearch() throws {
    let search = try SearchJob(path: job, overrides: overrides, ranks: ranks)
    let threads = max(1, Machine.cores / min(ranks, ranksPerHost ?? ranks))
    let matrixRate = Machine.matrixRate(makeBackend(threads: threads)) * Double(ranks)
    var rows = [["step", "model", "steps", "tokens", "parameters", "trained", "ops/token", "peak/rank", "time"]]
    var (tokens, seconds) = (0, 0.0)
    for step in try search.steps() {
      let teacher = try step.job.configurations().teacher
      for candidate in step.candidates {
        let estimates = StepEstimate.phases(
          step.job.phases, student: candidate.configuration, teacher: teacher, ranks: ranks)
        var (time, operations, peak) = (0.0, 0.0, 0)
        for (phase, estimate) in zip(step.job.phases, estimates) {
          let perToken = estimate.operationsPerMicroBatch / Double(phase.microBatch * phase.context)
          operations += perToken * Double(phase.tokens) / Double(step.job.totalTokens)
          time += Double(phase.tokens) / (rate ?? matrixRate * 0.5 / perToken)
          peak = max(peak, estimate.peakBytes)
        }
        rows.append([
          step.name, candidate.name, "\(step.job.totalSteps)", Format.count(Double(step.job.totalTokens)),
          Format.count(Double(estimates.first?.parameters ?? 0)),
          Format.count(Double(estimates.map(\.trained).max() ?? 0)), Format.count(operations),
          Format.bytes(Double(peak + Machine.baseMemory(threads: threads))), Format.duration(time),
        ])
        tokens += step.job.totalTokens
        seconds += time
      }
    }
    print(
      "job \(search.name) (search): \(Format.count(Double(tokens))) tokens to train on, \(Format.counted(ranks, "rank"))"
    )
    print(Format.table(rows))
    print("time \(Format.duration(seconds)), of all candidates one by one; groups of ranks train them side by side")
    print(
      "assumed: "
        + (rate == nil
          ? "every rank has a machine such as this one (\(Int(matrixRate / Double(ranks) / 1e9)) GF/s measured) and makes half of that"
          : "the given rate")
        + "; placements are evaluated in no time; which shapes are tried depends on the block that wins")
  }
}
