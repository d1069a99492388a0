import CCUDA
import CUDA

/// What a card reaches: the ceilings that other figures are shares of.
package enum DeviceRates {
  /// Seconds of the median of `runs` runs of `body`, by events, after two that do not count.
  package static func medianSeconds(_ device: Device, runs: Int, _ body: (Int) throws -> Void) throws -> Double {
    for run in 0..<2 { try body(run) }
    let events = try (0..<runs).map { _ in (try Event(device), try Event(device)) }
    for (run, (begin, end)) in events.enumerated() {
      try begin.record()
      try body(run)
      try end.record()
    }
    return try events.map { try $0.seconds(to: $1) }.sorted()[runs / 2]
  }

  /// Bytes read and written a second by a copy of 1 GiB on the card, or of less where less is free.
  package static func copyBandwidth(_ device: Device) throws -> Double {
    let bytes = min(1 << 30, try device.freeMemory() / 4)
    let (from, to) = (try DeviceBuffer(device, byteCount: bytes), try DeviceBuffer(device, byteCount: bytes))
    try from.fill(byte: 0x3c)
    return 2 * Double(bytes) / (try medianSeconds(device, runs: 11) { _ in try to.copy(from: from) })
  }

  /// Floating-point operations a second of a product of bfloat16 matrices [size, size] by cuBLASLt, on random numbers.
  package static func productRate(_ products: MatrixProducts, _ device: Device, size: Int = 8192) throws -> Double {
    var random = Random(seed: 3)
    let row = (0..<size * 64).map { _ in Float(random.normal()) }
    let part = bfloat16(row)
    var values: [UInt16] = []
    values.reserveCapacity(size * size)
    while values.count < size * size { values += part }
    let (a, b) = (try DeviceBuffer(device, values), try DeviceBuffer(device, values))
    let c = try DeviceBuffer(device, byteCount: size * size * 2)
    let shape = MatrixProducts.Shape(
      m: size, n: size, k: size, aTransposed: false, bTransposed: true, operands: .bfloat16, result: .bfloat16)
    let seconds = try medianSeconds(device, runs: 11) { _ in
      _ = try products.multiply(shape, a.address, b.address, into: c.address)
    }
    return 2 * Double(size) * Double(size) * Double(size) / seconds
  }

  /// Version and path of the libraries that are asked for nothing else yet; nil where one is missing.
  package static func attentionLibrary() -> (version: Int, path: String)? {
    guard let library = try? Library.open(.attention),
      let version: cudnnGetVersion_t = try? library.function("cudnnGetVersion")
    else { return nil }
    return (Int(version()), library.path)
  }

  package static func collectivesLibrary() -> (version: Int, path: String)? {
    guard let library = try? Library.open(.collectives),
      let version: ncclGetVersion_t = try? library.function("ncclGetVersion")
    else { return nil }
    var number: Int32 = 0
    return version(&number) == 0 ? (Int(number), library.path) : nil
  }
}
