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
