/// Explicit copies between a tensor and host arrays; the only element access outside a backend.
extension Backend {
  /// A float32 tensor with these elements.
  package func tensor(_ values: [Float], _ shape: [Int]) -> Tensor {
    let tensor = empty(shape)
    precondition(values.count == tensor.count, "\(values.count) values for shape \(shape)")
    if tensor.storage.address != nil { tensor.floats.update(from: values, count: values.count) }
    return tensor
  }

  /// An int32 tensor with these elements, of one dimension.
  package func tensor(_ values: [Int32]) -> Tensor {
    let tensor = empty([values.count], .int32)
    if tensor.storage.address != nil { tensor.integers.update(from: values, count: values.count) }
    return tensor
  }
}

extension Tensor {
  /// Replaces the elements, which must be float32, by as many values.
  package func set(_ values: UnsafeBufferPointer<Float>) {
    precondition(values.count == count, "\(values.count) values for shape \(shape)")
    if storage.address != nil, let base = values.baseAddress { floats.update(from: base, count: count) }
  }

  /// The elements as a host array of float32; zeros where only shapes are computed.
  package func toArray() -> [Float] {
    guard storage.address != nil else { return [Float](repeating: 0, count: count) }
    if dtype == .bfloat16 {
      return UnsafeBufferPointer(start: bfloats, count: count).map { Float(bitPattern: UInt32($0) << 16) }
    }
    return Array(UnsafeBufferPointer(start: floats, count: count))
  }

  /// The sum of the elements in their order, in double precision.
  package func hostSum() -> Double {
    guard storage.address != nil else { return 0 }
    var sum = 0.0
    for value in UnsafeBufferPointer(start: floats, count: count) { sum += Double(value) }
    return sum
  }
}
