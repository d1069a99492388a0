import Tensors

extension CPUBackend {
  package func vocabularyLoss(
    logits: Tensor, teacherLogits: Tensor?, labels: Tensor, crossEntropyScale: Float, klScale: Float,
    crossEntropy: Tensor, kl: Tensor
  ) {
    let size = logits.columns
    requireRows(labels, below: size, allowsNegative: true, "vocabularyLoss")
    precondition(
      teacherLogits.map { $0.columns == size } ?? true, "logits \(logits.shape), of the teacher \(teacherLogits!.shape)"
    )
    let (students, teachers, labels) = (logits.floats, teacherLogits?.floats, labels.integers)
    let (ceOut, klOut) = (crossEntropy.floats, kl.floats)
    parallel(logits.rows) { n in
      let z = students + n * size
      let label = Int(labels[n])
      guard label >= 0 else {
        z.update(repeating: 0, count: size)
        (ceOut[n], klOut[n]) = (0, 0)
        return
      }
      let atLabel = z[label]
      let maximum = Self.maximum(z, size)
      if let t = teachers.map({ $0 + n * size }) {
        let teacherMaximum = Self.maximum(t, size)
        var (sum, teacherSum, difference) = (Lanes.zero, Lanes.zero, Lanes.zero)
        sweep(size) { i, lanes in
          let zs = z.lanes(i, lanes, fill: -.infinity) - maximum
          let zt = t.lanes(i, lanes, fill: -.infinity) - teacherMaximum
          let (es, et) = (zs.exponential, zt.exponential)
          sum += es
          teacherSum += et
          // Missing lanes hold ∞ − ∞; their weight is zero.
          difference += (et * (zt - zs)).replacing(with: 0, where: et .== 0)
          z.store(es, i, lanes)
          t.store(et, i, lanes)
        }
        let (s, st) = (sum.total, teacherSum.total)
        klOut[n] = difference.total / st + Self.logarithm(s) - Self.logarithm(st)
        ceOut[n] = maximum + Self.logarithm(s) - atLabel
        let (factor, teacherFactor) = ((crossEntropyScale + klScale) / s, klScale / st)
        sweep(size) { i, lanes in
          z.store(z.lanes(i, lanes) * factor - t.lanes(i, lanes) * teacherFactor, i, lanes)
        }
      } else {
        var sum = Lanes.zero
        sweep(size) { i, lanes in
          let e = (z.lanes(i, lanes, fill: -.infinity) - maximum).exponential
          sum += e
          z.store(e, i, lanes)
        }
        let s = sum.total
        klOut[n] = 0
        ceOut[n] = maximum + Self.logarithm(s) - atLabel
        scaled(crossEntropyScale / s, z, into: z, size)
      }
      z[label] -= crossEntropyScale
    }
  }

  private static func maximum(_ x: FloatPointer, _ count: Int) -> Float {
    var most = Lanes(repeating: -.infinity)
    sweep(count) { i, n in
      let value = x.lanes(i, n, fill: -.infinity)
      most = most.replacing(with: value, where: value .> most)
    }
    return most.max()
  }

  package func squaredError(
    _ x: Tensor, target: Tensor, seed: Float, losses: Tensor, into dx: Tensor?, adds: Bool
  ) {
    let size = x.columns
    let (px, pt, out, pdx) = (x.floats, target.floats, losses.floats, dx?.floats)
    forEachSlice(rows: x.rows, columns: size) { rows in
      for n in rows {
        let (row, goal) = (px + n * size, pt + n * size)
        var sum = Lanes.zero
        let factor = seed * 2 / Float(size)
        sweep(size) { i, lanes in
          let difference = row.lanes(i, lanes) - goal.lanes(i, lanes)
          sum = sum.addingProduct(difference, difference)
          if let gradient = pdx.map({ $0 + n * size }) {
            let value = difference * factor
            gradient.store(adds ? gradient.lanes(i, lanes) + value : value, i, lanes)
          }
        }
        out[n] = sum.total / Float(size)
      }
    }
  }
}
