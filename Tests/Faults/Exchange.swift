import Foundation
import MPI

/// Two ranks, of which one comes a second late to a sum: what the second thread of the other has to begin meanwhile begins,
/// and ends, at once.
func exchange() throws -> Tally {
  var tally = Tally()
  try withMPI { world in
    let start = ContinuousClock.now
    @Sendable func since() -> Double {
      let elapsed = (ContinuousClock.now - start).components
      return Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
    }
    let communicator = world.background
    let done = DispatchSemaphore(value: 0)
    nonisolated(unsafe) var seconds = 0.0
    nonisolated(unsafe) let word = UnsafeMutablePointer<Int64>.allocate(capacity: 1)
    word.initialize(to: Int64(world.rank))
    let thread = Thread {
      // Rank 0 is in the sum by now.
      usleep(300_000)
      if let transfer = try? communicator.maximum(word) {
        while (try? transfer.isDone()) == false { usleep(50) }
      }
      seconds = since()
      done.signal()
    }
    thread.start()
    if world.rank == 1 { usleep(1_500_000) }
    var values = [Int64(1)]
    try world.sum(&values)
    done.wait()
    let all = try world.allGather([seconds])
    guard world.isCoordinator else { return }
    print("exchange: begun at 0.3 s beside a sum that ends at 1.5 s, done after \(all) s")
    tally.check(values[0] == Int64(world.size), "the sum is \(values[0])")
    tally.check(word.pointee == Int64(world.size - 1), "the maximum is \(word.pointee)")
    tally.check(all.allSatisfy { $0 < 1.2 }, "it waited for the sum")
  }
  return tally
}
