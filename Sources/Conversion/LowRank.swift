import COpenBLAS

/// The best approximation of a product of two factors by narrower ones (Eckart and Young, 1936).
package struct LowRank {
  /// `[rank, n]` each, with leftᵀ right nearest to the given product.
  package let left: [Float]
  package let right: [Float]
  /// ‖what is missing‖ / ‖the product‖, Frobenius.
  package let loss: Double

  /// - Parameters:
  ///   - left: `[size, n]`, row-major, size at most n
  ///   - right: `[size, n]`
  ///   - rank: at most size
  package init(left: [Float], right: [Float], size: Int, columns n: Int, rank: Int) {
    precondition(rank <= size && size <= n, "rank \(rank) of factors of \(size) by \(n)")
    // leftᵀ right = Q₁ (R₁ R₂ᵀ) Q₂ᵀ, so that only a [size, size] matrix needs singular values.
    let (q1, r1) = Self.orthogonal(left, size, n)
    let (q2, r2) = Self.orthogonal(right, size, n)
    var core = [Float](repeating: 0, count: size * size)
    let s = Int32(size)
    cblas_sgemm(CblasColMajor, CblasNoTrans, CblasTrans, s, s, s, 1, r1, s, r2, s, 0, &core, s)
    let (u, values, vt) = Self.singularValues(&core, size)
    func factor(_ q: [Float], weights: (_ k: Int, _ d: Int) -> Float) -> [Float] {
      var out = [Float](repeating: 0, count: rank * n)
      for k in 0..<rank {
        let root = values[k].squareRoot()
        out.withUnsafeMutableBufferPointer { out in
          q.withUnsafeBufferPointer { q in
            for d in 0..<size {
              cblas_saxpy(
                Int32(n), root * weights(k, d), q.baseAddress! + d * n, 1, out.baseAddress! + k * n, 1)
            }
          }
        }
      }
      return out
    }
    self.left = factor(q1) { k, d in u[k * size + d] }
    self.right = factor(q2) { k, d in vt[d * size + k] }
    let squares = values.map { Double($0) * Double($0) }
    let total = squares.reduce(0, +)
    loss = total > 0 ? (squares[rank...].reduce(0, +) / total).squareRoot() : 0
  }

  /// Row-major [size, n] with orthonormal rows, and the upper triangle [size, size], column-major.
  private static func orthogonal(_ rows: [Float], _ size: Int, _ n: Int) -> (q: [Float], r: [Float]) {
    var (m, k, info) = (Int32(n), Int32(size), Int32(0))
    var q = rows
    var tau = [Float](repeating: 0, count: size)
    var length = Int32(64 * size)
    var work = [Float](repeating: 0, count: 64 * size)
    sgeqrf_(&m, &k, &q, &m, &tau, &work, &length, &info)
    precondition(info == 0, "sgeqrf: argument \(-info)")
    var r = [Float](repeating: 0, count: size * size)
    for column in 0..<size {
      for row in 0...column { r[column * size + row] = q[column * n + row] }
    }
    var columns = k
    sorgqr_(&m, &k, &columns, &q, &m, &tau, &work, &length, &info)
    precondition(info == 0, "sorgqr: argument \(-info)")
    return (q, r)
  }

  private static func singularValues(
    _ matrix: inout [Float], _ size: Int
  ) -> (u: [Float], values: [Float], vt: [Float]) {
    var n = Int32(size)
    var u = [Float](repeating: 0, count: size * size)
    var vt = u
    var values = [Float](repeating: 0, count: size)
    var length = Int32(8 * size * size + 64 * size)
    var work = [Float](repeating: 0, count: Int(length))
    var integers = [Int32](repeating: 0, count: 8 * size)
    var info: Int32 = 0
    var job = CChar(UInt8(ascii: "A"))
    sgesdd_(&job, &n, &n, &matrix, &n, &values, &u, &n, &vt, &n, &work, &length, &integers, &info)
    precondition(info == 0, "sgesdd: \(info)")
    return (u, values, vt)
  }
}
