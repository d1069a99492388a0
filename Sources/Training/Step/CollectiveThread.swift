import Fabric
import Foundation
import Tensors

/// A thread that runs collectives in the order in which they are given: on all ranks the same. The next one begins before
/// the last one has ended, so that the network is never idle between them.
///
/// After a failure it runs no more of them, since the other ranks are not known to take part.
final class CollectiveThread: @unchecked Sendable {
  /// How many collectives must have run.
  typealias Ticket = Int

  /// One collective: what begins it, and what to do with what it brought, which may be asked of a device.
  struct Collective {
    /// For messages.
    let name: String
    let begin: () throws -> any Transfer
    let finish: () -> any Event
  }

  /// One that an error left under way.
  private final class Abandoned {
    let collective: Collective
    let transfer: any Transfer

    init(collective: Collective, transfer: any Transfer) { (self.collective, self.transfer) = (collective, transfer) }
  }

  /// How many are under way at once.
  static let depth = 2

  private let condition = NSCondition()
  private var waiting: [Collective] = []
  /// The names of those under way.
  private var names: [String] = []
  private var given = 0
  private var done = 0
  /// Passes when the last one that ended is done on the device, too; those before it are, then.
  private var event: any Event = PassedEvent()
  private var failure: (any Error)?
  private var isStopping = false

  /// Starts the thread, which goes on until ``stop()``.
  init() {
    let thread = Thread { [self] in
      var underWay: [(collective: Collective, transfer: any Transfer)] = []
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
  private func step(_ underWay: inout [(collective: Collective, transfer: any Transfer)]) -> Bool {
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
        if try underWay[0].transfer.isDone() {
          let event = underWay[0].collective.finish()
          // Nothing of it is held here any more when its owner learns of its end.
          underWay.removeFirst()
          condition.withLock { _ = names.removeFirst() }
          count(event)
        } else {
          usleep(Self.pause)
        }
      } else {
        return false
      }
    } catch {
      condition.withLock { failure = error }
      for _ in underWay { count() }
      // MPI may still read and write what these exchange, for as long as the process lives.
      for each in underWay {
        _ = Unmanaged.passRetained(Abandoned(collective: each.collective, transfer: each.transfer))
      }
      underWay = []
      if next != nil { count() }
    }
    return true
  }

  private func count(_ event: (any Event)? = nil) {
    condition.withLock {
      done += 1
      if let event { self.event = event }
      condition.broadcast()
    }
  }

  /// Microseconds between looks at how far the exchanges are.
  private static let pause: UInt32 = 50

  /// What is under way, the oldest first; nil when nothing is.
  var place: String? { condition.withLock { names.first } }

  /// Waits until everything up to `ticket` has run.
  ///
  /// - Returns: seconds that it took, and what passes when it is done on the device
  /// - Throws: what any of the collectives threw
  func wait(for ticket: Ticket) throws -> (seconds: Double, event: any Event) {
    var clock = PhaseClock()
    let passed = try condition.withLock {
      while done < ticket { condition.wait() }
      if let failure { throw failure }
      return event
    }
    clock.mark("wait")
    return (clock.total, passed)
  }

  /// Waits until everything that was given has run.
  func waitForAll() throws -> (seconds: Double, event: any Event) { try wait(for: condition.withLock { given }) }
}
