import CCUDA

/// A card with its context, and one stream on which work is done in order.
///
/// Calls may come from any thread, one at a time; `makeCurrent` comes first on a new thread.
package final class Device: @unchecked Sendable {
  package let index: Int
  package let name: String
  /// Major and minor number of what the card can do, (9, 0) for Hopper.
  package let capability: (major: Int, minor: Int)
  package let multiprocessors: Int
  /// Bytes of device memory.
  package let memory: Int
  /// Bytes of shared memory that a block may ask for.
  package let sharedMemory: Int
  let driver: Driver
  private let device: CUdevice
  private let context: CUcontext
  /// The stream of all work that names no other.
  package private(set) var stream: Stream! = nil

  /// The cards that the driver shows.
  package static func count() throws -> Int {
    let driver = try Driver.shared()
    var count: Int32 = 0
    try driver.check(driver.cuDeviceGetCount(&count), "counting cards")
    return Int(count)
  }

  /// The version of CUDA that the driver serves, 13000 for 13.0.
  package static func driverVersion() throws -> (version: Int, path: String) {
    let driver = try Driver.shared()
    var version: Int32 = 0
    try driver.check(driver.cuDriverGetVersion(&version), "asking the driver for its version")
    return (Int(version), driver.library.path)
  }

  /// Opens card `index` of those that the driver shows.
  ///
  /// - Throws: `CUDAError.missing` when there is none.
  package init(_ index: Int = 0) throws {
    let driver = try Driver.shared()
    let count = try Self.count()
    guard index >= 0, index < count else {
      throw CUDAError(
        .missing, "there is no card \(index): the driver shows \(count); CUDA_VISIBLE_DEVICES may hide some")
    }
    var device: CUdevice = 0
    try driver.check(driver.cuDeviceGet(&device, Int32(index)), "opening card \(index)")
    var name = [CChar](repeating: 0, count: 256)
    try driver.check(driver.cuDeviceGetName(&name, 256, device), "asking card \(index) for its name")
    var bytes = 0
    try driver.check(driver.cuDeviceTotalMem(&bytes, device), "asking card \(index) for its memory")
    func attribute(_ number: Int32) throws -> Int {
      var value: Int32 = 0
      try driver.check(driver.cuDeviceGetAttribute(&value, number, device), "asking card \(index) what it can do")
      return Int(value)
    }
    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, _MULTIPROCESSOR_COUNT, _MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    capability = (try attribute(75), try attribute(76))
    multiprocessors = try attribute(16)
    sharedMemory = try attribute(97)
    memory = bytes
    (self.index, self.driver, self.device) = (index, driver, device)
    self.name = String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    guard capability.major >= 8 else {
      throw CUDAError(
        .missing,
        "card \(index) (\(self.name)) is of capability \(capability.major).\(capability.minor): kernels need 8.0 or more"
      )
    }
    var context: CUcontext?
    try driver.check(driver.cuDevicePrimaryCtxRetain(&context, device), "opening a context on card \(index)")
    self.context = context!
    try makeCurrent()
    stream = try Stream(self)
  }

  deinit {
    // The stream goes before the context that it lives in.
    stream = nil
    _ = driver.cuDevicePrimaryCtxRelease(device)
  }

  /// What NVRTC calls the card, `sm_90a` for Hopper.
  package var architecture: String {
    // Instructions of one generation alone are behind the letter a.
    "sm_\(capability.major)\(capability.minor)" + (capability.major >= 9 ? "a" : "")
  }

  /// Where the card sits in its host: the same for every process, whatever CUDA_VISIBLE_DEVICES shows it.
  package var place: String {
    get throws {
      var text = [CChar](repeating: 0, count: 32)
      try driver.check(driver.cuDeviceGetPCIBusId(&text, 32, device), "asking card \(index) where it is")
      return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
  }

  /// Binds the context to the calling thread.
  package func makeCurrent() throws {
    try driver.check(driver.cuCtxSetCurrent(context), "using card \(index)")
  }

  /// Waits for all work on the card.
  package func synchronize() throws {
    try driver.check(driver.cuCtxSynchronize(), "work on card \(index)")
  }

  /// Bytes of device memory that are free now.
  package func freeMemory() throws -> Int {
    var (free, total) = (0, 0)
    try driver.check(driver.cuMemGetInfo(&free, &total), "asking card \(index) for its free memory")
    return free
  }
}

/// Work in order, beside other streams.
package final class Stream: @unchecked Sendable {
  let handle: CUstream
  // Not the device, which owns a stream itself.
  private let driver: Driver
  private let card: Int

  package init(_ device: Device) throws {
    var handle: CUstream?
    (driver, card) = (device.driver, device.index)
    // CU_STREAM_NON_BLOCKING: no order with the stream of calls that name none.
    try driver.check(driver.cuStreamCreate(&handle, 1), "making a stream on card \(card)")
    self.handle = handle!
  }

  deinit { _ = driver.cuStreamDestroy(handle) }

  /// Waits for the work so far; a fault of it shows here.
  package func synchronize() throws {
    try driver.check(driver.cuStreamSynchronize(handle), "work on card \(card)")
  }

  /// Lets later work of this stream begin when `event` has come.
  package func wait(for event: Event) throws {
    try driver.check(driver.cuStreamWaitEvent(handle, event.handle, 0), "ordering streams of card \(card)")
  }
}

/// A place in a stream, with its time.
package final class Event: @unchecked Sendable {
  let handle: CUevent
  private let device: Device

  /// - Parameter isTimed: whether ``seconds(to:)`` will be asked
  package init(_ device: Device, isTimed: Bool = true) throws {
    var handle: CUevent?
    // CU_EVENT_DISABLE_TIMING
    try device.driver.check(
      device.driver.cuEventCreate(&handle, isTimed ? 0 : 2), "making an event on card \(device.index)")
    (self.handle, self.device) = (handle!, device)
  }

  deinit { _ = device.driver.cuEventDestroy(handle) }

  package func record(on stream: Stream? = nil) throws {
    try device.driver.check(
      device.driver.cuEventRecord(handle, (stream ?? device.stream).handle), "marking a stream of card \(device.index)")
  }

  /// Whether the work before it is done.
  package func isDone() throws -> Bool {
    let status = device.driver.cuEventQuery(handle)
    // CUDA_ERROR_NOT_READY
    if status == 600 { return false }
    try device.driver.check(status, "work on card \(device.index)")
    return true
  }

  /// Waits for the work before it.
  package func synchronize() throws {
    try device.driver.check(device.driver.cuEventSynchronize(handle), "work on card \(device.index)")
  }

  /// Seconds from this event to `end`, which is waited for.
  package func seconds(to end: Event) throws -> Double {
    try device.driver.check(device.driver.cuEventSynchronize(end.handle), "work on card \(device.index)")
    var milliseconds: Float = 0
    try device.driver.check(
      device.driver.cuEventElapsedTime(&milliseconds, handle, end.handle), "timing card \(device.index)")
    return Double(milliseconds) / 1000
  }
}
