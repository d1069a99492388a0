import CCUDA

/// Products of bfloat16 matrices by cuBLASLt, sums in float32.
package final class MatrixProducts: @unchecked Sendable {
  package let version: Int
  package let path: String
  private let device: Device
  private let library: Library
  private let handle: cublasLtHandle_t
  private let workspace: DeviceBuffer
  private let destroy: cublasLtDestroy_t
  private let descriptionCreate: cublasLtMatmulDescCreate_t
  private let descriptionDestroy: cublasLtMatmulDescDestroy_t
  private let descriptionSet: cublasLtMatmulDescSetAttribute_t
  private let layoutCreate: cublasLtMatrixLayoutCreate_t
  private let layoutDestroy: cublasLtMatrixLayoutDestroy_t
  private let preferenceCreate: cublasLtMatmulPreferenceCreate_t
  private let preferenceDestroy: cublasLtMatmulPreferenceDestroy_t
  private let preferenceSet: cublasLtMatmulPreferenceSetAttribute_t
  private let heuristic: cublasLtMatmulAlgoGetHeuristic_t
  private let multiply: cublasLtMatmul_t

  /// - Throws: `CUDAError.missing` without the library.
  package init(_ device: Device) throws {
    let library = try Library.open(.matrices)
    (self.device, self.library, path) = (device, library, library.path)
    let version: cublasLtGetVersion_t = try library.function("cublasLtGetVersion")
    self.version = Int(version())
    let create: cublasLtCreate_t = try library.function("cublasLtCreate")
    destroy = try library.function("cublasLtDestroy")
    descriptionCreate = try library.function("cublasLtMatmulDescCreate")
    descriptionDestroy = try library.function("cublasLtMatmulDescDestroy")
    descriptionSet = try library.function("cublasLtMatmulDescSetAttribute")
    layoutCreate = try library.function("cublasLtMatrixLayoutCreate")
    layoutDestroy = try library.function("cublasLtMatrixLayoutDestroy")
    preferenceCreate = try library.function("cublasLtMatmulPreferenceCreate")
    preferenceDestroy = try library.function("cublasLtMatmulPreferenceDestroy")
    preferenceSet = try library.function("cublasLtMatmulPreferenceSetAttribute")
    heuristic = try library.function("cublasLtMatmulAlgoGetHeuristic")
    multiply = try library.function("cublasLtMatmul")
    var handle: cublasLtHandle_t?
    let status = create(&handle)
    guard status == 0, let handle else {
      throw CUDAError(
        .fault, "cuBLASLt (\(path)) cannot start: status \(status); its version must suit the driver of the card")
    }
    self.handle = handle
    workspace = try DeviceBuffer(device, byteCount: 64 << 20)
  }

  deinit { _ = destroy(handle) }

  /// c [m, n] = a [m, k] · bᵀ [n, k], all bfloat16 and row-major: y = x wᵀ as models multiply.
  ///
  /// The algorithm is the library's first choice for the shape, the same on every call.
  package func multiply(_ a: DeviceBuffer, _ b: DeviceBuffer, into c: DeviceBuffer, m: Int, n: Int, k: Int) throws {
    func check(_ status: cublasStatus_t, _ action: String) throws {
      guard status != 0 else { return }
      throw CUDAError(
        .fault, "cuBLASLt (\(path)): \(action) of [\(m), \(k)] and [\(n), \(k)] failed with status \(status)")
    }
    // The library counts columns first: row-major c is its transpose, b · aᵀ with b read transposed.
    // CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF; CUBLASLT_MATMUL_DESC_TRANSA; CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
    var description: cublasLtMatmulDesc_t?
    try check(descriptionCreate(&description, 68, 0), "describing the product")
    defer { _ = descriptionDestroy(description) }
    var transposed: Int32 = 1
    try check(descriptionSet(description, 3, &transposed, 4), "describing the product")
    var layouts = [cublasLtMatrixLayout_t?](repeating: nil, count: 3)
    defer { for layout in layouts where layout != nil { _ = layoutDestroy(layout) } }
    for (i, (rows, columns)) in [(k, n), (k, m), (n, m)].enumerated() {
      try check(layoutCreate(&layouts[i], 14, UInt64(rows), UInt64(columns), Int64(rows)), "describing a matrix")
    }
    var preference: cublasLtMatmulPreference_t?
    try check(preferenceCreate(&preference), "choosing a kernel")
    defer { _ = preferenceDestroy(preference) }
    var bytes = workspace.byteCount
    try check(preferenceSet(preference, 1, &bytes, 8), "choosing a kernel")
    var result = cublasLtMatmulHeuristicResult_t()
    var found: Int32 = 0
    try check(
      heuristic(handle, description, layouts[0], layouts[1], layouts[2], layouts[2], preference, 1, &result, &found),
      "choosing a kernel")
    guard found > 0 else {
      throw CUDAError(.fault, "cuBLASLt (\(path)) has no kernel for [\(m), \(k)] and [\(n), \(k)]")
    }
    var (one, zero): (Float, Float) = (1, 0)
    try check(
      multiply(
        handle, description, &one, b.address, layouts[0], a.address, layouts[1], &zero, c.address, layouts[2],
        c.address, layouts[2], &result.algo, workspace.address, workspace.byteCount, device.stream.handle),
      "the product")
  }
}
