import Foundation
import Synchronization

/// Places where a test lets something go wrong in the real program (docs/reliability.md): the environment variable
/// `JETTRAIN_FAILPOINT` names one as `PLACE:RANK:STEP:ACTION`, and it happens there once. Without it a place costs one
/// look at a constant.
package enum FailPoint: String, Sendable, CaseIterable {
  case loader, step, collective, replicas
  case beforeShard = "before-shard"
  case midShard = "mid-shard"
  case beforeManifest = "before-manifest"
  case beforeRename = "before-rename"
  case beforeLatest = "before-latest"
  case afterLatest = "after-latest"
  case metrics
  case heartbeat
  /// Reading of a checkpoint, and of a frame of a token shard.
  case checkpointRead = "checkpoint-read"
  case shardRead = "shard-read"

  /// What happens.
  package enum Action: String, Sendable, CaseIterable {
    /// The process is killed, or stopped.
    case kill, stop
    /// The disk is full, or broken.
    case enospc, eio
    /// A second passes.
    case slow
    /// Of what a write is given the disk takes a part, as it may.
    case short
    /// A byte of a written shard changes, or a bit in memory; or the second half of a shard is lost.
    case flip, truncate
    /// Every step takes longer from now on.
    case lag
  }

  private struct Plan {
    let point: FailPoint
    let rank: Int
    let step: Int
    let action: Action

    /// A shard is damaged in the save of the very step: an earlier one may be under way still.
    func isMeant(_ path: String) -> Bool {
      ![.flip, .truncate].contains(action) || path.contains(String(format: "step-%08d", step))
    }
  }

  private static let plan: Plan? = {
    let parts = ProcessInfo.processInfo.environment["JETTRAIN_FAILPOINT"]?.split(separator: ":").map(String.init) ?? []
    guard parts.count == 4, let point = FailPoint(rawValue: parts[0]), let rank = Int(parts[1]),
      let step = Int(parts[2]), let action = Action(rawValue: parts[3])
    else { return nil }
    return Plan(point: point, rank: rank, step: step, action: action)
  }()
  private static let hasHappened = Atomic(false)
  private static let currentRank = Atomic(0)
  private static let currentStep = Atomic(0)

  /// Says who this process is and which step it is at.
  package static func at(rank: Int, step: Int) {
    guard plan != nil else { return }
    currentRank.store(rank, ordering: .relaxed)
    currentStep.store(step, ordering: .relaxed)
  }

  /// Whether one of these sequences is poisoned (`poison:FIRST:END:nan`): the losses of its step count as not finite,
  /// whenever it is read.
  package static func poisons(_ sequences: Range<Int>) -> Bool {
    poison.map { $0.overlaps(sequences) } ?? false
  }

  private static let poison: Range<Int>? = {
    let parts = ProcessInfo.processInfo.environment["JETTRAIN_FAILPOINT"]?.split(separator: ":").map(String.init) ?? []
    guard parts.count == 4, parts[0] == "poison", let first = Int(parts[1]), let end = Int(parts[2]), first < end
    else { return nil }
    return first..<end
  }()

  /// Lets the fault happen that was planned for here, once its step has come.
  package static func reach(_ point: FailPoint, path: String = "") throws {
    guard let plan, plan.point == point, plan.rank == currentRank.load(ordering: .relaxed),
      plan.step <= currentStep.load(ordering: .relaxed), plan.isMeant(path),
      !hasHappened.exchange(true, ordering: .relaxed)
    else { return }
    switch plan.action {
    case .kill: kill(getpid(), SIGKILL)
    case .stop: kill(getpid(), SIGSTOP)
    case .slow: sleep(1)
    case .lag: break
    case .short: shortens.store(true, ordering: .relaxed)
    case .flip, .truncate: damage(path, truncating: plan.action == .truncate)
    case .enospc:
      errno = ENOSPC
      throw FileError.system(path, "cannot be written")
    case .eio:
      errno = EIO
      throw FileError.system(path, "cannot be written")
    }
  }

  /// Lets a rank be slow that shall be.
  package static func lag() {
    guard let plan, plan.action == .lag, plan.rank == currentRank.load(ordering: .relaxed),
      plan.step <= currentStep.load(ordering: .relaxed)
    else { return }
    usleep(30_000)
  }

  /// Whether the disk is broken here, from the step on for ever.
  package static func isBroken(_ point: FailPoint) -> Bool {
    guard let plan, plan.point == point, plan.rank == currentRank.load(ordering: .relaxed),
      plan.step <= currentStep.load(ordering: .relaxed)
    else { return false }
    return plan.action == .eio
  }

  /// Whether a bit in memory shall change here, once.
  package static func flips(_ point: FailPoint) -> Bool {
    guard let plan, plan.action == .flip, plan.point == point, plan.rank == currentRank.load(ordering: .relaxed),
      plan.step <= currentStep.load(ordering: .relaxed)
    else { return false }
    return !hasHappened.exchange(true, ordering: .relaxed)
  }

  private static let shortens = Atomic(false)

  /// How many of `count` bytes the next write gives to the disk.
  static func length(_ count: Int) -> Int {
    count > 1 && shortens.exchange(false, ordering: .relaxed) ? count / 2 : count
  }

  /// Damages the first shard in a folder.
  private static func damage(_ folder: String, truncating: Bool) {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
    guard let name = names.filter({ $0.hasPrefix("shard-") }).min(),
      var bytes = FileManager.default.contents(atPath: folder + "/" + name), !bytes.isEmpty
    else { return }
    if truncating { bytes = bytes.prefix(bytes.count / 2) } else { bytes[bytes.count / 2] ^= 1 }
    try? bytes.write(to: URL(fileURLWithPath: folder + "/" + name))
  }
}
