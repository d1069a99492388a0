// Lets things go wrong in the real program and compares what comes of it with a run in which nothing did:
//   jettrain-faults points [SEED]      every fail point on every rank, then a resume at another world size
//   jettrain-faults kills COUNT [SEED] random kills of random ranks of one supervised run
//   jettrain-faults signals COUNT [SEED] SIGUSR1 at random moments
//   jettrain-faults stops COUNT [SEED] a STOP file at random moments of steps that take seconds
//   jettrain-faults flips [STRIDE]     every byte, or every so many, of a small checkpoint and token shard
//   jettrain-faults hang               a stopped rank
//   jettrain-faults spikes             losses that are not finite
//   jettrain-faults operators          what operators meet: disks, locks, suspended jobs, bad reads
//   jettrain-faults exchange           under mpirun: what one thread waits for does not hold up the other
//   jettrain-faults hosts              faults of hosts and links: Cluster/testbed/testbed 2 jettrain-faults hosts
// Prints how many cases there were and how many failed; exits with 1 when any did. `JETTRAIN` names the program.

import Foundation
import Training

// A test runner's threads block all signals, and mpirun, which inherits that, would pass none on.
unblockSignals([SIGUSR1])
let arguments = CommandLine.arguments
let numbers = arguments.dropFirst(2).compactMap { Int($0) }
do {
  let tally: Tally
  switch arguments.dropFirst().first {
  case "points": tally = try points(seed: UInt64(numbers.first ?? 1))
  case "kills": tally = try kills(count: numbers.first ?? 200, seed: UInt64(numbers.dropFirst().first ?? 1))
  case "signals": tally = try signals(count: numbers.first ?? 50, seed: UInt64(numbers.dropFirst().first ?? 1))
  case "stops": tally = try stops(count: numbers.first ?? 20, seed: UInt64(numbers.dropFirst().first ?? 1))
  case "flips": tally = try flips(every: max(1, numbers.first ?? 1))
  case "hang": tally = try hang()
  case "spikes": tally = try spikes()
  case "operators": tally = try operators()
  case "exchange": tally = try exchange()
  case "hosts": tally = try hosts()
  default:
    print(
      "usage: jettrain-faults points [SEED] | kills COUNT [SEED] | signals COUNT [SEED] | stops COUNT [SEED] | flips [STRIDE] | hang | spikes | operators | exchange | hosts"
    )
    exit(64)
  }
  print("\(tally.cases) cases, \(tally.failures) failures")
  exit(tally.failures == 0 ? 0 : 1)
} catch {
  print("\(error)")
  exit(1)
}
