import CCUDA

/// Bytes on a card that kernels are handed: a buffer or a part of one.
package protocol DeviceMemory {
  var byteCount: Int { get }
  /// The address on the card.
  var address: UInt64 { get }
}

/// Bytes of device memory; freed with the last reference.
package final class DeviceBuffer: DeviceMemory, @unchecked Sendable {
  package let device: Device
  package let byteCount: Int
  /// The address on the card.
  package let address: UInt64

  /// - Throws: `CUDAError.fault` with what was asked and what is free.
  package init(_ device: Device, byteCount: Int) throws {
    var address: CUdeviceptr = 0
    let driver = device.driver
    let status = driver.cuMemAlloc(&address, max(byteCount, 1))
    if status != 0 {
      let free = (try? device.freeMemory()).map { ", \($0 >> 20) MiB are free" } ?? ""
      try driver.check(status, "asking card \(device.index) for \((byteCount + 1_048_575) >> 20) MiB\(free)")
    }
    (self.device, self.byteCount, self.address) = (device, byteCount, address)
  }

  deinit { _ = device.driver.cuMemFree(address) }

  /// A buffer that holds `values`; returns when it does.
  package convenience init<T>(_ device: Device, _ values: [T]) throws {
    try self.init(device, byteCount: values.count * MemoryLayout<T>.stride)
    try upload(values)
  }

  /// Copies `values` to the beginning of the buffer and waits for it.
  package func upload<T>(_ values: [T]) throws {
    try values.withUnsafeBytes { bytes in
      precondition(bytes.count <= byteCount, "\(bytes.count) bytes into a buffer of \(byteCount)")
      guard let start = bytes.baseAddress, bytes.count > 0 else { return }
      try device.driver.check(
        device.driver.cuMemcpyHtoDAsync(address, start, bytes.count, device.stream.handle),
        "copying \(bytes.count) bytes to card \(device.index)")
      try device.stream.synchronize()
    }
  }

  /// The first `count` elements, after the work that is on its way.
  package func download<T>(_ type: T.Type, count: Int) throws -> [T] {
    precondition(count * MemoryLayout<T>.stride <= byteCount, "\(count) elements of a buffer of \(byteCount) bytes")
    return try [T](unsafeUninitializedCapacity: count) { buffer, filled in
      if count > 0 {
        try device.driver.check(
          device.driver.cuMemcpyDtoHAsync(
            buffer.baseAddress, address, count * MemoryLayout<T>.stride, device.stream.handle),
          "copying from card \(device.index)")
        try device.stream.synchronize()
      }
      filled = count
    }
  }

  /// Sets every byte, in stream order.
  package func fill(byte: UInt8) throws {
    try device.driver.check(
      device.driver.cuMemsetD8Async(address, byte, byteCount, device.stream.handle),
      "filling memory of card \(device.index)")
  }

  /// Copies all bytes of `source` to the beginning of this buffer, in stream order.
  package func copy(from source: DeviceBuffer) throws {
    precondition(source.byteCount <= byteCount, "\(source.byteCount) bytes into a buffer of \(byteCount)")
    try device.driver.check(
      device.driver.cuMemcpyDtoDAsync(address, source.address, source.byteCount, device.stream.handle),
      "copying on card \(device.index)")
  }
}
