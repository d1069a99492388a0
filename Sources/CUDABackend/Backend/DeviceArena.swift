import CUDA

/// Blocks of a card's memory by size, kept for the next that asks for as much: the driver's own calls wait for the card.
final class DeviceArena {
  /// Blocks that recorded work reads and writes whenever it is launched, and which nobody else may have meanwhile.
  final class Pool {
    fileprivate var blocks: Set<UInt64> = []
    fileprivate var spare: [Int: [UInt64]] = [:]
  }

  private let device: Device
  private var spare: [Int: [UInt64]] = [:]
  /// The pool whose work is being recorded.
  private var openPool: Pool?
  private var owners: [UInt64: Pool] = [:]
  private(set) var liveBytes = 0
  private(set) var peakBytes = 0
  /// What the driver gave and has not got back.
  private(set) var heldBytes = 0

  init(_ device: Device) { self.device = device }

  deinit { trim() }

  /// Blocks come in steps of an eighth of their power of two, so that nearly equal sizes share one, but of no more than 16 MiB:
  /// caches of generation would waste gigabytes.
  private static func blockSize(_ byteCount: Int) -> Int {
    let least = max(byteCount, 512)
    let step = min(max(512, (1 << (Int.bitWidth - 1 - least.leadingZeroBitCount)) / 8), 16 << 20)
    return (least + step - 1) / step * step
  }

  func take(_ byteCount: Int) throws -> UInt64 {
    let size = Self.blockSize(byteCount)
    let block = try openPool?.spare[size]?.popLast() ?? spare[size]?.popLast() ?? allocate(size)
    if let openPool, openPool.blocks.insert(block).inserted { owners[block] = openPool }
    liveBytes += size
    peakBytes = max(peakBytes, liveBytes)
    return block
  }

  /// A block of the driver's.
  private func allocate(_ size: Int) throws -> UInt64 {
    try device.makeCurrent()
    if let block = try device.allocate(byteCount: size) {
      heldBytes += size
      return block
    }
    // What is kept in other sizes goes back to the driver first; recorded work is launched later.
    if openPool == nil { try device.synchronize() }
    trim()
    if let block = try device.allocate(byteCount: size) {
      heldBytes += size
      return block
    }
    throw CUDAError(
      .memory,
      "card \(device.index) (\(device.name)) is out of memory: \(size >> 20) MiB were asked for, \(liveBytes >> 20) MiB are in "
        + "use by this process and \(try device.freeMemory() >> 20) MiB free; a smaller train.micro_batch or "
        + "train.recompute: cheap or layer takes less")
  }

  func release(_ address: UInt64, byteCount: Int) {
    let size = Self.blockSize(byteCount)
    liveBytes -= size
    if let pool = owners[address] {
      pool.spare[size, default: []].append(address)
    } else {
      spare[size, default: []].append(address)
    }
  }

  /// Runs `body`, whose work is recorded: what it takes is the pool's from then on.
  func recording<Result>(_ body: () throws -> Result) rethrows -> (result: Result, pool: Pool) {
    let pool = Pool()
    openPool = pool
    defer { openPool = nil }
    return (try body(), pool)
  }

  /// The work of the pool will not be launched any more.
  func dissolve(_ pool: Pool) {
    for (size, blocks) in pool.spare { spare[size, default: []] += blocks }
    for block in pool.blocks { owners[block] = nil }
    (pool.blocks, pool.spare) = ([], [:])
  }

  func trim() {
    for (size, blocks) in spare {
      for block in blocks { device.free(block) }
      heldBytes -= size * blocks.count
    }
    spare = [:]
  }
}
