import CCUDA

/// Products of matrices by cuBLASLt, sums in float32.
package final class MatrixProducts: @unchecked Sendable {
  package enum Elements: Int32, Sendable {
    // CUDA_R_32F, CUDA_R_16BF
    case float32 = 0
    case bfloat16 = 14
  }

  /// A product of row-major matrices: c [m, n] = alpha · op(a) op(b), the inner size k; a and b are of one type.
  package struct Shape: Hashable, Sendable {
    package var m, n, k: Int
    package var aTransposed, bTransposed: Bool
    package var operands, result: Elements
    /// Elements from row to row of each matrix, where they are columns of wider ones; nil where rows lie end to end.
    package var strides: Strides?

    package struct Strides: Hashable, Sendable {
      let a, b, c: Int

      package init(a: Int, b: Int, c: Int) { (self.a, self.b, self.c) = (a, b, c) }
    }

    package init(
      m: Int, n: Int, k: Int, aTransposed: Bool, bTransposed: Bool, operands: Elements, result: Elements,
      strides: Strides? = nil
    ) {
      self.strides = strides
      (self.m, self.n, self.k) = (m, n, k)
      (self.aTransposed, self.bTransposed) = (aTransposed, bTransposed)
      (self.operands, self.result) = (operands, result)
    }
  }

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
  private var plans: [PlanName: Plan?] = [:]

  private struct PlanName: Hashable {
    let shape: Shape
    /// Of the addresses, in bytes, at most 16.
    let alignment: UInt64
    let adds: Bool
  }

  /// What is found once for a shape: the library's first choice, the same on every call.
  private struct Plan {
    let description: cublasLtMatmulDesc_t
    let a, b, c: cublasLtMatrixLayout_t
    var algorithm: cublasLtMatmulAlgo_t
  }

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

  deinit {
    for case let plan? in plans.values {
      for layout in [plan.a, plan.b, plan.c] { _ = layoutDestroy(layout) }
      _ = descriptionDestroy(plan.description)
    }
    _ = destroy(handle)
  }

  /// The product of `shape`, of matrices at these addresses; added to the matrix at `base`, which lies as c does and may be
  /// it.
  ///
  /// - Returns: false where the library has no kernel for it; nothing was computed then
  package func multiply(
    _ shape: Shape, _ a: UInt64, _ b: UInt64, into c: UInt64, alpha: Float = 1, onto base: UInt64? = nil
  ) throws -> Bool {
    let all = a | b | c | (base ?? 0) | 16
    let name = PlanName(shape: shape, alignment: all & (~all + 1), adds: base != nil)
    if plans[name] == nil { plans[name] = .some(try plan(name)) }
    guard var plan = plans[name]! else { return false }
    var (alpha, beta): (Float, Float) = (alpha, base == nil ? 0 : 1)
    // The library counts columns first: row-major c is its transpose, op(b)ᵀ op(a)ᵀ.
    try check(
      multiply(
        handle, plan.description, &alpha, b, plan.b, a, plan.a, &beta, base ?? c, plan.c, c, plan.c, &plan.algorithm,
        workspace.address, workspace.byteCount, device.stream.handle), "the product", shape)
    return true
  }

  private func check(_ status: cublasStatus_t, _ action: String, _ shape: Shape) throws {
    guard status != 0 else { return }
    throw CUDAError(
      .fault,
      "cuBLASLt (\(path)): \(action) of [\(shape.m), \(shape.k)] and [\(shape.k), \(shape.n)] failed with status \(status)"
    )
  }

  private func plan(_ name: PlanName) throws -> Plan? {
    let shape = name.shape
    // CUBLAS_COMPUTE_32F (no tf32), scale CUDA_R_32F
    var description: cublasLtMatmulDesc_t?
    try check(descriptionCreate(&description, 68, 0), "describing the product", shape)
    // A row-major matrix is the transpose of what the library takes it for. CUBLASLT_MATMUL_DESC_TRANSA, _TRANSB.
    for (attribute, isTransposed) in [(Int32(3), shape.bTransposed), (4, shape.aTransposed)] {
      var operation: Int32 = isTransposed ? 1 : 0
      try check(descriptionSet(description, attribute, &operation, 4), "describing the product", shape)
    }
    func layout(_ elements: Elements, rows: Int, columns: Int, stride: Int?) throws -> cublasLtMatrixLayout_t {
      var layout: cublasLtMatrixLayout_t?
      try check(
        layoutCreate(&layout, elements.rawValue, UInt64(columns), UInt64(rows), Int64(stride ?? columns)),
        "describing a matrix",
        shape)
      return layout!
    }
    let a = try layout(
      shape.operands, rows: shape.aTransposed ? shape.k : shape.m, columns: shape.aTransposed ? shape.m : shape.k,
      stride: shape.strides?.a)
    let b = try layout(
      shape.operands, rows: shape.bTransposed ? shape.n : shape.k, columns: shape.bTransposed ? shape.k : shape.n,
      stride: shape.strides?.b)
    let c = try layout(shape.result, rows: shape.m, columns: shape.n, stride: shape.strides?.c)
    var preference: cublasLtMatmulPreference_t?
    try check(preferenceCreate(&preference), "choosing a kernel", shape)
    defer { _ = preferenceDestroy(preference) }
    // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
    var bytes = workspace.byteCount
    try check(preferenceSet(preference, 1, &bytes, 8), "choosing a kernel", shape)
    // CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: parts of k are added up in the workspace, in order.
    var schemes: UInt32 = 2
    try check(preferenceSet(preference, 3, &schemes, 4), "choosing a kernel", shape)
    // CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES and those of B, C, D
    for attribute in Int32(5)...8 {
      var alignment = UInt32(name.alignment)
      try check(preferenceSet(preference, attribute, &alignment, 4), "choosing a kernel", shape)
    }
    var result = cublasLtMatmulHeuristicResult_t()
    var found: Int32 = 0
    let status = heuristic(handle, description, b, a, c, c, preference, 1, &result, &found)
    guard status == 0, found > 0 else {
      for layout in [a, b, c] { _ = layoutDestroy(layout) }
      _ = descriptionDestroy(description)
      return nil
    }
    return Plan(description: description!, a: a, b: b, c: c, algorithm: result.algo)
  }
}
