import CCUDA

/// A number or an address that a kernel is called with.
package struct KernelArgument {
  let bits: UInt64
  /// The second half of a structure of 16 bytes.
  private(set) var second: UInt64?

  /// Four numbers, as a structure.
  package init(_ a: Int, _ b: Int, _ c: Int, _ d: Int) {
    bits = UInt64(UInt32(a)) | UInt64(UInt32(b)) << 32
    second = UInt64(UInt32(c)) | UInt64(UInt32(d)) << 32
  }
  /// Two numbers, as a structure.
  package init(_ a: Int, _ b: Int) { bits = UInt64(UInt32(a)) | UInt64(UInt32(b)) << 32 }

  package init(_ value: Int32) { bits = UInt64(UInt32(bitPattern: value)) }
  package init(_ value: Int) { self.init(Int32(value)) }
  /// A count of 64 bits.
  package init(wide value: Int) { bits = UInt64(bitPattern: Int64(value)) }
  package init(_ value: Double) { bits = value.bitPattern }
  package init(bits: UInt64) { self.bits = bits }
  package init(_ value: Float) { bits = UInt64(value.bitPattern) }
  /// Where memory begins; null for none.
  package init(_ memory: (any DeviceMemory)?) { bits = memory?.address ?? 0 }
  /// The address `offset` bytes into it.
  package init(_ buffer: any DeviceMemory, offset: Int) { bits = buffer.address + UInt64(offset) }
}

/// Compiled kernels on a card.
package final class Module: @unchecked Sendable {
  private let device: Device
  private let handle: CUmodule
  private let name: String

  /// - Parameter name: for messages.
  package init(_ device: Device, code: [UInt8], name: String) throws {
    var handle: CUmodule?
    try code.withUnsafeBytes { bytes in
      try device.driver.check(
        device.driver.cuModuleLoadData(&handle, bytes.baseAddress), "loading the kernels of \(name)")
    }
    (self.device, self.handle, self.name) = (device, handle!, name)
  }

  deinit { _ = device.driver.cuModuleUnload(handle) }

  /// - Parameter sharedMemory: bytes of dynamic shared memory that every launch gets.
  package func kernel(_ symbol: String, sharedMemory: Int = 0) throws -> Kernel {
    guard sharedMemory <= device.sharedMemory else {
      throw CUDAError(
        .fault,
        "\(symbol) needs \(sharedMemory) bytes of shared memory a block, card \(device.index) (\(device.name)) has "
          + "\(device.sharedMemory): another kernel must be chosen")
    }
    var function: CUfunction?
    try device.driver.check(
      device.driver.cuModuleGetFunction(&function, handle, symbol), "finding \(symbol) in the kernels of \(name)")
    // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    try device.driver.check(
      device.driver.cuFuncSetAttribute(function, 8, Int32(sharedMemory)), "reserving shared memory for \(symbol)")
    return Kernel(device: device, module: self, function: function!, name: symbol, sharedMemory: sharedMemory)
  }

  /// The 32-bit integers of a variable of the module.
  package func constants(_ symbol: String) throws -> [Int] {
    var address: CUdeviceptr = 0
    var count = 0
    try device.driver.check(
      device.driver.cuModuleGetGlobal(&address, &count, handle, symbol), "finding \(symbol) in the kernels of \(name)")
    var values = [Int32](repeating: 0, count: count / 4)
    try values.withUnsafeMutableBytes { buffer in
      try device.driver.check(
        device.driver.cuMemcpyDtoHAsync(buffer.baseAddress, address, count, device.stream.handle), "reading \(symbol)")
      try device.stream.synchronize()
    }
    return values.map(Int.init)
  }
}

/// A kernel that can be launched.
package struct Kernel {
  let device: Device
  /// Keeps the code loaded.
  let module: Module
  let function: CUfunction
  package let name: String
  package let sharedMemory: Int

  /// Launches the kernel on the device's stream; it runs when what is before it has ended.
  package func launch(grid: (Int, Int, Int), threads: Int, _ arguments: [KernelArgument]) throws {
    guard grid.0 > 0, grid.1 > 0, grid.2 > 0 else { return }
    precondition(grid.1 <= 65_535 && grid.2 <= 65_535, "\(name): a grid of \(grid)")
    // Structures of 16 bytes take two words.
    var words: [UInt64] = []
    words.reserveCapacity(2 * arguments.count)
    var firsts: [Int] = []
    firsts.reserveCapacity(arguments.count)
    for argument in arguments {
      firsts.append(words.count)
      words.append(argument.bits)
      if let second = argument.second { words.append(second) }
    }
    try words.withUnsafeMutableBufferPointer { buffer in
      var places = firsts.map { UnsafeMutableRawPointer(buffer.baseAddress! + $0) as UnsafeMutableRawPointer? }
      try device.driver.check(
        device.driver.cuLaunchKernel(
          function, UInt32(grid.0), UInt32(grid.1), UInt32(grid.2), UInt32(threads), 1, 1, UInt32(sharedMemory),
          device.stream.handle, &places, nil),
        "launching \(name)")
    }
  }
}
