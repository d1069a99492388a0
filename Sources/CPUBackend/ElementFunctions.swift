import Foundation
import Tensors

/// Functions of one element, and products that broadcast: what the gates of linear attention are made of.
extension CPUBackend {
  package func apply(_ function: ElementFunction, _ x: Tensor, into y: Tensor) {
    if function == .silu { return silu(x, into: y) }
    forEachPiece(x, y) { source, target, count in
      sweep(count) { i, n in
        let x = source.lanes(i, n)
        let value: Lanes =
          switch function {
          case .silu: x * x.sigmoid
          case .gelu: x * (2 * x.geluArgument).sigmoid
          case .sigmoid: x.sigmoid
          case .logSigmoid(let scale): -(-x).softplus * scale
          case .softplus: x.softplus
          case .tanh: 2 * (2 * x).sigmoid - 1
          case .negativeExponential: -x.exponential
          case .scaledSigmoid(let scale): x.sigmoid * scale
          case .sigmoidMinusOne: -(-x).sigmoid
          case .inverseRoot(let scale, let epsilon): 1 / (x * scale + epsilon).squareRoot()
          }
        target.store(value, i, n)
      }
    }
  }

  package func applyBackward(_ function: ElementFunction, _ dy: Tensor, x: Tensor, y: Tensor, into dx: Tensor) {
    if function == .silu { return siluBackward(dy, x, into: dx) }
    let (gradients, sources, values, targets) = (dy.floatRows, x.floatRows, y.floatRows, dx.floatRows)
    let columns = x.columns
    forEachSlice(rows: x.rows, columns: columns) { rows in
      for t in rows {
        let (gradient, source, value, target) = (gradients[t], sources[t], values[t], targets[t])
        sweep(columns) { i, n in
          let (x, y) = (source.lanes(i, n), value.lanes(i, n))
          let slope: Lanes =
            switch function {
            case .silu: x.sigmoid * (1 + x * (1 - x.sigmoid))
            case .gelu: x.geluSlope
            case .sigmoid: y * (1 - y)
            case .logSigmoid(let scale): (-x).sigmoid * scale
            case .softplus: x.sigmoid
            case .tanh: 1 - y * y
            case .negativeExponential: y
            case .scaledSigmoid(let scale): y * (1 - y / scale)
            case .sigmoidMinusOne: -y * (1 + y)
            case .inverseRoot(let scale, _): y * y * y * (-0.5 * scale)
            }
          target.store(gradient.lanes(i, n) * slope, i, n)
        }
      }
    }
  }

  package func product(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool) {
    precondition(x.count == y.count && y.count == out.count, "product of \(x.shape) and \(y.shape)")
    let (a, b, o) = (x.floats, y.floats, out.floats)
    forEachSlice(count: x.count) { offset, count in
      sweep(count) { i, n in
        let i = offset + i
        let value = a.lanes(i, n) * b.lanes(i, n)
        o.store(adds ? o.lanes(i, n) + value : value, i, n)
      }
    }
  }

  package func scaleRows(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool) {
    let size = x.count / scales.count
    precondition(size * scales.count == x.count, "rows of \(x.shape) by \(scales.shape)")
    let (source, factors, target) = (x.floats, scales.floats, y.floats)
    forEachSlice(rows: scales.count, columns: size) { rows in
      for m in rows {
        if adds {
          axpy(factors[m], source + m * size, into: target + m * size, size)
        } else {
          scaled(factors[m], source + m * size, into: target + m * size, size)
        }
      }
    }
  }

  package func rowProducts(_ x: Tensor, _ y: Tensor, into out: Tensor) {
    let size = x.count / out.count
    let (a, b, o) = (x.floats, y.floats, out.floats)
    forEachSlice(rows: out.count, columns: size) { rows in
      for m in rows { o[m] = dot(a + m * size, b + m * size, size) }
    }
  }

  package func scaleColumns(_ x: Tensor, by scales: Tensor, into y: Tensor, adds: Bool) {
    let (columns, group) = (x.columns, x.columns / scales.count)
    precondition(group * scales.count == columns, "columns of \(x.shape) by \(scales.shape)")
    let (source, factors, target) = (x.floats, scales.floats, y.floats)
    forEachSlice(rows: x.rows, columns: columns) { rows in
      for t in rows {
        let (row, out) = (source + t * columns, target + t * columns)
        if group == 1 {
          sweep(columns) { i, n in
            let value = row.lanes(i, n) * factors.lanes(i, n)
            out.store(adds ? out.lanes(i, n) + value : value, i, n)
          }
        } else {
          for s in 0..<columns / group {
            if adds {
              axpy(factors[s], row + s * group, into: out + s * group, group)
            } else {
              scaled(factors[s], row + s * group, into: out + s * group, group)
            }
          }
        }
      }
    }
  }

  package func columnProducts(_ x: Tensor, _ y: Tensor, into out: Tensor, adds: Bool) {
    let (columns, count) = (x.columns, out.count)
    let group = columns / count
    let (a, b) = (x.floats, y.floats)
    sumBlocks(rows: x.rows, columns: count, into: out.floats, adds: adds) { t, partial in
      let (first, second) = (a + t * columns, b + t * columns)
      if group == 1 {
        sweep(columns) { i, n in
          partial.store(partial.lanes(i, n).addingProduct(first.lanes(i, n), second.lanes(i, n)), i, n)
        }
      } else {
        for s in 0..<count { partial[s] += dot(first + s * group, second + s * group, group) }
      }
    }
  }

  package func copyColumns(_ x: Tensor, _ range: Range<Int>, into y: Tensor) {
    let (source, target, columns, width) = (x.floats, y.floats, x.columns, range.count)
    forEachSlice(rows: x.rows, columns: width) { rows in
      for t in rows { (target + t * width).update(from: source + t * columns + range.lowerBound, count: width) }
    }
  }

  package func addColumns(_ dy: Tensor, into dx: Tensor, _ range: Range<Int>, adds: Bool) {
    let (source, target, columns, width) = (dy.floats, dx.floats, dx.columns, range.count)
    forEachSlice(rows: dx.rows, columns: columns) { rows in
      for t in rows {
        let out = target + t * columns
        if !adds { out.update(repeating: 0, count: columns) }
        axpy(1, source + t * width, into: out + range.lowerBound, width)
      }
    }
  }

  package func repeatHeads(_ x: Tensor, into y: Tensor) {
    let (groups, heads, size) = (x.shape[1], y.shape[1], x.shape[2])
    let (source, target) = (x.floats, y.floats)
    forEachSlice(rows: y.rows, columns: heads * size) { rows in
      for t in rows {
        for h in 0..<heads {
          (target + (t * heads + h) * size).update(
            from: source + (t * groups + h * groups / heads) * size, count: size)
        }
      }
    }
  }

  package func repeatHeadsBackward(_ dy: Tensor, into dx: Tensor) {
    let (groups, heads, size) = (dx.shape[1], dy.shape[1], dx.shape[2])
    let (source, target) = (dy.floats, dx.floats)
    forEachSlice(rows: dy.rows, columns: heads * size) { rows in
      for t in rows {
        (target + t * groups * size).update(repeating: 0, count: groups * size)
        for h in 0..<heads {
          axpy(1, source + (t * heads + h) * size, into: target + (t * groups + h * groups / heads) * size, size)
        }
      }
    }
  }
}

extension SIMD16 where Scalar == Float {
  /// √(2/π) (x + 0.044715 x³)
  @inline(__always)
  fileprivate var geluArgument: Lanes {
    let square = self * self
    return self * (square * 0.044715 + 1) * 0.7978845608
  }

  @inline(__always)
  fileprivate var geluSlope: Lanes {
    let share = (geluArgument * 2).sigmoid
    let square = self * self
    let argumentSlope: Lanes = (square * 0.134145 + 1) * 1.5957691216
    return share * (1 + self * (1 - share) * argumentSlope)
  }

  /// log(1 + e^x), without overflow and without losing small values.
  @inline(__always)
  var softplus: Lanes {
    let e = (-self.replacing(with: -self, where: self .< 0)).exponential
    var out = Lanes()
    for lane in 0..<laneCount { out[lane] = log1pf(e[lane]) }
    return out + self.replacing(with: 0, where: self .< 0)
  }
}
