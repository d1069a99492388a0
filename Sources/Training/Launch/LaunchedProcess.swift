import Foundation
import Synchronization

/// An mpirun that runs, with the means to end it where it does not end itself: it waits for ever for a rank that died while
/// it started, or for the daemon of a host that is gone.
final class LaunchedProcess: @unchecked Sendable {
  private struct State {
    var text = ""
    /// When its output first said that the job ends.
    var endsSince: Date?
    var isOver = false
  }

  private let process = Process()
  private let errors = Pipe()
  private let state = Mutex(State())

  /// What mpirun, or a watchdog, says once the job is lost.
  private static let lastWords = [
    "; the job ends", "MPI_ABORT was invoked", "mpirun noticed", "Primary job", "lost communication",
  ]
  private static let secondsToEnd = 30.0
  private static let secondsWithoutChild = 10

  /// Starts it.
  init(_ arguments: [String], environment: [String: String]) throws {
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = arguments
    process.environment = ProcessInfo.processInfo.environment.merging(environment) { own, _ in own }
    process.standardError = errors
    try process.run()
    Supervisor.child.store(process.processIdentifier)
  }

  /// Passes on what it says until it ends, or is ended.
  ///
  /// - Returns: the end of what it said, how it ended, and whether by a signal
  func wait() -> (text: String, status: Int32, bySignal: Bool) {
    let watch = Thread { [self] in endWhenStuck() }
    watch.start()
    while case let data = errors.fileHandleForReading.availableData, !data.isEmpty {
      FileHandle.standardError.write(data)
      state.withLock { state in
        state.text = String((state.text + String(decoding: data, as: UTF8.self)).suffix(20_000))
        if state.endsSince == nil, Self.lastWords.contains(where: { state.text.contains($0) }) {
          state.endsSince = Date()
        }
      }
    }
    process.waitUntilExit()
    Supervisor.child.store(0)
    let text = state.withLock { state in
      state.isOver = true
      return state.text
    }
    return (text, process.terminationStatus, process.terminationReason == .uncaughtSignal)
  }

  private func endWhenStuck() {
    var quiet = 0
    while true {
      let now = state.withLock { $0 }
      if now.isOver { return }
      let descendants = Self.descendants(of: process.processIdentifier)
      quiet = descendants.isEmpty ? quiet + 1 : 0
      let isLate = now.endsSince.map { Date().timeIntervalSince($0) > Self.secondsToEnd } ?? false
      if quiet >= Self.secondsWithoutChild || isLate {
        // The connections to other hosts hold its output open, so they go too.
        for child in descendants + [process.processIdentifier] { kill(child, SIGKILL) }
      }
      sleep(1)
    }
  }

  /// Living children of a process, theirs, and so on.
  private static func descendants(of process: Int32) -> [Int32] {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
    var children: [Int32: [Int32]] = [:]
    for name in names {
      guard let child = Int32(name), let data = FileManager.default.contents(atPath: "/proc/\(name)/stat") else {
        continue
      }
      // Behind the name in parentheses: the state and the parent.
      let words = String(decoding: data, as: UTF8.self).split(separator: ")").last?.split(separator: " ") ?? []
      if words.count > 1, words[0] != "Z", let parent = Int32(words[1]) { children[parent, default: []].append(child) }
    }
    var found: [Int32] = []
    var open = [process]
    while let next = open.popLast() {
      found += children[next] ?? []
      open += children[next] ?? []
    }
    return found
  }
}
