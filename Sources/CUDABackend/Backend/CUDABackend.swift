import CUDA
import Foundation
import Tensors

/// A backend on one card: kernels of this room, products by cuBLASLt, one stream in whose order everything happens.
///
/// Nothing waits for the card but what asks for elements. What fails on the card ends the process with one line and code
/// 69, or 64 where it was asked for too much memory, since no caller could go on.
package final class CUDABackend: Backend {
  package var tape: Tape?
  package internal(set) var operations = 0.0
  package var activationType = DType.float32
  package let device: Device
  let library: KernelLibrary
  private(set) lazy var products = must { try MatrixProducts(device) }
  let memory: DeviceArena
  let staging: Staging
  /// Of the row kernels, those that a type of elements was asked for.
  private var rowKernels: [RowKernels.Elements: RowKernels] = [:]
  private var rules: [RuleName: GatedDeltaRule] = [:]
  private var kernels: [KernelName: Kernel] = [:]
  var rotary: [RotaryTables] = []
  var asideReader: AsideReader?
  var stepKernels: [StepName: Kernel] = [:]
  private(set) lazy var warpgroupAttention = must { try WarpgroupAttention(library) }

  /// Kernels since it was set, by events around every launch; nil when no profile is taken.
  package var profile: Profile?

  /// Whether work is recorded rather than done: nothing may be waited for.
  var isRecording = false

  /// Whether new tensors begin as NaN, so that checks see what a kernel forgets to write.
  package var poisonsNewTensors = false

  private struct KernelName: Hashable {
    let file: String
    let symbol: String
    let size: Int
  }

  private struct RuleName: Hashable {
    let heads, keys, values: Int
    let elements: RowKernels.Elements
  }

  /// Opens card `index`.
  ///
  /// - Throws: `CUDAError.missing` where there is no card, or a library is missing
  package convenience init(_ index: Int) throws {
    try self.init(opening: index)
    products = try MatrixProducts(device)
  }

  /// Without products, which a companion is not asked for.
  private init(opening index: Int) throws {
    device = try Device(index)
    library = try KernelLibrary(device)
    memory = DeviceArena(device)
    staging = try Staging(device)
  }

  /// The version of CUDA that the driver serves.
  private var driverVersion: String {
    let number = (try? Device.driverVersion().version) ?? 0
    return "\(number / 1000).\(number % 1000 / 10)"
  }

  package var deviceDescription: String { device.name }

  /// The card, and the versions of what makes and chooses its kernels.
  package var kernelIdentity: String {
    "\(device.name) \(device.architecture), driver \(driverVersion), cuBLASLt \(products.version), NVRTC \(library.compiler.version.major)."
      + "\(library.compiler.version.minor)"
  }

  package func companion() -> any Backend {
    must { try CUDABackend(opening: device.index) }
  }

  package func vocabularyRows(_ vocabulary: Int) -> Int { 2048 }

  /// Bytes of a card that a process takes besides tensors: its context, kernels, and the workspace of products.
  package static let baseBytes = 700 << 20

  /// The result of `body`; what it throws ends the process.
  func must<Result>(_ body: () throws -> Result) -> Result {
    do { return try body() } catch { Self.end(error) }
  }

  static let end: @Sendable (any Error) -> Never = { error in
    FileHandle.standardError.write(Data("jettrain: \(error)\n".utf8))
    exit((error as? CUDAError)?.exitCode ?? 69)
  }

  // MARK: - Kernels

  /// The kernel `symbol` of a file that is not compiled for a type of elements; with `size`, for that size of a head.
  func kernel(_ file: String, _ symbol: String, size: Int = 0, sharedMemory: Int = 0) -> Kernel {
    let name = KernelName(file: file, symbol: symbol, size: size)
    if let known = kernels[name] { return known }
    return must {
      let defines = size == 0 ? [:] : [file == "Recurrence.cu" ? "KEY_SIZE" : "HEAD_SIZE": "\(size)"]
      let kernel = try library.module(file, defines: defines).kernel(symbol, sharedMemory: sharedMemory)
      kernels[name] = kernel
      return kernel
    }
  }

  /// The files of kernels that take any type of elements.
  enum CoreFile: String {
    case elements = "Elements.cu"
    case rowsAndColumns = "RowsAndColumns.cu"
    case tables = "Tables.cu"
    case convolution = "Convolution.cu"
  }

  /// Launches one of those kernels over `count` threads, or over `grid` blocks.
  func launch(
    _ file: CoreFile, _ symbol: String, threads count: Int = 0, grid: (Int, Int)? = nil, blockSize: Int = 256,
    _ arguments: [KernelArgument]
  ) {
    let kernel = kernel(file.rawValue, symbol)
    let grid = grid ?? ((count + 255) / 256, 1)
    run(symbol) { try kernel.launch(grid: (grid.0, grid.1, 1), threads: blockSize, arguments) }
  }

  /// Runs `body`, which enqueues; its time goes to `name` in a profile.
  func run(_ name: String, _ body: () throws -> Void) {
    must {
      try device.makeCurrent()
      guard let start = profile?.now else { return try body() }
      let (begin, end) = (try CUDA.Event(device), try CUDA.Event(device))
      try begin.record()
      try body()
      try end.record()
      profile?.add(name, from: start, begin, end)
    }
  }

  func rows(_ elements: RowKernels.Elements) -> RowKernels {
    if let known = rowKernels[elements] { return known }
    return must {
      let made = try RowKernels(library, elements: elements)
      rowKernels[elements] = made
      return made
    }
  }

  func rule(heads: Int, keys: Int, values: Int, _ elements: RowKernels.Elements) -> GatedDeltaRule {
    let name = RuleName(heads: heads, keys: keys, values: values, elements: elements)
    if let known = rules[name] { return known }
    return must {
      let made = try GatedDeltaRule(library, heads: heads, keySize: keys, valueSize: values, elements: elements)
      rules[name] = made
      return made
    }
  }
}

/// As `precondition`, but a release build says what went wrong, too.
func require(_ isTrue: Bool, _ message: @autoclosure () -> String) {
  guard isTrue else { fatalError(message()) }
}
