import CCUDA

/// Host memory that stays where it is, from and to which a card copies while the program goes on.
package final class PinnedBuffer: @unchecked Sendable {
  package let bytes: UnsafeMutableRawBufferPointer
  private let device: Device

  /// - Throws: `CUDAError.fault` where the system does not let so much memory be pinned
  package init(_ device: Device, byteCount: Int) throws {
    var address: UnsafeMutableRawPointer?
    // CU_MEMHOSTALLOC_PORTABLE
    try device.driver.check(
      device.driver.cuMemHostAlloc(&address, byteCount, 1), "pinning \(byteCount >> 10) KiB of host memory")
    (bytes, self.device) = (UnsafeMutableRawBufferPointer(start: address, count: byteCount), device)
  }

  deinit { _ = device.driver.cuMemFreeHost(bytes.baseAddress) }
}

/// Copies in the order of the device's stream, or of another, by address.
extension Device {
  package func copy(from host: UnsafeRawBufferPointer, to address: UInt64) throws {
    try driver.check(
      driver.cuMemcpyHtoDAsync(address, host.baseAddress, host.count, stream.handle),
      "copying \(host.count) bytes to card \(index)")
  }

  package func copy(
    from address: UInt64, to host: UnsafeMutableRawBufferPointer, on other: Stream? = nil
  ) throws {
    try driver.check(
      driver.cuMemcpyDtoHAsync(host.baseAddress, address, host.count, (other ?? stream).handle),
      "copying \(host.count) bytes from card \(index)")
  }

  package func copy(from source: UInt64, to target: UInt64, byteCount: Int) throws {
    try driver.check(
      driver.cuMemcpyDtoDAsync(target, source, byteCount, stream.handle), "copying \(byteCount) bytes on card \(index)")
  }

  package func fill(_ address: UInt64, byte: UInt8, byteCount: Int) throws {
    try driver.check(
      driver.cuMemsetD8Async(address, byte, byteCount, stream.handle), "filling \(byteCount) bytes on card \(index)")
  }

  /// Device memory as the driver gives it, for whoever keeps it; nil where there is not enough.
  package func allocate(byteCount: Int) throws -> UInt64? {
    var address: CUdeviceptr = 0
    let status = driver.cuMemAlloc(&address, byteCount)
    // CUDA_ERROR_OUT_OF_MEMORY
    if status == 2 { return nil }
    try driver.check(status, "asking card \(index) for \(byteCount >> 20) MiB")
    return address
  }

  package func free(_ address: UInt64) { _ = driver.cuMemFree(address) }
}
