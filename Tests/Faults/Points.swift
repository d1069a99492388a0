import Files
import Foundation
import NN
import TestSupport

/// Every fail point on every rank, then a resume at another number of ranks.
func points(seed: UInt64) throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  // Also with a teacher as one downloads it.
  let teachers = ["teacher/model", "teacher-bfloat16"].map { ["--set", "model.teacher=\($0)"] }
  let references = try teachers.enumerated().map { try Reference(run, "reference-\($0)", job: $1) }
  var random = RandomStream(seed: seed, name: "faults")
  var cases: [(ranks: Int, point: FailPoint, rank: Int, step: Int, action: FailPoint.Action)] = []
  let writing: Set<FailPoint> = [
    .beforeShard, .midShard, .beforeManifest, .beforeRename, .beforeLatest, .afterLatest, .metrics,
  ]
  let byCoordinator: Set<FailPoint> = [.beforeManifest, .beforeRename, .beforeLatest, .afterLatest, .metrics]
  // Others are in `jettrain-faults operators`.
  let elsewhere: Set<FailPoint> = [.replicas, .heartbeat, .checkpointRead, .shardRead]
  for point in FailPoint.allCases where !elsewhere.contains(point) {
    for action in FailPoint.Action.allCases where action != .stop {
      switch action {
      case .enospc: if !writing.contains(point) { continue }
      case .eio: if (!writing.contains(point) && point != .loader) || point == .metrics { continue }
      case .lag: continue
      case .short: if point != .midShard { continue }
      case .flip, .truncate: if point != .beforeRename { continue }
      default: break
      }
      for rank in byCoordinator.contains(point) ? 0..<1 : 0..<2 {
        cases.append((2, point, rank, 4 + Int(random.next() % 12), action))
      }
      // The last save of all must not be lost either.
      if writing.contains(point), ![.flip, .truncate].contains(action) { cases.append((2, point, 0, 20, action)) }
      if random.next() % 3 == 0 {
        let rank = byCoordinator.contains(point) ? 0 : Int(random.next() % 4)
        cases.append((4, point, rank, 4 + Int(random.next() % 12), action))
      }
    }
  }
  for (index, item) in cases.enumerated() {
    let name = "case-\(index)"
    let damages = [.flip, .truncate].contains(item.action)
    // The save that is damaged on disk shall be the one that the next start finds.
    let step = damages ? 15 : item.step
    let fault = "\(item.point.rawValue):\(item.rank):\(step):\(item.action.rawValue)"
    let reference = references[index % 2]
    let arguments = ["distill", "--job", "distill.yaml", "--run-dir", name] + teachers[index % 2]
    let end = damages ? ["--stop-at-step", "15"] : []
    let first = try run.run(ranks: item.ranks, arguments + end, environment: ["JETTRAIN_FAILPOINT": fault])
    // A full or broken disk and a slow one do not end a run; data that cannot be read do.
    let survives = item.action != .kill && item.point != .loader || item.action == .slow
    tally.check(
      damages ? first.status == 75 : survives ? first.status == 0 : first.status != 0,
      "\(fault) at n = \(item.ranks) ended with \(first.status)\n\(first.output.suffix(600))")
    if survives, [.enospc, .eio].contains(item.action) {
      // Behind the renaming the checkpoint is there.
      let word: String =
        switch item.point {
        case .metrics: "its lines are kept in memory"
        case .beforeLatest, .afterLatest: "is whole, but"
        default: "SAVE FAILED"
        }
      tally.check(first.output.contains(word), "\(fault) was not reported")
    }
    let ranks = [1, 2, 4][index % 3]
    let second = try run.run(ranks: ranks, arguments)
    if damages { tally.check(second.output.contains("is damaged and skipped"), "\(fault) went unnoticed") }
    tally.check(
      try second.status == 0 && reference.equals(name),
      "\(fault) at n = \(item.ranks), resumed at n = \(ranks), differs\n\(second.output.suffix(600))")
    try? FileManager.default.removeItem(atPath: run.folder + "/" + name)
  }
  print("points: \(cases.count) faults, resumed at n = 1, 2, 4 in turn")
  return tally
}
