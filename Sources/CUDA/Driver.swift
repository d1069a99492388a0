import CCUDA

/// The functions of the driver that jettrain calls.
final class Driver: @unchecked Sendable {
  let library: Library
  let cuGetErrorName: cuGetErrorName_t
  let cuGetErrorString: cuGetErrorString_t
  let cuDriverGetVersion: cuDriverGetVersion_t
  let cuDeviceGetCount: cuDeviceGetCount_t
  let cuDeviceGet: cuDeviceGet_t
  let cuDeviceGetName: cuDeviceGetName_t
  let cuDeviceTotalMem: cuDeviceTotalMem_t
  let cuDeviceGetAttribute: cuDeviceGetAttribute_t
  let cuDeviceGetPCIBusId: cuDeviceGetPCIBusId_t
  let cuDevicePrimaryCtxRetain: cuDevicePrimaryCtxRetain_t
  let cuDevicePrimaryCtxRelease: cuDevicePrimaryCtxRelease_t
  let cuCtxSetCurrent: cuCtxSetCurrent_t
  let cuCtxSynchronize: cuCtxSynchronize_t
  let cuMemGetInfo: cuMemGetInfo_t
  let cuMemAlloc: cuMemAlloc_t
  let cuMemFree: cuMemFree_t
  let cuMemHostAlloc: cuMemHostAlloc_t
  let cuMemFreeHost: cuMemFreeHost_t
  let cuMemcpyHtoDAsync: cuMemcpyHtoDAsync_t
  let cuMemcpyDtoHAsync: cuMemcpyDtoHAsync_t
  let cuMemcpyDtoDAsync: cuMemcpyDtoDAsync_t
  let cuMemsetD8Async: cuMemsetD8Async_t
  let cuStreamCreate: cuStreamCreate_t
  let cuStreamDestroy: cuStreamDestroy_t
  let cuStreamSynchronize: cuStreamSynchronize_t
  let cuStreamWaitEvent: cuStreamWaitEvent_t
  let cuEventCreate: cuEventCreate_t
  let cuEventDestroy: cuEventDestroy_t
  let cuEventRecord: cuEventRecord_t
  let cuEventQuery: cuEventQuery_t
  let cuEventSynchronize: cuEventSynchronize_t
  let cuEventElapsedTime: cuEventElapsedTime_t
  let cuModuleLoadData: cuModuleLoadData_t
  let cuModuleUnload: cuModuleUnload_t
  let cuModuleGetFunction: cuModuleGetFunction_t
  let cuModuleGetGlobal: cuModuleGetGlobal_t
  let cuFuncSetAttribute: cuFuncSetAttribute_t
  let cuLaunchKernel: cuLaunchKernel_t
  let cuStreamBeginCapture: cuStreamBeginCapture_t
  let cuStreamEndCapture: cuStreamEndCapture_t
  let cuGraphInstantiate: cuGraphInstantiateWithFlags_t
  let cuGraphLaunch: cuGraphLaunch_t
  let cuGraphDestroy: cuGraphDestroy_t
  let cuGraphExecDestroy: cuGraphExecDestroy_t

  /// The one driver of this process.
  ///
  /// - Throws: `CUDAError.missing` without the library or without a card.
  static func shared() throws -> Driver { try loaded.get() }
  private static let loaded = Result { try Driver() }

  private init() throws {
    let library = try Library.open(.driver)
    self.library = library
    cuGetErrorName = try library.function("cuGetErrorName")
    cuGetErrorString = try library.function("cuGetErrorString")
    cuDriverGetVersion = try library.function("cuDriverGetVersion")
    cuDeviceGetCount = try library.function("cuDeviceGetCount")
    cuDeviceGet = try library.function("cuDeviceGet")
    cuDeviceGetName = try library.function("cuDeviceGetName")
    cuDeviceTotalMem = try library.function("cuDeviceTotalMem_v2")
    cuDeviceGetAttribute = try library.function("cuDeviceGetAttribute")
    cuDeviceGetPCIBusId = try library.function("cuDeviceGetPCIBusId")
    cuDevicePrimaryCtxRetain = try library.function("cuDevicePrimaryCtxRetain")
    cuDevicePrimaryCtxRelease = try library.function("cuDevicePrimaryCtxRelease_v2")
    cuCtxSetCurrent = try library.function("cuCtxSetCurrent")
    cuCtxSynchronize = try library.function("cuCtxSynchronize")
    cuMemGetInfo = try library.function("cuMemGetInfo_v2")
    cuMemAlloc = try library.function("cuMemAlloc_v2")
    cuMemFree = try library.function("cuMemFree_v2")
    cuMemHostAlloc = try library.function("cuMemHostAlloc")
    cuMemFreeHost = try library.function("cuMemFreeHost")
    cuMemcpyHtoDAsync = try library.function("cuMemcpyHtoDAsync_v2")
    cuMemcpyDtoHAsync = try library.function("cuMemcpyDtoHAsync_v2")
    cuMemcpyDtoDAsync = try library.function("cuMemcpyDtoDAsync_v2")
    cuMemsetD8Async = try library.function("cuMemsetD8Async")
    cuStreamCreate = try library.function("cuStreamCreate")
    cuStreamDestroy = try library.function("cuStreamDestroy_v2")
    cuStreamSynchronize = try library.function("cuStreamSynchronize")
    cuStreamWaitEvent = try library.function("cuStreamWaitEvent")
    cuEventCreate = try library.function("cuEventCreate")
    cuEventDestroy = try library.function("cuEventDestroy_v2")
    cuEventRecord = try library.function("cuEventRecord")
    cuEventQuery = try library.function("cuEventQuery")
    cuEventSynchronize = try library.function("cuEventSynchronize")
    cuEventElapsedTime = try library.function("cuEventElapsedTime")
    cuModuleLoadData = try library.function("cuModuleLoadData")
    cuModuleUnload = try library.function("cuModuleUnload")
    cuModuleGetFunction = try library.function("cuModuleGetFunction")
    cuModuleGetGlobal = try library.function("cuModuleGetGlobal_v2")
    cuFuncSetAttribute = try library.function("cuFuncSetAttribute")
    cuLaunchKernel = try library.function("cuLaunchKernel")
    cuStreamBeginCapture = try library.function("cuStreamBeginCapture_v2")
    cuStreamEndCapture = try library.function("cuStreamEndCapture")
    cuGraphInstantiate = try library.function("cuGraphInstantiateWithFlags")
    cuGraphLaunch = try library.function("cuGraphLaunch")
    cuGraphDestroy = try library.function("cuGraphDestroy")
    cuGraphExecDestroy = try library.function("cuGraphExecDestroy")
    let cuInit: cuInit_t = try library.function("cuInit")
    let status = cuInit(0)
    guard status == 0 else {
      throw CUDAError(
        .missing,
        "no CUDA card can be used: the driver (\(library.path)) answers \(name(status)) (\(text(status))); "
          + "`nvidia-smi` shows what it sees")
    }
  }

  private func name(_ status: CUresult) -> String {
    var pointer: UnsafePointer<CChar>?
    return cuGetErrorName(status, &pointer) == 0 ? pointer.map { String(cString: $0) } ?? "" : "error \(status)"
  }

  private func text(_ status: CUresult) -> String {
    var pointer: UnsafePointer<CChar>?
    return cuGetErrorString(status, &pointer) == 0 ? pointer.map { String(cString: $0) } ?? "" : "unknown to the driver"
  }

  /// - Throws: `CUDAError.fault` when `status` is not success; `action` says what was tried.
  func check(_ status: CUresult, _ action: @autoclosure () -> String) throws {
    guard status != 0 else { return }
    throw CUDAError(.fault, "\(action()) failed: \(name(status)) (\(text(status))); \(Self.remedy(status))")
  }

  /// Whether a status comes from an earlier kernel and stays until the process ends.
  private static func remedy(_ status: CUresult) -> String {
    switch status {
    case 2: "ask for less at once (a smaller micro-batch, more recomputation) or end what else uses the card"
    case 214: "the card's memory has an error that it cannot correct: replace the card, or reset it"
    case 46, 999, 100, 101: "the card is busy, in exclusive use, or gone: see `nvidia-smi` and the kernel's log"
    case 700, 701, 702, 715, 716, 717, 718, 719, 720:
      "a kernel failed and the card accepts nothing more from this process: run `jettrain devices check`"
    default: "run `jettrain devices check`"
    }
  }
}
