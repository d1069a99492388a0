import Foundation
import Tensors

/// Elements, rows, columns, matrices, tables, losses and the optimizer.
extension ReferenceBackend {
  package func fill(_ x: Tensor, with value: Float) {
    let x = view(x)
    for i in 0..<x.count { x[i] = Double(value) }
  }

  package func copy(_ x: Tensor, into y: Tensor) {
    let rounds = y.dtype == .bfloat16 && x.dtype != .bfloat16
    let (x, y) = (view(x), view(y))
    precondition(x.count == y.count, "copy of \(x.count) into \(y.count) elements")
    for i in 0..<x.count { y[i] = rounds ? Self.roundedToBFloat16(x[i]) : x[i] }
  }

  /// The value of eight significant bits nearest to the float32 `x`, ties to even, by arithmetic rather than by bits.
  package static func roundedToBFloat16(_ x: Double) -> Double {
    let single = Double(Float(x))
    guard single.isFinite, single != 0 else { return single }
    // The spacing of bfloat16 here; below the smallest normal number it stays what it is there.
    let exponent = max(single.exponent, -126)
    let spacing = Double(sign: .plus, exponent: exponent - 7, significand: 1)
    let rounded = (single / spacing).rounded(.toNearestOrEven) * spacing
    return abs(rounded) >= 0x1p128 ? (rounded < 0 ? -.infinity : .infinity) : rounded
  }

  package func add(_ x: Tensor, scale: Float, into y: Tensor) {
    let (x, y) = (view(x), view(y))
    precondition(x.count == y.count, "add of \(x.count) into \(y.count) elements")
    for i in 0..<x.count { y[i] += Double(scale) * x[i] }
  }

  package func product(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool) {
    let (x, y, out) = (view(x), view(y), view(out))
    precondition(x.count == y.count && y.count == out.count, "product of \(x.count) and \(y.count) elements")
    for i in 0..<x.count { out[i] = x[i] * y[i] + (adds ? out[i] : 0) }
  }

  package static func sigmoid(_ x: Double) -> Double { 1 / (1 + exp(-x)) }
  private static func softplus(_ x: Double) -> Double { max(x, 0) + log1p(exp(-abs(x))) }

  private static func geluArgument(_ x: Double) -> Double { (2 / Double.pi).squareRoot() * (x + 0.044715 * x * x * x) }

  private static func value(_ function: ElementFunction, _ x: Double) -> Double {
    switch function {
    case .silu: x * sigmoid(x)
    case .gelu: 0.5 * x * (1 + tanh(geluArgument(x)))
    case .sigmoid: sigmoid(x)
    case .logSigmoid(let scale): -Double(scale) * softplus(-x)
    case .softplus: softplus(x)
    case .tanh: tanh(x)
    case .negativeExponential: -exp(x)
    case .scaledSigmoid(let scale): Double(scale) * sigmoid(x)
    case .sigmoidMinusOne: -sigmoid(-x)
    case .inverseRoot(let scale, let epsilon): 1 / (Double(scale) * x + Double(epsilon)).squareRoot()
    }
  }

  private static func slope(_ function: ElementFunction, x: Double, y: Double) -> Double {
    switch function {
    case .silu: sigmoid(x) * (1 + x * (1 - sigmoid(x)))
    case .gelu:
      0.5 * (1 + tanh(geluArgument(x)))
        + 0.5 * x * (1 - pow(tanh(geluArgument(x)), 2)) * (2 / Double.pi).squareRoot() * (1 + 3 * 0.044715 * x * x)
    case .sigmoid: y * (1 - y)
    case .logSigmoid(let scale): Double(scale) * sigmoid(-x)
    case .softplus: sigmoid(x)
    case .tanh: 1 - y * y
    case .negativeExponential: y
    case .scaledSigmoid(let scale): y * (1 - y / Double(scale))
    case .sigmoidMinusOne: -y * (1 + y)
    case .inverseRoot(let scale, _): -0.5 * Double(scale) * y * y * y
    }
  }

  package func apply(_ function: ElementFunction, _ x: Tensor, into y: Tensor) {
    let (x, y) = (view(x), view(y))
    for i in 0..<x.count { y[i] = Self.value(function, x[i]) }
  }

  package func applyBackward(_ function: ElementFunction, _ dy: Tensor, x: Tensor, y: Tensor, into dx: Tensor) {
    let (dy, x, y, dx) = (view(dy), view(x), view(y), view(dx))
    for i in 0..<x.count { dx[i] = dy[i] * Self.slope(function, x: x[i], y: y[i]) }
  }

  // MARK: - Rows and columns

  package func scaleRows(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool) {
    let (x, scales, y) = (view(x), view(scales), view(y))
    let size = x.count / scales.count
    precondition(size * scales.count == x.count && y.count == x.count, "\(x.count) elements by \(scales.count) scales")
    for i in 0..<x.count { y[i] = scales[i / size] * x[i] + (adds ? y[i] : 0) }
  }

  package func rowProducts(_ x: Tensor, _ y: Tensor, into out: Tensor) {
    let (x, y, out) = (view(x), view(y), view(out))
    let size = x.count / out.count
    precondition(size * out.count == x.count && y.count == x.count, "\(out.count) rows of \(x.count) and \(y.count)")
    for m in 0..<out.count { out[m] = (0..<size).reduce(0) { $0 + x[m * size + $1] * y[m * size + $1] } }
  }

  package func scaleColumns(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool) {
    let (columns, group) = (x.columns, x.columns / scales.count)
    precondition(group * scales.count == columns && y.count == x.count, "columns of \(x.shape) by \(scales.shape)")
    let (x, scales, y) = (view(x), view(scales), view(y))
    for i in 0..<x.count { y[i] = scales[i % columns / group] * x[i] + (adds ? y[i] : 0) }
  }

  package func columnProducts(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool) {
    let (columns, group) = (x.columns, x.columns / out.count)
    precondition(group * out.count == columns && y.count == x.count, "columns of \(x.shape) into \(out.shape)")
    let (x, y, out) = (view(x), view(y), view(out))
    for s in 0..<out.count {
      var sum = 0.0
      for i in 0..<x.count where i % columns / group == s { sum += x[i] * y[i] }
      out[s] = sum + (adds ? out[s] : 0)
    }
  }

  package func copyColumns(_ x: Tensor, _ range: Range<Int>, into y: Tensor) {
    let (columns, width) = (x.columns, range.count)
    precondition(range.upperBound <= columns && y.count == x.rows * width, "columns \(range) of \(x.shape)")
    let (x, y) = (view(x), view(y))
    for i in 0..<y.count { y[i] = x[i / width * columns + range.lowerBound + i % width] }
  }

  package func addColumns(_ dy: Tensor, into dx: Tensor, _ range: Range<Int>, adds: Bool) {
    let (columns, width) = (dx.columns, range.count)
    precondition(range.upperBound <= columns && dy.count == dx.rows * width, "columns \(range) of \(dx.shape)")
    let (dy, dx) = (view(dy), view(dx))
    for i in 0..<dx.count {
      let column = i % columns
      let value = range.contains(column) ? dy[i / columns * width + column - range.lowerBound] : 0
      dx[i] = value + (adds ? dx[i] : 0)
    }
  }

  // MARK: - Matrices and tables

  package func multiply(
    _ a: Tensor, transposed aTransposed: Bool, _ b: Tensor, transposed bTransposed: Bool, into c: Tensor,
    alpha: Float, adds: Bool
  ) {
    let (aColumns, bColumns, columns) = (a.columns, b.columns, c.columns)
    let inner = aTransposed ? a.rows : a.columns
    precondition(
      inner == (bTransposed ? b.columns : b.rows) && c.rows == (aTransposed ? a.columns : a.rows)
        && columns == (bTransposed ? b.rows : b.columns), "multiply of \(a.shape) and \(b.shape) into \(c.shape)")
    count(2 * c.count * inner)
    let (a, b, c) = (view(a), view(b), view(c))
    // Rows of op(a) and columns of op(b), each end to end: the tests' longest loop.
    let rows = (0..<c.count / columns * inner).map { i in
      a[aTransposed ? i % inner * aColumns + i / inner : i]
    }
    let others = (0..<columns * inner).map { i in
      b[bTransposed ? i : i % inner * bColumns + i / inner]
    }
    rows.withUnsafeBufferPointer { rows in
      others.withUnsafeBufferPointer { others in
        for i in 0..<c.count {
          let (row, column) = (i / columns * inner, i % columns * inner)
          var sum = 0.0
          for k in 0..<inner { sum += rows[row + k] * others[column + k] }
          c[i] = Double(alpha) * sum + (adds ? c[i] : 0)
        }
      }
    }
  }

  package func gather(_ table: Tensor, _ ids: Tensor, into out: Tensor) {
    let columns = table.columns
    let (table, ids, out) = (view(table), view(ids), view(out))
    for i in 0..<out.count { out[i] = table[Int(ids[i / columns]) * columns + i % columns] }
  }

  package func scatterAdd(_ x: Tensor, _ ids: Tensor, into table: Tensor) {
    let columns = table.columns
    let (x, ids, table) = (view(x), view(ids), view(table))
    for i in 0..<x.count { table[Int(ids[i / columns]) * columns + i % columns] += x[i] }
  }

  // MARK: - Losses and the optimizer

  package func vocabularyLoss(
    logits: Tensor, teacherLogits: Tensor?, labels: Tensor, crossEntropyScale: Float, klScale: Float,
    crossEntropy: Tensor, kl: Tensor
  ) {
    let (rows, size) = (logits.rows, logits.columns)
    let (logits, teacher, labels) = (view(logits), teacherLogits.map(view), view(labels))
    let (crossEntropy, kl) = (view(crossEntropy), view(kl))
    func logProbabilities(_ z: View, _ row: Int) -> [Double] {
      let z = (0..<size).map { z[row * size + $0] }
      let most = z.max()!
      let sum = log(z.reduce(0) { $0 + exp($1 - most) }) + most
      return z.map { $0 - sum }
    }
    for n in 0..<rows {
      let label = Int(labels[n])
      guard label >= 0 else {
        (crossEntropy[n], kl[n]) = (0, 0)
        for v in 0..<size { logits[n * size + v] = 0 }
        continue
      }
      let p = logProbabilities(logits, n)
      crossEntropy[n] = -p[label]
      let t = teacher.map { logProbabilities($0, n) }
      kl[n] = t.map { zip($0, p).reduce(0) { $0 + exp($1.0) * ($1.0 - $1.1) } } ?? 0
      for v in 0..<size {
        let fromLabel = Double(crossEntropyScale) * (exp(p[v]) - (v == label ? 1 : 0))
        let fromTeacher = t.map { Double(klScale) * (exp(p[v]) - exp($0[v])) } ?? 0
        logits[n * size + v] = fromLabel + fromTeacher
      }
    }
  }

  package func adamW(
    parameters: Tensor, gradients: Tensor, moment1: Tensor, moment2: Tensor, step: AdamWStep
  ) {
    let (w, g, m, v) = (view(parameters), view(gradients), view(moment1), view(moment2))
    let (beta1, beta2) = (Double(step.beta1), Double(step.beta2))
    for i in 0..<w.count {
      let gradient = g[i] * Double(step.gradientScale)
      m[i] = beta1 * m[i] + (1 - beta1) * gradient
      v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient
      let root = (v[i] / Double(step.correction2)).squareRoot() + Double(step.epsilon)
      w[i] -= Double(step.learningRate) * (m[i] / Double(step.correction1) / root + Double(step.weightDecay) * w[i])
    }
  }

  package func sumElements(_ x: Tensor, scale: Double, into sum: Tensor) {
    precondition(sum.count == 1 && sum.dtype == .float64, "a sum into \(sum.dtype) of shape \(sum.shape)")
    view(sum)[0] = scale * view(x).array.reduce(0, +)
  }

  package func sumsOfSquares(_ x: Tensor, blockSize: Int, into sums: Tensor) {
    precondition(sums.dtype == .float64, "sums into \(sums.dtype)")
    let (x, sums) = (view(x), view(sums))
    for block in 0..<sums.count {
      let elements = block * blockSize..<min((block + 1) * blockSize, x.count)
      sums[block] = elements.reduce(0) { $0 + x[$1] * x[$1] }
    }
  }
}
