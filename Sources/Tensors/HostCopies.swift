/// Copies between tensors and host arrays, on any backend.
extension Backend {
  /// A float32 tensor with these elements.
  package func tensor(_ values: [Float], _ shape: [Int]) -> Tensor {
    let tensor = empty(shape)
    tensor.upload(values)
    return tensor
  }

  /// An int32 tensor with these elements, of one dimension.
  package func tensor(_ values: [Int32]) -> Tensor {
    let tensor = empty([values.count], .int32)
    values.withUnsafeBytes { upload($0, into: tensor).wait() }
    return tensor
  }
}

extension Tensor {
  /// Replaces the elements of a float32 tensor.
  package func upload(_ values: [Float]) { values.withUnsafeBufferPointer { upload($0) } }

  /// Replaces the elements of a float32 tensor.
  package func upload(_ values: UnsafeBufferPointer<Float>) {
    precondition(dtype == .float32 && values.count == count, "\(values.count) values for \(dtype) of shape \(shape)")
    backend.upload(UnsafeRawBufferPointer(values), into: self).wait()
  }

  /// Gives every element a number between −1 and 1, the same ones each time and for every tensor: for measuring speed.
  package func fillAtRandom() {
    let flat = reshaped([count])
    // Not a divisor of the size of rows, which would all be the same.
    let pool = min(count, 1_048_583)
    let numbers = backend.tensor(
      (0..<pool).map { Float(Int32(truncatingIfNeeded: $0 &* 0x9E37_79B1)) * 0x1p-31 }, [pool])
    for first in stride(from: 0, to: count, by: pool) {
      let end = min(first + pool, count)
      backend.copy(numbers.rows(0..<end - first), into: flat.rows(first..<end))
    }
  }

  /// The elements `range` in memory order, as a view of one dimension.
  package func elements(_ range: Range<Int>) -> Tensor { reshaped([count]).rows(range) }

  /// The elements as a host array of float32; zeros where only shapes are computed.
  package func toArray() -> [Float] {
    if dtype == .bfloat16 { return hostElements(UInt16.self).map { Float(bitPattern: UInt32($0) << 16) } }
    precondition(dtype == .float32, "expected floats, got \(dtype)")
    return hostElements(Float.self)
  }

  /// The bits of a bfloat16 tensor: the upper halves of float32.
  package func toBits() -> [UInt16] {
    precondition(dtype == .bfloat16, "expected bfloat16, got \(dtype)")
    return hostElements(UInt16.self)
  }

  /// The elements of an int32 tensor.
  package func toIntegers() -> [Int32] {
    precondition(dtype == .int32, "expected int32, got \(dtype)")
    return hostElements(Int32.self)
  }

  /// The elements of a float64 tensor.
  package func toDoubles() -> [Double] {
    precondition(dtype == .float64, "expected float64, got \(dtype)")
    return hostElements(Double.self)
  }

  private func hostElements<Element>(_ type: Element.Type) -> [Element] {
    [Element](unsafeUninitializedCapacity: count) { buffer, initialized in
      let bytes = UnsafeMutableRawBufferPointer(start: buffer.baseAddress, count: count * dtype.size)
      if count > 0 { backend.download(self, into: bytes).wait() }
      initialized = count
    }
  }

  /// The sum of the elements in double precision, on the host.
  package func hostSum() -> Double {
    let sum = backend.empty([1], .float64)
    backend.sumElements(self, scale: 1, into: sum)
    return sum.toDoubles()[0]
  }
}
