import ArgumentParser
import Foundation
import Training

// A write to a closed pipe is an error to report, not a reason to die.
signal(SIGPIPE, SIG_IGN)
// A wish to stop may come before the run looks for one.
StopRequest.installHandlers()
if let threads = ProcessInfo.processInfo.environment["JETTRAIN_THREADS"] {
  do { _ = try Whole.from(1, to: Most.threads)(threads) } catch {
    fail(JobError(.usage, "JETTRAIN_THREADS=\(threads): \(error)"))
  }
}
do {
  var command = try JettrainCommand.parseAsRoot()
  try command.run()
} catch {
  endOfArguments(error)
}
