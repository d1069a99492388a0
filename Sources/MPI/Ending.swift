import CMPI
import Foundation
import Synchronization

/// How a job ends by a fault: by all ranks together, or by the one that has it.
extension Communicator {
  /// Waits a moment whether all ranks end with an error, as of a bad job: then MPI can be left in order, and the launcher has
  /// nothing to add to what they say.
  ///
  /// - Parameters:
  ///   - code: what this rank would exit with
  ///   - speaks: whether it knows what went wrong itself
  /// - Returns: of the first rank that does, its number and code; nil where some rank goes on, or waits elsewhere
  package func whereAllFail(code: Int32, speaks: Bool, patience: Double = 2) -> (rank: Int, code: Int32)? {
    guard size > 1 else { return (0, code) }
    // By the communicator whose other users exchange messages from one to another, and no collective.
    let own = [Int64(code), speaks ? 1 : 0]
    // A rank that never comes may read and write these for as long as the process lives.
    let (mine, all) = (
      UnsafeMutablePointer<Int64>.allocate(capacity: 2), UnsafeMutablePointer<Int64>.allocate(capacity: 2 * size)
    )
    for (index, value) in own.enumerated() { mine[index] = value }
    let exchange = try? PendingExchange("MPI_Iallgather", []) {
      MPI_Iallgather(mine, 2, jettrain_int64(), all, 2, jettrain_int64(), files.handle, &$1)
    }
    guard let exchange else { return nil }
    let end = ContinuousClock.now + .seconds(patience)
    while ContinuousClock.now < end {
      guard let isDone = try? exchange.isDone() else { return nil }
      if isDone {
        let speaker = (0..<size).first { all[2 * $0 + 1] != 0 } ?? 0
        return (speaker, Int32(all[2 * speaker]))
      }
      usleep(1000)
    }
    return nil
  }

  /// Ends this process with `code` and leaves MPI in order, as all ranks must: what ``whereAllFail(code:speaks:patience:)`` has
  /// shown.
  package func leave(code: Int32) -> Never {
    fflush(nil)
    guard handle != nil else { exit(code) }
    // What other threads left under way must hold up no end.
    Thread.detachNewThread {
      sleep(10)
      _exit(code)
    }
    // None of them enters MPI any more: the turn is never given back.
    return Self.turn.withLock { _ -> Never in
      MPI_Finalize()
      exit(code)
    }
  }

  /// Ends every process of the job at once, with `code`; what an error path calls, since a rank that merely
  /// leaves would let the others wait for ever.
  package func abort(code: Int32) -> Never {
    if handle != nil {
      fflush(nil)
      MPI_Abort(jettrain_comm_world(), code)
    }
    exit(code)
  }
}
