import ArgumentParser
import Foundation
import Training

// A write to a closed pipe is an error to report, not a reason to die.
signal(SIGPIPE, SIG_IGN)
// A wish to stop may come before the run looks for one.
StopRequest.installHandlers()
JettrainCommand.main()
