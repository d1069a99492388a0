import CUDA
import Foundation

/// One kernel at one size, compared with its reference.
package struct CheckResult: Sendable {
  package let kernel: String
  package let shape: String
  /// ‖out − ref‖ / ‖ref‖, the worst of the outputs and of the gradients; nil where there are none.
  package let outputError: Double
  package let gradientError: Double?
  package let outputBound: Double
  package let gradientBound: Double
  /// Two runs gave the same bits.
  package let repeats: Bool

  package init(
    kernel: String, shape: String, outputError: Double, gradientError: Double?, outputBound: Double,
    gradientBound: Double, repeats: Bool
  ) {
    (self.kernel, self.shape) = (kernel, shape)
    (self.outputError, self.gradientError) = (outputError, gradientError)
    (self.outputBound, self.gradientBound, self.repeats) = (outputBound, gradientBound, repeats)
  }

  package var passes: Bool {
    repeats && outputError <= outputBound && (gradientError ?? 0) <= gradientBound
  }
}

/// Every kernel of this program against a reference in double precision, at sizes that do not fit its tiles. Outputs and
/// scratch memory begin as NaN, so that what is not written shows.
package struct DeviceCheck {
  package let device: Device
  private let library: KernelLibrary

  package init(_ device: Device) throws {
    (self.device, library) = (device, try KernelLibrary(device))
  }

  /// Runs all checks and hands each result to `report` as it comes.
  ///
  /// - Parameter small: only the smallest sizes, for `compute-sanitizer`.
  package func run(small: Bool, report: (CheckResult) -> Void) throws {
    try report(checkMatrixProducts())
    for elements in [RowKernels.Elements.bfloat16, .float32] {
      try RowKernelCheck(library, elements: elements).run(small: small, report: report)
    }
    for one in GatedDeltaRuleCheck.cases(small: small) { try report(one.run(library)) }
  }

  private func checkMatrixProducts() throws -> CheckResult {
    let (m, n, k) = (1000, 136, 96)
    var random = Random(seed: 1)
    let a = bfloat16((0..<m * k).map { _ in Float(random.normal()) })
    let b = bfloat16((0..<n * k).map { _ in Float(random.normal()) })
    let products = try MatrixProducts(device)
    let (deviceA, deviceB) = (try DeviceBuffer(device, a), try DeviceBuffer(device, b))
    let runs = try (0..<2).map { _ in
      let c = try DeviceBuffer(device, byteCount: m * n * 2)
      try c.fill(byte: 0xff)
      let shape = MatrixProducts.Shape(
        m: m, n: n, k: k, aTransposed: false, bTransposed: true, operands: .bfloat16, result: .bfloat16)
      guard try products.multiply(shape, deviceA.address, deviceB.address, into: c.address) else {
        throw CUDAError(.fault, "cuBLASLt has no kernel for \(shape)")
      }
      return try c.download(UInt16.self, count: m * n)
    }
    let (x, y) = (widened(a).map(Double.init), widened(b).map(Double.init))
    let reference = (0..<m * n).map { i in
      (0..<k).reduce(0.0) { $0 + x[i / n * k + $1] * y[i % n * k + $1] }
    }
    return CheckResult(
      kernel: "product, cuBLASLt bf16", shape: "[\(m), \(k)] x [\(n), \(k)]",
      outputError: relativeError(widened(runs[0]).map(Double.init), reference), gradientError: nil, outputBound: 4e-3,
      gradientBound: 0, repeats: runs[0] == runs[1])
  }
}

/// ‖x − reference‖ / ‖reference‖; not a number where an element is not. All inputs are of order one, so a reference that
/// is 0.001 or less on the average (the gradient of a gate before which there is no state) is compared with that.
package func relativeError(_ x: [Double], _ reference: [Double]) -> Double {
  precondition(x.count == reference.count)
  var (difference, norm) = (0.0, 0.0)
  for (a, b) in zip(x, reference) {
    difference += (a - b) * (a - b)
    norm += b * b
  }
  return difference == 0 ? 0 : (difference / max(norm, 1e-6 * Double(x.count))).squareRoot()
}

/// SplitMix64 and what is drawn from it.
struct Random {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  /// In [0, 1).
  mutating func uniform() -> Double { Double(next() >> 11) / 9_007_199_254_740_992 }

  mutating func normal() -> Double {
    let (a, b) = (uniform(), uniform())
    return (-2 * log(1 - a)).squareRoot() * cos(2 * .pi * b)
  }
}
