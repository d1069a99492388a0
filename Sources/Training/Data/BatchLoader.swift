import Foundation
import Synchronization
import TokenStreams

/// Reads a rank's micro-batches, those of the next step on a thread of its own while this one computes.
///
/// The open shards that plans share serve one thread at a time: whoever else reads from a plan does so within
/// ``exclusively(_:)``.
final class BatchLoader {
  /// What a rank reads of a step: where its data comes from, and the sequences of each of its micro-batches.
  struct Request: Sendable, Equatable {
    let phase: Int
    let microBatches: [Range<Int>]
  }

  /// One reading under way or done.
  private final class Reading: @unchecked Sendable {
    let request: Request
    let done = DispatchSemaphore(value: 0)
    /// Written before `done` is signalled.
    var result: Result<[SequenceBatch], any Error>?

    init(_ request: Request) { self.request = request }
  }

  /// Plans are handed to the thread and back, never used by two at once.
  private struct Plans: @unchecked Sendable { let all: [DataPlan] }

  private let plans: Plans
  private let queue = DispatchQueue(label: "jettrain.loader")
  private var ahead: Reading?

  /// - Parameter plans: of the phases
  init(_ plans: [DataPlan]) { self.plans = Plans(all: plans) }

  private static func read(_ request: Request, from plans: Plans) throws -> [SequenceBatch] {
    try request.microBatches.map { try plans.all[request.phase].read($0) }
  }

  /// Begins to read what is likely to be asked for next. A failure shows when it is.
  func prefetch(_ request: Request) {
    waitForReading()
    let reading = Reading(request)
    ahead = reading
    queue.async { [plans] in
      reading.result = Result { try Self.read(request, from: plans) }
      reading.done.signal()
    }
  }

  /// The micro-batches of a step: those that were read ahead, where they are the ones that are asked for.
  func batches(_ request: Request) throws -> [SequenceBatch] {
    waitForReading()
    if let ahead, ahead.request == request {
      self.ahead = nil
      return try ahead.result!.get()
    }
    ahead = nil
    return try Self.read(request, from: plans)
  }

  /// Lets the caller read from the plans.
  func exclusively<Value>(_ body: () throws -> Value) rethrows -> Value {
    waitForReading()
    return try body()
  }

  private func waitForReading() {
    guard let ahead else { return }
    ahead.done.wait()
    ahead.done.signal()
  }
}
