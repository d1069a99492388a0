import CStack
import Files
import Foundation
import MPI
import Synchronization

/// Ends a job that hangs. A thread of its own looks whether the main thread has been in a step, or in one phase outside of
/// steps, for far longer than that has taken lately, or another rank gives no sign any more, says which rank, host, phase
/// and step it is, prints the main thread's stack, and leaves; the launcher then ends the other ranks.
///
/// Time is counted in the thread's own looks, not by a clock: when a whole job is suspended, or a file system that all
/// wait for stands still, nobody counts.
///
/// Who is to blame shows in the life signs: each rank watches the next one of its host through shared memory, and of each
/// host one rank watches the next host through a file in the run folder. Silence alone ends nothing: the watcher must have
/// come to a stand for as long. A file that cannot be written is told, and then nobody goes by files.
package final class Watchdog: @unchecked Sendable {
  /// What the main thread is doing.
  package enum Phase: Int, Sendable, CaseIterable {
    case load, data, compute, reduce, save, write, validate

    /// Whether it is part of a step, which is judged as a whole.
    var isOfStep: Bool { [.data, .compute, .reduce].contains(self) }
  }

  private struct State {
    var phase = Phase.load
    var step = 0
    /// Looks so far; those when the phase, and the step, began.
    var ticks = 0
    var phaseBegan = 0
    var stepBegan = 0
    /// The longest of the last durations of steps, and of each phase outside of them, fading; in seconds.
    var longestStep: Double?
    var longest: [Phase: Double] = [:]
    var isStopping = false
    var ignoresFiles = false
    var isMute = false
    /// What is being exchanged.
    var exchange: @Sendable () -> String? = { nil }
  }

  private let state = Mutex(State())
  private let rank: Int
  private let size: Int
  private let folder: String
  private let floor: Double
  private let interval: Double
  private let signs: LifeSigns?
  private let main = pthread_self()

  private static let exitStatus: Int32 = 70
  private static let margin = 10.0

  /// Starts to watch the calling thread, which must be the main one. Every rank must call it.
  ///
  /// - Parameters:
  ///   - run: where the files of the hosts lie, in a folder of this session, and seen by the ranks whose hosts share it
  ///   - floor: seconds that any phase may take; 0 watches nothing
  package init(_ world: Communicator, runFolder: String, session: String, floor: Double) throws {
    (rank, size, self.floor) = (world.rank, world.size, floor)
    folder = runFolder + "/.heartbeats/" + session
    interval = min(1, floor / 10)
    guard floor > 0 else {
      signs = nil
      return
    }
    let signs = try LifeSigns(world, session: session)
    self.signs = signs
    jettrain_prepare_stacks()
    if signs.speaksForHost {
      try? FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    }
    let thread = Thread { [self] in watch(signs) }
    thread.name = "watchdog"
    thread.start()
  }

  /// The file that changes as long as the coordinator's host lives.
  package static func signs(ofRun folder: String, session: String) -> String {
    folder + "/.heartbeats/" + session + "/host-0"
  }

  /// Removes what other sessions left: they are over.
  package static func removeOld(in runFolder: String, but session: String) {
    let folder = runFolder + "/.heartbeats"
    for name in (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? [] where name != session {
      try? FileManager.default.removeItem(atPath: folder + "/" + name)
    }
  }

  /// The main thread begins `phase`, of the same step as the phase before where none is given.
  package func enter(_ phase: Phase, step: Int? = nil) {
    guard floor > 0 else { return }
    state.withLock { state in
      if state.phase.isOfStep {
        if phase == .data || !phase.isOfStep {
          let spent = Double(state.ticks - state.stepBegan) * interval
          state.longestStep = max(spent, 0.95 * (state.longestStep ?? 0))
        }
      } else {
        let spent = Double(state.ticks - state.phaseBegan) * interval
        state.longest[state.phase] = max(spent, 0.95 * (state.longest[state.phase] ?? 0))
      }
      if phase == .data || !state.phase.isOfStep { state.stepBegan = state.ticks }
      (state.phase, state.step, state.phaseBegan) = (phase, step ?? state.step, state.ticks)
    }
  }

  /// What took long may take another time from now on: the phase of the job, or the batch, changes.
  package func forget() {
    state.withLock { state in
      state.longestStep = nil
      state.longest = [:]
    }
  }

  /// Where to ask what is being exchanged.
  func watch(_ exchange: @escaping @Sendable () -> String?) { state.withLock { $0.exchange = exchange } }

  /// `phase` may take as long as this did: a save is written while the main thread does something else, and a slow disk is
  /// no hang.
  package func learn(_ phase: Phase, seconds: Double) {
    state.withLock { $0.longest[phase] = max(seconds, $0.longest[phase] ?? 0) }
  }

  /// Whether this rank is the one of its host that looks at the run folder for all.
  var speaksForHost: Bool { signs?.speaksForHost ?? true }

  /// Whether this rank cannot write the file of its host.
  var isMute: Bool { state.withLock { $0.isMute } }

  /// Whether some host cannot write its file, as the ranks told each other: nobody is judged by files then.
  func ignoreFiles(_ ignores: Bool) { state.withLock { $0.ignoresFiles = ignores } }

  /// Ends the watch.
  package func stop() {
    guard let signs else { return }
    state.withLock { $0.isStopping = true }
    guard signs.speaksForHost else { return }
    unlink(file(signs.local[0]))
    rmdir(folder)
    rmdir((folder as NSString).deletingLastPathComponent)
  }

  private func file(_ first: Int) -> String { folder + "/host-\(first)" }

  /// Seconds that a step, or a phase outside of steps, may take now; none where there was none yet, since a first one may
  /// take hours.
  private func deadline(_ state: State) -> Double {
    let longest = state.phase.isOfStep ? state.longestStep : state.longest[state.phase]
    return longest.map { max(floor, Self.margin * $0) } ?? .infinity
  }

  /// Counts how long something has not changed, in looks.
  private struct Stillness<Value: Equatable> {
    var value: Value?
    var ticks = 0

    mutating func look(at now: Value?) {
      ticks = now == value && now != nil ? ticks + 1 : 0
      value = now
    }
  }

  private func watch(_ signs: LifeSigns) {
    var local = Stillness<Int>()
    var host = Stillness<String>()
    var descriptor: Int32 = -1
    defer { if descriptor >= 0 { close(descriptor) } }
    while true {
      let now = state.withLock { state in
        state.ticks += 1
        return state
      }
      if now.isStopping { return }
      signs.set(.init(ticks: now.ticks, step: now.step, phase: now.phase.rawValue, isMute: now.isMute))
      var canWrite = true
      if signs.speaksForHost {
        canWrite = write(signs.text, &descriptor)
        if canWrite == now.isMute { state.withLock { $0.isMute = !canWrite } }
      }
      local.look(at: signs.nextLocal.map { signs.row($0).ticks })
      if signs.speaksForHost { host.look(at: signs.nextHost.flatMap { read(file($0[0])) }) }
      let began = now.phase.isOfStep ? now.stepBegan : now.phaseBegan
      let isLate = Double(now.ticks - began) * interval > deadline(now)
      let isStanding = Double(now.ticks - now.phaseBegan) * interval > floor
      let silence = max(local.ticks, canWrite && !now.ignoresFiles ? host.ticks : 0)
      if isLate || (isStanding && Double(silence) * interval > floor) { expire(now, signs, silence: silence) }
      Thread.sleep(forTimeInterval: interval)
    }
  }

  /// Replaces the content of the host's file, which stays open and is reached through no link.
  private func write(_ text: String, _ descriptor: inout Int32) -> Bool {
    if descriptor < 0 {
      descriptor = open(file(rank), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o666)
      FileOperations.opened()
    }
    guard descriptor >= 0 else { return false }
    let count = text.utf8.count
    let isWritten =
      !FailPoint.isBroken(.heartbeat) && text.withCString { pwrite(descriptor, $0, count, 0) } == count
      && ftruncate(descriptor, off_t(count)) == 0
    if !isWritten {
      close(descriptor)
      descriptor = -1
    }
    return isWritten
  }

  private func read(_ path: String) -> String? {
    FileManager.default.contents(atPath: path).map { String(decoding: $0, as: UTF8.self) }
  }

  /// How the ranks are, as far as this one sees.
  private func rows(_ signs: LifeSigns) -> [Int: LifeSigns.Row] {
    var rows: [Int: LifeSigns.Row] = [:]
    for ranks in signs.hosts {
      if ranks == signs.local {
        for rank in ranks { rows[rank] = signs.row(rank) }
      } else if let text = read(file(ranks[0])) {
        rows.merge(LifeSigns.parse(text)) { $1 }
      }
    }
    return rows
  }

  private func expire(_ state: State, _ signs: LifeSigns, silence: Int) -> Never {
    let host = signs.names[rank]
    let began = state.phase.isOfStep ? state.stepBegan : state.phaseBegan
    let spent = Int(Double(state.ticks - began) * interval)
    let allowed = deadline(state)
    var text =
      "jettrain: rank \(rank) on \(host) hangs: step \(state.step), \(state.phase)"
      + (state.exchange().map { " (\($0))" } ?? "") + " for \(spent) s, "
      + "allowed \(Int(allowed.isFinite ? allowed : floor)) s; the job ends\n"
    // Who is alive shows by a second look.
    let first = rows(signs)
    Thread.sleep(forTimeInterval: max(5 * interval, 1))
    let second = rows(signs)
    for other in 0..<size where other != rank {
      guard let row = second[other] else {
        text += "jettrain: of rank \(other) on \(signs.names[other]) there is no sign in \(folder)\n"
        continue
      }
      let phase = Phase(rawValue: row.phase).map { "\($0)" } ?? "?"
      if first[other]?.ticks == row.ticks {
        let seconds = Int(max(Double(silence) * interval, 5 * interval, 1))
        text +=
          "jettrain: rank \(other) on \(signs.names[other]) is silent since \(seconds) s: step \(row.step), \(phase)\n"
      } else if row.phase != state.phase.rawValue {
        text += "jettrain: rank \(other) on \(signs.names[other]) is at step \(row.step), \(phase)\n"
      }
    }
    FileHandle.standardError.write(Data((text + "jettrain: stack of rank \(rank)'s main thread:\n").utf8))
    jettrain_print_stack(main)
    Thread.sleep(forTimeInterval: 0.5)
    _exit(Self.exitStatus)
  }
}
