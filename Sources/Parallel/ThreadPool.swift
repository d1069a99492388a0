import Foundation
import Synchronization

/// A fixed set of threads that run the slices of one loop at a time; the calling thread takes part.
///
/// Workers spin for a short while after a loop and then sleep, so that back-to-back kernels start within a
/// microsecond and an idle process costs nothing. They end when the pool goes. Only one thread may call
/// ``run(_:_:)``; a call from inside a slice runs serially.
package final class ThreadPool: @unchecked Sendable {
  /// Threads that run a loop, the caller included.
  package let threadCount: Int
  private let shared = Shared()
  private var isRunning = false

  /// A pool of this many threads, the caller included; at least one.
  package init(threads: Int) {
    threadCount = max(1, threads)
    for _ in 1..<threadCount {
      let thread = Thread { [shared] in shared.work() }
      thread.stackSize = 8 << 20
      thread.start()
    }
  }

  deinit {
    shared.isStopping.store(true, ordering: .relaxed)
    shared.publish()
  }

  /// Calls `body` once for every index below `count`, on all threads, and returns when all are done.
  ///
  /// Which thread takes which index is not fixed, so `body` must give the same result on any of them.
  package func run(_ count: Int, _ body: (Int) -> Void) {
    if threadCount == 1 || count <= 1 || isRunning {
      for index in 0..<max(0, count) { body(index) }
      return
    }
    isRunning = true
    withoutActuallyEscaping(body) { body in
      shared.count = count
      shared.body = body
      shared.next.store(0, ordering: .relaxed)
      shared.busy.store(threadCount - 1, ordering: .relaxed)
      shared.publish()
      shared.takeSlices()
      var polls = 0
      while shared.busy.load(ordering: .acquiring) > 0 {
        polls += 1
        if polls > Shared.spinLimit { sched_yield() }
      }
      shared.body = { _ in }
    }
    isRunning = false
  }

  /// What the pool and its workers have in common; it outlives the pool until the last worker has ended.
  private final class Shared: @unchecked Sendable {
    /// Polls of `generation` before a worker goes to sleep: some 50 µs.
    static let spinLimit = 20_000

    var count = 0
    var body: (Int) -> Void = { _ in }
    let next = Atomic<Int>(0)
    let busy = Atomic<Int>(0)
    let isStopping = Atomic<Bool>(false)
    private let generation = Atomic<Int>(0)
    private let sleepers = Atomic<Int>(0)
    private let wake = NSCondition()

    /// Lets the workers see a new loop, or that they shall stop.
    func publish() {
      generation.add(1, ordering: .sequentiallyConsistent)
      if sleepers.load(ordering: .sequentiallyConsistent) > 0 {
        wake.withLock { wake.broadcast() }
      }
    }

    func takeSlices() {
      while true {
        let index = next.add(1, ordering: .relaxed).oldValue
        guard index < count else { return }
        body(index)
      }
    }

    func work() {
      var seen = 0
      while true {
        var polls = 0
        while generation.load(ordering: .acquiring) == seen {
          polls += 1
          if polls < Self.spinLimit { continue }
          sleepers.add(1, ordering: .sequentiallyConsistent)
          wake.withLock {
            while generation.load(ordering: .sequentiallyConsistent) == seen { wake.wait() }
          }
          sleepers.subtract(1, ordering: .sequentiallyConsistent)
        }
        seen += 1
        if isStopping.load(ordering: .relaxed) { return }
        takeSlices()
        busy.subtract(1, ordering: .releasing)
      }
    }
  }
}
