import Files
import Foundation

/// Whether somebody wants the run to stop at a checkpoint: a signal (SIGUSR1, SIGUSR2, the first SIGINT), a time limit, the end of the batch
/// job, or a file `STOP` in the run folder. The answer of one rank rides on the next reduction, so that all ranks stop at
/// the same place.
///
/// SIGTERM is left alone: under Open MPI it can mean that another rank died, and then no collective would ever end.
package final class StopRequest {
  private let end: ContinuousClock.Instant?
  private let deadline: Deadline?
  private let file: String
  /// Whether a step was done: a limit that is shorter than a start would else keep the run where it is for ever.
  private var hasDoneWork = false

  /// Installs the handlers.
  ///
  /// - Parameters:
  ///   - runFolder: where the file `STOP` is looked for
  ///   - maxSeconds: after which the run is to stop; nil for no limit
  ///   - deadline: by which the run is to have stopped; nil for none
  package init(runFolder: String, maxSeconds: Double?, deadline: Deadline? = nil) {
    file = runFolder + "/STOP"
    end = maxSeconds.map { .now + .seconds($0) }
    self.deadline = deadline
    Self.installHandlers()
    // Ctrl-C: the first one saves, the second ends at once. Whatever is no run ends at the first.
    signal(SIGINT) {
      signalled = $0
      signal(SIGINT, SIG_DFL)
      let text: StaticString = "\njettrain: stopping at a checkpoint; Ctrl-C again ends at once, without\n"
      _ = write(2, text.utf8Start, text.utf8CodeUnitCount)
    }
    unblockSignals([SIGINT])
  }

  /// Says that a step was done since the start.
  package func hasWorked() { hasDoneWork = true }

  /// Lets SIGUSR1 and SIGUSR2 ask for a stop instead of ending the process. Called first thing, since a signal may come
  /// while models are loaded.
  package static func installHandlers() {
    for number in [SIGUSR1, SIGUSR2] { signal(number) { signalled = $0 } }
    unblockSignals([SIGUSR1, SIGUSR2])
  }

  /// Why this rank wants to stop; nil when it does not.
  package var reason: String? { reason(looking: true) }

  /// The same, `looking` for the file only where that is asked: one rank of a host does for all.
  func reason(looking: Bool) -> String? {
    if signalled != 0 { return signalled == SIGINT ? "Ctrl-C" : signalled == SIGUSR1 ? "SIGUSR1" : "SIGUSR2" }
    if hasDoneWork, let end, ContinuousClock.now >= end { return "--max-time" }
    if let deadline, deadline.isNear { return "--deadline" }
    guard looking else { return nil }
    FileOperations.looked()
    return access(file, F_OK) == 0 ? file : nil
  }

  /// Says what it takes from the wish to stop to a checkpoint on disk, in seconds, as far as is known.
  package func needs(_ seconds: Double) { deadline?.needs(seconds) }

  /// Removes the file, so that the next start does not stop at once. Called by the coordinator of all ranks, when all have
  /// handled it: groups of them that train side by side look for it each for itself.
  package func consume() { unlink(file) }
}

/// The last signal that asked for a stop; written by the handler alone.
nonisolated(unsafe) private var signalled: Int32 = 0

/// A search or a validation was left because somebody asked for a stop; what was done is kept, the same command goes on.
package struct Stopped: Error, CustomStringConvertible {
  package init() {}
  package var description: String { "stopped as asked; the same command goes on" }
}

/// Lets this thread, and the processes that it starts, receive signals that whoever started this process blocks: threads of
/// many a runtime block them all and hand that down.
package func unblockSignals(_ numbers: [Int32]) {
  var set = sigset_t()
  sigemptyset(&set)
  for number in numbers { sigaddset(&set, number) }
  pthread_sigmask(SIG_UNBLOCK, &set, nil)
}
