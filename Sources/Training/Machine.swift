import Foundation
import MPI
import Tensors

/// What the machine at hand can do, measured in this process.
package enum Machine {
  /// Cores that this process may run on.
  package static var cores: Int { max(1, ProcessInfo.processInfo.activeProcessorCount) }

  /// Threads for one of `world`'s ranks on this host: `JETTRAIN_THREADS`, or the cores over the ranks.
  package static func threads(_ world: Communicator) -> Int {
    if let text = ProcessInfo.processInfo.environment["JETTRAIN_THREADS"], let count = Int(text), count > 0 {
      return count
    }
    // A rank that mpirun bound to its own cores sees just those.
    let all = sysconf(Int32(_SC_NPROCESSORS_ONLN))
    return cores < all ? cores : max(1, cores / world.localSize)
  }

  /// Matrix multiplication rate of `backend` in the type of its activations, operations a second: the best of a few products
  /// of square matrices, of as many rows as it likes at once.
  package static func matrixRate(_ backend: any Backend, seconds: Double = 0.3) -> Double {
    let size = max(1024, backend.promptTokens)
    let type = backend.activationType
    let (a, b, c) = (
      backend.empty([size, size], type), backend.empty([size, size], type), backend.empty([size, size], type)
    )
    // Zeros are multiplied faster than other numbers.
    a.fillAtRandom()
    b.fillAtRandom()
    backend.mark().wait()
    var best = 0.0
    var spent = 0.0
    while spent < seconds {
      var clock = PhaseClock()
      backend.multiply(a, transposed: false, b, transposed: true, into: c, alpha: 1, adds: false)
      backend.mark().wait()
      clock.mark("product")
      spent += clock.total
      best = max(best, 2 * Double(size) * Double(size) * Double(size) / clock.total)
    }
    return best
  }

  /// The processor, its cores, and the kernels and threads of `backend`: what speeds that were measured here are speeds of.
  package static func description(of backend: any Backend) -> String {
    let text = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
    let name = text.split(separator: "\n").first { $0.hasPrefix("model name") }?.split(separator: ":").last
    return (name?.trimmingCharacters(in: .whitespaces) ?? "unknown processor")
      + ", \(sysconf(Int32(_SC_NPROCESSORS_ONLN))) cores, \(backend.kernelIdentity) kernels, \(backend.deviceDescription)"
  }

  /// The most memory that this process has held at once, in bytes.
  package static var peakMemory: Int {
    let text = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
    for line in text.split(separator: "\n") where line.hasPrefix("VmHWM") {
      let digits = line.filter(\.isNumber)
      return (Int(digits) ?? 0) * 1024
    }
    return 0
  }
}

extension Machine {
  /// What a process holds besides tensors: the program and its libraries, and OpenBLAS's packing buffers, of which
  /// every thread touches its own. Measured, see docs/design.md.
  package static func baseMemory(threads: Int) -> Int { (58 << 20) + threads * (2 << 20) }
}

extension Machine {
  /// Bytes a second that one thread copies, read and written bytes both counted.
  package static func copyRate() -> Double {
    let count = 64 << 20
    let source = [UInt8](repeating: 1, count: count)
    var target = [UInt8](repeating: 0, count: count)
    var best = 0.0
    for _ in 0..<4 {
      var clock = PhaseClock()
      source.withUnsafeBytes { bytes in target.withUnsafeMutableBytes { $0.copyMemory(from: bytes) } }
      clock.mark("copy")
      best = max(best, 2 * Double(count) / clock.total)
    }
    return best
  }
}
