import COpenBLAS
import Foundation
import Parallel
import Tensors

/// The default backend: Swift SIMD kernels and OpenBLAS on the cores that this process may use.
///
/// OpenBLAS runs single-threaded; the pool splits matrices into tiles whose size depends on the shape alone, so
/// that the bits of a result do not depend on the number of threads.
package final class CPUBackend: Backend {
  package var tape: Tape?
  package let pool: ThreadPool
  package private(set) var liveBytes = 0
  package private(set) var peakBytes = 0
  package internal(set) var operations = 0.0

  /// Whether new tensors begin as NaN, so that tests see what a kernel forgets to write.
  package var poisonsNewTensors = false

  /// Kernels since it was set; nil when no profile is taken.
  package var profile: SpanLog?

  /// The angles of rotary embeddings, by head size and base.
  var knownRotaryTables: [RotaryTables] = []

  /// Freed blocks by size, kept because fresh pages cost more than most kernels.
  private var spare: [Int: [UnsafeMutableRawPointer]] = [:]

  /// - Parameter threads: Threads that kernels run on, the calling one included.
  package init(threads: Int) {
    openblas_set_num_threads(1)
    pool = ThreadPool(threads: threads)
  }

  deinit { trim() }

  package func trim() {
    for block in spare.values.joined() { free(block) }
    spare = [:]
  }

  package var deviceDescription: String { "\(pool.threadCount) thread\(pool.threadCount == 1 ? "" : "s")" }

  /// The microkernel of large products, and whose kernels OpenBLAS uses for small ones, `Haswell` or `SkylakeX` for example:
  /// it decides at start by the processor, or as `OPENBLAS_CORETYPE` says. Others round otherwise.
  package var kernelIdentity: String {
    "\(Microkernel.rows)x\(Microkernel.columns), \(String(cString: openblas_get_corename()))"
  }

  package var takesColumnViews: Bool { true }

  package func companion() -> any Backend { CPUBackend(threads: 1) }

  /// Blocks come in steps of an eighth of their power of two, so that nearly equal sizes share one.
  private static func blockSize(_ byteCount: Int) -> Int {
    let least = max(byteCount, 4096)
    let step = max(4096, (1 << (Int.bitWidth - 1 - least.leadingZeroBitCount)) / 8)
    return (least + step - 1) / step * step
  }

  package func allocate(byteCount: Int) -> any Storage {
    let size = Self.blockSize(byteCount)
    liveBytes += size
    peakBytes = max(peakBytes, liveBytes)
    var block = spare[size]?.popLast()
    if block == nil, posix_memalign(&block, 64, size) != 0 { block = nil }
    guard let block else { preconditionFailure("out of memory: \(size) bytes, \(liveBytes) lent out") }
    if poisonsNewTensors { memset(block, 0xFF, size) }
    return HostStorage(self, block, byteCount: byteCount, owner: nil)
  }

  func release(_ address: UnsafeMutableRawPointer, byteCount: Int) {
    let size = Self.blockSize(byteCount)
    liveBytes -= size
    // Whatever its size, the next step wants one like it; arenas are let go of with their phase (``trim()``).
    spare[size, default: []].append(address)
  }

  /// Lends `count` floats, undefined, to `body`.
  func withTemporary(_ count: Int, _ body: (FloatPointer) -> Void) {
    let tensor = empty([count])
    withExtendedLifetime(tensor) { body(tensor.floats) }
  }

  /// Rows that one slice of an element-wise loop takes: about 16,384 elements.
  func sliceRows(columns: Int) -> Int { max(1, 16_384 / max(1, columns)) }

  /// Runs the slices of a kernel on the pool; the caller's name is what a profile shows.
  func parallel(_ count: Int, kernel: String = #function, _ body: (Int) -> Void) {
    guard let start = profile?.now else { return pool.run(count, body) }
    pool.run(count, body)
    profile?.add(String(kernel.prefix { $0 != "(" }), from: start)
  }

  /// Calls `body` with fixed ranges of `rows`.
  func forEachSlice(rows: Int, columns: Int, kernel: String = #function, _ body: (Range<Int>) -> Void) {
    let step = sliceRows(columns: columns)
    parallel((rows + step - 1) / step, kernel: kernel) { slice in
      body(slice * step..<min(rows, (slice + 1) * step))
    }
  }

  /// Calls `body(offset, count)` with fixed slices of a flat array.
  func forEachSlice(count: Int, kernel: String = #function, _ body: (_ offset: Int, _ count: Int) -> Void) {
    forEachSlice(rows: count, columns: 1, kernel: kernel) { body($0.lowerBound, $0.count) }
  }
}

extension CPUBackend {
  /// Bytes a second that all threads together read from memory: the best of a few passes over `megabytes`.
  package func readRate(megabytes: Int = 512) -> Double {
    let count = megabytes << 18
    let x = zeros([count])
    let values = x.floats
    let slice = 1 << 18
    var best = 0.0
    for _ in 0..<5 {
      let start = ContinuousClock.now
      pool.run(count / slice) { s in
        var (a, b, c, d) = (Lanes.zero, Lanes.zero, Lanes.zero, Lanes.zero)
        for i in stride(from: s * slice, to: (s + 1) * slice, by: 64) {
          a += values.lanes(i)
          b += values.lanes(i + 16)
          c += values.lanes(i + 32)
          d += values.lanes(i + 48)
        }
        // A write that never happens keeps the sums from being dropped.
        if ((a + b) + (c + d)).total > 1 { values[s * slice] = 1 }
      }
      let elapsed = (ContinuousClock.now - start).components
      best = max(best, Double(count * 4) / (Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18))
    }
    return withExtendedLifetime(x) { best }
  }
}
