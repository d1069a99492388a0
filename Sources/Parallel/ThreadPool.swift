import Foundation
import Synchronization

/// A fixed set of threads that run the slices of one loop at a time; the calling thread takes part.
///
/// Workers spin for a short while after a loop and then sleep, so that back-to-back kernels start within a
/// microsecond and an idle process costs nothing. Only one thread may call ``run(_:_:)``; a call from inside
/// a slice runs serially.
package final class ThreadPool: @unchecked Sendable {
  /// Threads that run a loop, the caller included.
  package let threadCount: Int

  private struct Loop {
    var count = 0
    var body: (Int) -> Void = { _ in }
  }

  /// Polls of `generation` before a worker goes to sleep: some 50 µs.
  private static let spinLimit = 20_000

  private var loop = Loop()
  private let generation = Atomic<Int>(0)
  private let next = Atomic<Int>(0)
  private let busy = Atomic<Int>(0)
  private let sleepers = Atomic<Int>(0)
  private let wake = NSCondition()
  private var isRunning = false

  package init(threads: Int) {
    threadCount = max(1, threads)
    for _ in 1..<threadCount {
      let thread = Thread { [unowned self] in self.work() }
      thread.stackSize = 8 << 20
      thread.start()
    }
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
      loop = Loop(count: count, body: body)
      next.store(0, ordering: .relaxed)
      busy.store(threadCount - 1, ordering: .relaxed)
      generation.add(1, ordering: .sequentiallyConsistent)
      if sleepers.load(ordering: .sequentiallyConsistent) > 0 {
        wake.withLock { wake.broadcast() }
      }
      takeSlices()
      var polls = 0
      while busy.load(ordering: .acquiring) > 0 {
        polls += 1
        if polls > Self.spinLimit { sched_yield() }
      }
      loop.body = { _ in }
    }
    isRunning = false
  }

  private func takeSlices() {
    while true {
      let index = next.add(1, ordering: .relaxed).oldValue
      guard index < loop.count else { return }
      loop.body(index)
    }
  }

  private func work() {
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
      takeSlices()
      busy.subtract(1, ordering: .releasing)
    }
  }
}
