import CStack
import Foundation
import Synchronization

/// Ends a job that hangs. A thread of its own looks whether the main thread has been in one phase for far longer than that
/// phase has taken lately, or the next rank gives no sign any more, says which rank, host, phase and step it is, prints the
/// main thread's stack, and leaves; the launcher then ends the other ranks.
///
/// Who is to blame shows in the heartbeats: every rank's thread touches a file in the run folder, and a stopped process,
/// or one on a lost host, does not.
package final class Watchdog: @unchecked Sendable {
  /// What the main thread is doing.
  package enum Phase: String, Sendable, CaseIterable {
    case load, data, compute, reduce, save, write, validate
  }

  private struct State {
    var phase = Phase.load
    var step = 0
    var since = ContinuousClock.now
    /// The longest of the last durations of each phase, fading.
    var longest: [Phase: Double] = [:]
    var isStopping = false
    /// What is being exchanged.
    var exchange: @Sendable () -> String? = { nil }
  }

  private let state = Mutex(State())
  private let rank: Int
  private let size: Int
  private let folder: String
  private let floor: Double
  private let main = pthread_self()

  private static let exitStatus: Int32 = 70
  private static let margin = 10.0

  /// Starts to watch the calling thread, which must be the main one.
  ///
  /// - Parameters:
  ///   - runFolder: where the heartbeats lie; shared by the ranks where their hosts share a file system
  ///   - floor: seconds that any phase may take; 0 watches nothing
  package init(rank: Int, size: Int, runFolder: String, floor: Double) {
    self.rank = rank
    self.size = size
    self.floor = floor
    folder = runFolder + "/.heartbeats"
    guard floor > 0 else { return }
    jettrain_prepare_stacks()
    try? FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    let thread = Thread { [self] in watch() }
    thread.name = "watchdog"
    thread.start()
  }

  /// The main thread begins `phase`, of the same step as the phase before where none is given.
  package func enter(_ phase: Phase, step: Int? = nil) {
    guard floor > 0 else { return }
    state.withLock { state in
      let now = ContinuousClock.now
      let spent = Self.seconds(now - state.since)
      state.longest[state.phase] = max(spent, 0.95 * (state.longest[state.phase] ?? 0))
      (state.phase, state.step, state.since) = (phase, step ?? state.step, now)
    }
  }

  /// Where to ask what is being exchanged.
  func watch(_ exchange: @escaping @Sendable () -> String?) { state.withLock { $0.exchange = exchange } }

  /// `phase` may take as long as this did: a save is written while the main thread does something else, and a slow disk is
  /// no hang.
  package func learn(_ phase: Phase, seconds: Double) {
    state.withLock { $0.longest[phase] = max(seconds, $0.longest[phase] ?? 0) }
  }

  /// Ends the watch.
  package func stop() {
    state.withLock { $0.isStopping = true }
    unlink(heartbeat(rank))
    rmdir(folder)
  }

  /// Seconds that a phase may take now; none where it has not happened yet, since a first step may take hours.
  private func deadline(_ state: State) -> Double {
    state.longest[state.phase].map { max(floor, Self.margin * $0) } ?? .infinity
  }

  /// Whether the next rank's heartbeat has not changed for as long as any phase may take, by this host's clock.
  private func isNeighbourSilent(_ seen: inout (date: Date, at: ContinuousClock.Instant)?) -> Bool {
    guard size > 1,
      let attributes = try? FileManager.default.attributesOfItem(atPath: heartbeat((rank + 1) % size)),
      let date = attributes[.modificationDate] as? Date
    else {
      seen = nil
      return false
    }
    guard let last = seen, last.date == date else {
      seen = (date, .now)
      return false
    }
    return Self.seconds(.now - last.at) > floor
  }

  private func watch() {
    let interval = min(1, floor / 10)
    var seen: (date: Date, at: ContinuousClock.Instant)?
    while true {
      let now = state.withLock { $0 }
      let expired = Self.seconds(.now - now.since) > deadline(now) || isNeighbourSilent(&seen)
      if now.isStopping { return }
      beat(now)
      if expired { expire(now, interval) }
      Thread.sleep(forTimeInterval: interval)
    }
  }

  private func heartbeat(_ rank: Int) -> String { folder + "/rank-\(rank)" }

  private func beat(_ state: State) {
    let text = "\(Self.host) \(state.phase.rawValue) \(state.step)"
    try? Data(text.utf8).write(to: URL(fileURLWithPath: heartbeat(rank)))
  }

  private func expire(_ state: State, _ interval: Double) -> Never {
    let spent = Int(Self.seconds(.now - state.since))
    var text =
      "jettrain: rank \(rank) on \(Self.host) hangs: step \(state.step), \(state.phase.rawValue)"
      + (state.exchange().map { " (\($0))" } ?? "") + " for \(spent) s, "
      + "allowed \(deadline(state).isFinite ? Int(deadline(state)) : Int(floor)) s; the job ends\n"
    for other in 0..<size where other != rank {
      guard let attributes = try? FileManager.default.attributesOfItem(atPath: heartbeat(other)),
        let date = attributes[.modificationDate] as? Date,
        let content = FileManager.default.contents(atPath: heartbeat(other))
      else {
        text += "jettrain: of rank \(other) there is no sign in \(folder)\n"
        continue
      }
      let silence = Date().timeIntervalSince(date)
      let parts = String(decoding: content, as: UTF8.self).split(separator: " ").map(String.init)
      guard parts.count == 3 else { continue }
      if silence > max(5 * interval, 1) {
        text +=
          "jettrain: rank \(other) on \(parts[0]) is silent since \(Int(silence)) s: step \(parts[2]), \(parts[1])\n"
      } else if parts[1] != state.phase.rawValue {
        text += "jettrain: rank \(other) on \(parts[0]) is at step \(parts[2]), \(parts[1])\n"
      }
    }
    FileHandle.standardError.write(Data((text + "jettrain: stack of rank \(rank)'s main thread:\n").utf8))
    jettrain_print_stack(main)
    Thread.sleep(forTimeInterval: 0.5)
    _exit(Self.exitStatus)
  }

  private static let host = ProcessInfo.processInfo.hostName

  private static func seconds(_ duration: Duration) -> Double {
    Double(duration.components.seconds) + Double(duration.components.attoseconds) * 1e-18
  }
}
