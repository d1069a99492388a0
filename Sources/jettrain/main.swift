import ArgumentParser
import Foundation

// A write to a closed pipe is an error to report, not a reason to die.
signal(SIGPIPE, SIG_IGN)
JettrainCommand.main()
