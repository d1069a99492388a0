import CUDA
import Tensors

/// Memory of a card, lent out by a backend. What the stream still does with it when it goes comes before whatever is done
/// by the next owner.
final class DeviceStorage: Storage, DeviceMemory {
  private let owner: CUDABackend
  let address: UInt64
  let byteCount: Int
  var backend: any Backend { owner }

  init(_ owner: CUDABackend, _ address: UInt64, byteCount: Int) {
    (self.owner, self.address, self.byteCount) = (owner, address, byteCount)
  }

  deinit { owner.memory.release(address, byteCount: byteCount) }
}

/// The elements of a tensor on a card; keeps their memory.
struct DeviceView: DeviceMemory {
  let storage: DeviceStorage
  let address: UInt64
  let byteCount: Int
}

extension Tensor {
  var deviceView: DeviceView {
    require(type(of: storage) == DeviceStorage.self, "a tensor of another backend")
    let storage = unsafeDowncast(storage, to: DeviceStorage.self)
    return DeviceView(
      storage: storage, address: storage.address + UInt64(offset * dtype.size),
      byteCount: (isDense ? count : max(0, rows - 1) * rowStride + columns) * dtype.size)
  }

  /// Where the elements lie, with their type, as kernels that take any type read it (Kernels/Values.cuh).
  var values: KernelArgument {
    let type: UInt64 =
      switch dtype {
      case .float32: 0
      case .bfloat16: 1
      case .int32: 2
      case .float64: 3
      }
    return KernelArgument(bits: deviceView.address | type << 62)
  }

  /// Where the elements of a tensor of this type lie.
  func address(of type: DType) -> KernelArgument {
    require(dtype == type, "expected \(type), got \(dtype) of shape \(shape)")
    return KernelArgument(bits: deviceView.address)
  }

  var floats: KernelArgument { address(of: .float32) }
  var integers: KernelArgument { address(of: .int32) }
  var doubles: KernelArgument { address(of: .float64) }
}

extension KernelArgument {
  /// Values of a tensor with their type; null for none.
  init(values tensor: Tensor?) { self = tensor?.values ?? KernelArgument(bits: 0) }
  /// The elements of a float32 tensor; null for none.
  init(floats tensor: Tensor?) { self = tensor?.floats ?? KernelArgument(bits: 0) }
}

/// Blocks of a card's memory by size, kept for the next that asks for as much: the driver's own calls wait for the card.
final class DeviceArena {
  private let device: Device
  private var spare: [Int: [UInt64]] = [:]
  private(set) var liveBytes = 0
  private(set) var peakBytes = 0
  /// Bytes that are kept and not lent out.
  private var spareBytes = 0

  init(_ device: Device) { self.device = device }

  deinit { trim() }

  /// Blocks come in steps of an eighth of their power of two, so that nearly equal sizes share one.
  private static func blockSize(_ byteCount: Int) -> Int {
    let least = max(byteCount, 512)
    let step = max(512, (1 << (Int.bitWidth - 1 - least.leadingZeroBitCount)) / 8)
    return (least + step - 1) / step * step
  }

  func take(_ byteCount: Int) throws -> UInt64 {
    let size = Self.blockSize(byteCount)
    if let block = spare[size]?.popLast() {
      spareBytes -= size
      lend(size)
      return block
    }
    try device.makeCurrent()
    if let block = try device.allocate(byteCount: size) {
      lend(size)
      return block
    }
    // What is kept in other sizes goes back to the driver first.
    try device.synchronize()
    trim()
    if let block = try device.allocate(byteCount: size) {
      lend(size)
      return block
    }
    throw CUDAError(
      .fault,
      "card \(device.index) (\(device.name)) is out of memory: \(size >> 20) MiB were asked for, \(liveBytes >> 20) MiB are in "
        + "use by this process and \(try device.freeMemory() >> 20) MiB free; a smaller train.micro_batch or "
        + "train.recompute: cheap or layer takes less")
  }

  private func lend(_ size: Int) {
    liveBytes += size
    peakBytes = max(peakBytes, liveBytes)
  }

  func release(_ address: UInt64, byteCount: Int) {
    let size = Self.blockSize(byteCount)
    liveBytes -= size
    spareBytes += size
    spare[size, default: []].append(address)
  }

  func trim() {
    for block in spare.values.joined() { device.free(block) }
    spare = [:]
    spareBytes = 0
  }

  func resetPeak() { peakBytes = liveBytes }
}
