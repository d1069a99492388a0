import Foundation

/// A thread that runs collectives, one after the other, in the order in which they are given: on all ranks the same.
///
/// After a failure it runs no more of them, since the other ranks are not known to take part.
final class CollectiveThread: @unchecked Sendable {
  /// How many collectives must have run.
  typealias Ticket = Int

  private let queue = DispatchQueue(label: "collectives", qos: .userInitiated)
  private let condition = NSCondition()
  private var given = 0
  private var done = 0
  private var failure: (any Error)?

  /// Gives it `collective` to run.
  @discardableResult func run(_ collective: @escaping @Sendable () throws -> Void) -> Ticket {
    given += 1
    queue.async { [self] in
      do {
        if condition.withLock({ failure == nil }) { try collective() }
      } catch {
        condition.withLock { failure = error }
      }
      condition.withLock {
        done += 1
        condition.broadcast()
      }
    }
    return given
  }

  /// - Returns: Seconds that it took until everything up to `ticket` had run, or failed
  func wait(for ticket: Ticket) -> Double {
    let start = ContinuousClock.now
    condition.withLock { while done < ticket { condition.wait() } }
    let elapsed = (ContinuousClock.now - start).components
    return Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
  }

  /// - Returns: Seconds that it took until everything that was given had run, or failed
  func waitUntilIdle() -> Double { wait(for: given) }

  /// - Returns: Seconds that it took
  /// - Throws: What any of the collectives threw
  func waitForAll() throws -> Double {
    let seconds = waitUntilIdle()
    if let failure = condition.withLock({ failure }) { throw failure }
    return seconds
  }
}
