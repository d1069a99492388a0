import Tensors

/// Sums in double precision, which stay on the device until they are read back together.
extension CPUBackend {
  /// In the order of the elements.
  package func sumElements(_ x: Tensor, scale: Double, into sum: Tensor) {
    precondition(sum.count == 1, "one sum into shape \(sum.shape)")
    var total = 0.0
    if x.dtype == .float64 {
      let p = x.doubles
      for i in 0..<x.count { total += p[i] }
    } else {
      let p = x.floats
      for i in 0..<x.count { total += Double(p[i]) }
    }
    sum.doubles[0] = total * scale
  }

  package func sumsOfSquares(_ x: Tensor, blockSize: Int, into sums: Tensor) {
    let (p, out, count) = (x.floats, sums.doubles, x.count)
    let blocks = (count + blockSize - 1) / blockSize
    precondition(sums.count == blocks, "sums of \(blocks) blocks into shape \(sums.shape)")
    parallel(blocks) { b in
      var sum = SIMD16<Double>.zero
      sweep(min(blockSize, count - b * blockSize)) { i, n in
        let value = SIMD16<Double>(p.lanes(b * blockSize + i, n))
        sum = sum.addingProduct(value, value)
      }
      out[b] = sum.sum()
    }
  }
}
