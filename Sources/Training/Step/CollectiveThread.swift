import Foundation
import MPI

/// A thread that runs collectives in the order in which they are given: on all ranks the same. The next one begins before
/// the last one has ended, so that the network is never idle between them.
///
/// After a failure it runs no more of them, since the other ranks are not known to take part.
final class CollectiveThread: @unchecked Sendable {
  /// How many collectives must have run.
  typealias Ticket = Int

  /// One collective: what begins it, and what to do with what it brought.
  struct Collective {
    /// For messages.
    let name: String
    let begin: () throws -> PendingExchange
    let finish: () -> Void
  }

  /// How many are under way at once.
  static let depth = 2

  private let condition = NSCondition()
  private var waiting: [Collective] = []
  /// The names of those under way.
  private var names: [String] = []
  private var given = 0
  private var done = 0
  private var failure: (any Error)?
  private var isStopping = false

  /// Starts the thread, which goes on until ``stop()``.
  init() {
    let thread = Thread { [self] in
      var underWay: [(collective: Collective, exchange: PendingExchange)] = []
      while step(&underWay) {}
    }
    thread.name = "collectives"
    thread.start()
  }

  /// Gives it a collective to run.
  @discardableResult func run(_ collective: Collective) -> Ticket {
    condition.withLock {
      given += 1
      waiting.append(collective)
      condition.broadcast()
      return given
    }
  }

  /// Ends the thread once nothing is left to do. It waits for that no longer than a moment: after an error of this rank
  /// the others may never take part again, and what the collectives read lives as long as they.
  func stop() {
    let end = Date().addingTimeInterval(2)
    condition.withLock {
      while done < given, condition.wait(until: end) {}
      isStopping = true
      condition.broadcast()
    }
  }

  /// Begins or ends one collective, or sleeps; false when there will be no more.
  private func step(_ underWay: inout [(collective: Collective, exchange: PendingExchange)]) -> Bool {
    let next = condition.withLock { () -> Collective? in
      while waiting.isEmpty && underWay.isEmpty && !isStopping { condition.wait() }
      return underWay.count < Self.depth && !waiting.isEmpty ? waiting.removeFirst() : nil
    }
    do {
      if let next {
        if failure == nil {
          condition.withLock { names.append(next.name) }
          underWay.append((next, try next.begin()))
        } else {
          count()
        }
      } else if !underWay.isEmpty {
        if try underWay[0].exchange.isDone() {
          underWay[0].collective.finish()
          // Nothing of it is held here any more when its owner learns of its end.
          underWay.removeFirst()
          condition.withLock { _ = names.removeFirst() }
          count()
        } else {
          usleep(Self.pause)
        }
      } else {
        return false
      }
    } catch {
      condition.withLock { failure = error }
      for _ in underWay { count() }
      underWay = []
      if next != nil { count() }
    }
    return true
  }

  private func count() {
    condition.withLock {
      done += 1
      condition.broadcast()
    }
  }

  /// Microseconds between looks at how far the exchanges are.
  private static let pause: UInt32 = 50

  /// What is under way, the oldest first; nil when nothing is.
  var place: String? { condition.withLock { names.first } }

  /// - Returns: Seconds that it took until everything up to `ticket` had run, or failed
  func wait(for ticket: Ticket) -> Double {
    var clock = PhaseClock()
    condition.withLock { while done < ticket { condition.wait() } }
    clock.mark("wait")
    return clock.total
  }

  /// - Returns: Seconds that it took until everything that was given had run, or failed
  func waitUntilIdle() -> Double { wait(for: given) }

  /// - Returns: Seconds that it took
  /// - Throws: What any of the collectives threw
  func waitForAll() throws -> Double {
    let seconds = waitUntilIdle()
    try check()
    return seconds
  }

  /// Throws what any of the collectives threw.
  func check() throws {
    if let failure = condition.withLock({ failure }) { throw failure }
  }
}
