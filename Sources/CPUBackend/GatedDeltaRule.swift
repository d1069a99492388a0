import Tensors

/// The gated delta rule by chunks (Yang et al., 2024, the WY form): inside a chunk of C tokens everything is a
/// product of matrices, between chunks only the state S [K, V] is handed on. With γ the running sum of g in the
/// chunk and D[t, i] = e^(γt − γi) for i ≤ t:
///
///     A = diag(β) (K Kᵀ ∘ D), strictly lower        U = (I + A)⁻¹ diag(β) (V − diag(e^γ) K S₀)
///     P = scale · (Q Kᵀ ∘ D), lower                 O = scale · diag(e^γ) Q S₀ + P U
///     S = e^γC S₀ + (diag(e^(γC − γ)) K)ᵀ U
///
/// Only differences of γ with t ≥ i are exponentiated, which are never positive: strong decay underflows to
/// zero and cannot overflow.
extension CPUBackend {
  /// One chunk of one head: its tokens, its pointers, and the sums of its gates.
  private struct Chunk {
    let first: Int
    let length: Int
    /// Index among all chunks of the batch.
    let ordinal: Int
  }

  /// The chunks of a segment; `ordinal` is that of the first.
  private static func chunks(_ segment: Range<Int>, ordinal: Int) -> [Chunk] {
    let step = GatedDeltaRuleState.chunkLength
    return (0..<(segment.count + step - 1) / step).map { c in
      let first = segment.lowerBound + c * step
      return Chunk(first: first, length: min(step, segment.upperBound - first), ordinal: ordinal + c)
    }
  }

  /// First chunk ordinal of every segment.
  private static func firstOrdinals(_ segments: Segments) -> [Int] {
    var next = 0
    return segments.ranges.map { range in
      defer { next += (range.count + GatedDeltaRuleState.chunkLength - 1) / GatedDeltaRuleState.chunkLength }
      return next
    }
  }

  /// Fills e^γ, e^(γC − γ), and D (lower, zero above) for one head of a chunk.
  private static func decays(
    _ g: FloatPointer, stride: Int, _ c: Int, exp expGamma: FloatPointer, tail: FloatPointer, _ d: FloatPointer
  ) {
    // The sums in double precision: at strong decay they are large and their differences small.
    withUnsafeTemporaryAllocation(of: Double.self, capacity: c) { gamma in
      var sum = 0.0
      for t in 0..<c {
        sum += Double(g[t * stride])
        gamma[t] = sum
      }
      for t in 0..<c {
        expGamma[t] = Float(gamma[t])
        tail[t] = Float(sum - gamma[t])
        let row = d + t * c
        for i in 0...t { row[i] = Float(gamma[t] - gamma[i]) }
        sweep(t + 1) { i, n in row.store(row.lanes(i, n).exponential, i, n) }
        (row + t + 1).update(repeating: 0, count: c - t - 1)
      }
      sweep(c) { i, n in
        expGamma.store(expGamma.lanes(i, n).exponential, i, n)
        tail.store(tail.lanes(i, n).exponential, i, n)
      }
    }
  }

  /// A and P of one head of a chunk.
  private static func decayedProducts(
    _ c: Int, _ keySize: Int, _ scale: Float, _ q: Matrix, _ k: Matrix, _ d: FloatPointer, _ betas: FloatPointer,
    stride: Int, a: FloatPointer, p: FloatPointer
  ) {
    gemm(c, c, keySize, 1, k, k.transposed, 0, Matrix(a, stride: c))
    gemm(c, c, keySize, scale, q, k.transposed, 0, Matrix(p, stride: c))
    for t in 0..<c {
      let (dRow, aRow, pRow, b) = (d + t * c, a + t * c, p + t * c, betas[t * stride])
      sweep(c) { i, n in
        let decay = dRow.lanes(i, n)
        aRow.store(aRow.lanes(i, n) * decay * b, i, n)
        pRow.store(pRow.lanes(i, n) * decay, i, n)
      }
    }
  }

  package func gatedDeltaRule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float, segments: Segments,
    initial: Tensor?, o: Tensor, final: Tensor?, saved: GatedDeltaRuleState?
  ) {
    let (heads, K, V) = (q.shape[1], q.shape[2], v.shape[2])
    let (pq, pk, pv, pg, pb, po) = (q.floats, k.floats, v.floats, g.floats, beta.floats, o.floats)
    let (kStride, vStride) = (heads * K, heads * V)
    let ordinals = Self.firstOrdinals(segments)
    let (initialStates, finalStates) = (initial?.floats, final?.floats)
    let (starts, corrected) = (saved?.starts.floats, saved?.corrected.floats)
    let maxLength = min(GatedDeltaRuleState.chunkLength, segments.ranges.map(\.count).max() ?? 0)
    parallel(segments.ranges.count * heads) { slice in
      let (s, h) = (slice / heads, slice % heads)
      var scratch = Scratch(
        Scratch.rounded(K * V) + 2 * Scratch.rounded(maxLength) + 3 * Scratch.rounded(maxLength * maxLength)
          + Scratch.rounded(maxLength * V)
          + Scratch.rounded(maxLength * K))
      defer { scratch.free() }
      let state = scratch.take(K * V)
      let (expGamma, tail) = (scratch.take(maxLength), scratch.take(maxLength))
      let (d, a, p) = (
        scratch.take(maxLength * maxLength), scratch.take(maxLength * maxLength), scratch.take(maxLength * maxLength)
      )
      let (localU, kTail) = (scratch.take(maxLength * V), scratch.take(maxLength * K))
      if let initialStates {
        state.update(from: initialStates + slice * K * V, count: K * V)
      } else {
        state.update(repeating: 0, count: K * V)
      }
      let stateMatrix = Matrix(state, stride: V)
      for chunk in Self.chunks(segments.ranges[s], ordinal: ordinals[s]) {
        let c = chunk.length
        let tokenHead = chunk.first * heads + h
        let qMatrix = Matrix(pq + tokenHead * K, stride: kStride)
        let kMatrix = Matrix(pk + tokenHead * K, stride: kStride)
        let vPointer = pv + tokenHead * V
        let oPointer = po + tokenHead * V
        let betas = pb + tokenHead
        let (u, uStride) = corrected.map { ($0 + tokenHead * V, vStride) } ?? (localU, V)
        let uMatrix = Matrix(u, stride: uStride)
        starts.map { ($0 + (chunk.ordinal * heads + h) * K * V).update(from: state, count: K * V) }
        Self.decays(pg + tokenHead, stride: heads, c, exp: expGamma, tail: tail, d)

        Self.decayedProducts(c, K, scale, qMatrix, kMatrix, d, betas, stride: heads, a: a, p: p)
        gemm(c, V, K, 1, kMatrix, stateMatrix, 0, uMatrix)
        for t in 0..<c {
          let (row, value) = (u + t * uStride, vPointer + t * vStride)
          let (e, b) = (expGamma[t], betas[t * heads])
          sweep(V) { i, n in row.store((value.lanes(i, n) - row.lanes(i, n) * e) * b, i, n) }
        }
        solveUnitLower(c, V, Matrix(a, stride: c), transposed: false, uMatrix)

        gemm(c, V, K, scale, qMatrix, stateMatrix, 0, Matrix(oPointer, stride: vStride))
        for t in 0..<c {
          let row = oPointer + t * vStride
          scaled(expGamma[t], row, into: row, V)
          scaled(tail[t], kMatrix.start + t * kStride, into: kTail + t * K, K)
        }
        gemm(c, V, c, 1, Matrix(p, stride: c), uMatrix, 1, Matrix(oPointer, stride: vStride))
        scaled(expGamma[c - 1], state, into: state, K * V)
        gemm(K, V, c, 1, Matrix(kTail, stride: K).transposed, uMatrix, 1, stateMatrix)
      }
      finalStates.map { ($0 + slice * K * V).update(from: state, count: K * V) }
    }
  }

  package func gatedDeltaRuleBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float,
    segments: Segments, saved: GatedDeltaRuleState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor,
    dBeta: Tensor, dInitial: Tensor?
  ) {
    let (heads, K, V) = (q.shape[1], q.shape[2], v.shape[2])
    let (pq, pk, pv, pg, pb, pdo) = (q.floats, k.floats, v.floats, g.floats, beta.floats, dO.floats)
    let (pdq, pdk, pdv, pdg, pdb) = (dQ.floats, dK.floats, dV.floats, dG.floats, dBeta.floats)
    let (kStride, vStride) = (heads * K, heads * V)
    let ordinals = Self.firstOrdinals(segments)
    let (finalGradients, initialGradients) = (dFinal?.floats, dInitial?.floats)
    let (starts, corrected) = (saved.starts.floats, saved.corrected.floats)
    let maxLength = min(GatedDeltaRuleState.chunkLength, segments.ranges.map(\.count).max() ?? 0)
    parallel(segments.ranges.count * heads) { slice in
      let (s, h) = (slice / heads, slice % heads)
      var scratch = Scratch(
        Scratch.rounded(K * V) + 3 * Scratch.rounded(maxLength) + 5 * Scratch.rounded(maxLength * maxLength)
          + 2 * Scratch.rounded(maxLength * V) + 2 * Scratch.rounded(maxLength * K))
      defer { scratch.free() }
      // Gradient of the state at the end of the chunk at hand, then at its start.
      let dState = scratch.take(K * V)
      let (expGamma, tail) = (scratch.take(maxLength), scratch.take(maxLength))
      let dGamma = scratch.take(maxLength)
      let (d, a, p) = (
        scratch.take(maxLength * maxLength), scratch.take(maxLength * maxLength), scratch.take(maxLength * maxLength)
      )
      let (dA, dP) = (scratch.take(maxLength * maxLength), scratch.take(maxLength * maxLength))
      let (w, dR) = (scratch.take(maxLength * V), scratch.take(maxLength * V))
      let (rowsK, rowsK2) = (scratch.take(maxLength * K), scratch.take(maxLength * K))
      if let finalGradients {
        dState.update(from: finalGradients + slice * K * V, count: K * V)
      } else {
        dState.update(repeating: 0, count: K * V)
      }
      let dStateMatrix = Matrix(dState, stride: V)
      for chunk in Self.chunks(segments.ranges[s], ordinal: ordinals[s]).reversed() {
        let c = chunk.length
        let tokenHead = chunk.first * heads + h
        let qMatrix = Matrix(pq + tokenHead * K, stride: kStride)
        let kMatrix = Matrix(pk + tokenHead * K, stride: kStride)
        let uMatrix = Matrix(corrected + tokenHead * V, stride: vStride)
        let dOMatrix = Matrix(pdo + tokenHead * V, stride: vStride)
        let (dQRows, dKRows, dVRows) = (pdq + tokenHead * K, pdk + tokenHead * K, pdv + tokenHead * V)
        let betas = pb + tokenHead
        let start = starts + (chunk.ordinal * heads + h) * K * V
        let startMatrix = Matrix(start, stride: V)
        let square = { (x: FloatPointer) in Matrix(x, stride: c) }
        Self.decays(pg + tokenHead, stride: heads, c, exp: expGamma, tail: tail, d)

        // What the forward pass had: A, P, and W = V − diag(e^γ) K S₀.
        Self.decayedProducts(c, K, scale, qMatrix, kMatrix, d, betas, stride: heads, a: a, p: p)
        gemm(c, V, K, 1, kMatrix, startMatrix, 0, Matrix(w, stride: V))
        for t in 0..<c {
          let (row, value, e) = (w + t * V, pv + tokenHead * V + t * vStride, expGamma[t])
          sweep(V) { i, n in row.store(value.lanes(i, n) - row.lanes(i, n) * e, i, n) }
          scaled(tail[t], kMatrix.start + t * kStride, into: rowsK + t * K, K)
        }

        // dU = (diag(tail) K) dS + Pᵀ dO, then dR = (I + A)⁻ᵀ dU.
        gemm(c, V, K, 1, Matrix(rowsK, stride: K), dStateMatrix, 0, Matrix(dR, stride: V))
        gemm(c, V, c, 1, square(p).transposed, dOMatrix, 1, Matrix(dR, stride: V))
        solveUnitLower(c, V, square(a), transposed: true, Matrix(dR, stride: V))
        gemm(c, c, V, -1, Matrix(dR, stride: V), uMatrix.transposed, 0, square(dA))
        gemm(c, c, V, 1, dOMatrix, uMatrix.transposed, 0, square(dP))

        // The parts of dβ and dγ that come through A and P; dA and dP become gradients of K Kᵀ and Q Kᵀ.
        dGamma.update(repeating: 0, count: c)
        for t in 0..<c {
          let (dRow, aRow, pRow) = (d + t * c, a + t * c, p + t * c)
          let (dARow, dPRow) = (dA + t * c, dP + t * c)
          let b = betas[t * heads]
          // The diagonal of A is not part of the system.
          dARow[t] = 0
          var throughA = Lanes.zero
          var throughBoth = Lanes.zero
          sweep(t + 1) { i, n in
            let fromA = dARow.lanes(i, n) * aRow.lanes(i, n)
            let both = fromA + dPRow.lanes(i, n) * pRow.lanes(i, n)
            throughA += fromA
            throughBoth += both
            dGamma.store(dGamma.lanes(i, n) - both, i, n)
            let decay = dRow.lanes(i, n)
            dARow.store(dARow.lanes(i, n) * decay * b, i, n)
            dPRow.store(dPRow.lanes(i, n) * decay, i, n)
          }
          (dARow + t + 1).update(repeating: 0, count: c - t - 1)
          (dPRow + t + 1).update(repeating: 0, count: c - t - 1)
          dGamma[t] += throughBoth.total
          // Σ dA·M = Σ dA·A / β, taken from W alone where β underflows.
          let viaSystem = b > 1e-30 ? throughA.total / b : 0
          pdb[tokenHead + t * heads] = dot(dR + t * V, w + t * V, V) + viaSystem
        }
        // dW = β dR is dV.
        for t in 0..<c {
          scaled(betas[t * heads], dR + t * V, into: dR + t * V, V)
          (dVRows + t * vStride).update(from: dR + t * V, count: V)
        }
        let dW = Matrix(dR, stride: V)

        // dQ = scale · (dP K + diag(e^γ) dO S₀ᵀ)
        gemm(c, K, V, scale, dOMatrix, startMatrix.transposed, 0, Matrix(dQRows, stride: kStride))
        for t in 0..<c {
          let row = dQRows + t * kStride
          scaled(expGamma[t], row, into: row, K)
          dGamma[t] += dot(row, qMatrix.start + t * kStride, K)
        }
        gemm(c, K, c, scale, square(dP), kMatrix, 1, Matrix(dQRows, stride: kStride))

        // dK = diag(tail) U dSᵀ − diag(e^γ) dW S₀ᵀ + scale · dPᵀ Q + (dA + dAᵀ) K
        gemm(c, K, V, 1, uMatrix, dStateMatrix.transposed, 0, Matrix(rowsK, stride: K))
        gemm(c, K, V, 1, dW, startMatrix.transposed, 0, Matrix(rowsK2, stride: K))
        var atEnd = dot(start, dState, K * V) * expGamma[c - 1]
        for t in 0..<c {
          let (x, y, key, out) = (
            rowsK + t * K, rowsK2 + t * K, kMatrix.start + t * kStride, dKRows + t * kStride
          )
          let fromEnd = dot(x, key, K) * tail[t]
          atEnd += fromEnd
          dGamma[t] -= fromEnd + dot(y, key, K) * expGamma[t]
          let (tailDecay, decay) = (tail[t], expGamma[t])
          sweep(K) { i, n in out.store(x.lanes(i, n) * tailDecay - y.lanes(i, n) * decay, i, n) }
        }
        dGamma[c - 1] += atEnd
        let dKMatrix = Matrix(dKRows, stride: kStride)
        gemm(c, K, c, scale, square(dP).transposed, qMatrix, 1, dKMatrix)
        gemm(c, K, c, 1, square(dA), kMatrix, 1, dKMatrix)
        gemm(c, K, c, 1, square(dA).transposed, kMatrix, 1, dKMatrix)

        // dS₀ = e^γC dS + (scale · diag(e^γ) Q)ᵀ dO − (diag(e^γ) K)ᵀ dW
        for t in 0..<c {
          scaled(scale * expGamma[t], qMatrix.start + t * kStride, into: rowsK + t * K, K)
          scaled(expGamma[t], kMatrix.start + t * kStride, into: rowsK2 + t * K, K)
        }
        scaled(expGamma[c - 1], dState, into: dState, K * V)
        gemm(K, V, c, 1, Matrix(rowsK, stride: K).transposed, dOMatrix, 1, dStateMatrix)
        gemm(K, V, c, -1, Matrix(rowsK2, stride: K).transposed, dW, 1, dStateMatrix)

        var sum: Float = 0
        for t in stride(from: c - 1, through: 0, by: -1) {
          sum += dGamma[t]
          pdg[tokenHead + t * heads] = sum
        }
      }
      initialGradients.map { ($0 + slice * K * V).update(from: dState, count: K * V) }
    }
  }

  package func decayGate(a: Tensor, b: Tensor, aLog: Tensor, dtBias: Tensor, g: Tensor, beta: Tensor) {
    let heads = aLog.count
    let (pa, pb, logA, bias, pg, pbeta) = (
      a.floats, b.floats, aLog.floats, dtBias.floats, g.floats, beta.floats
    )
    forEachSlice(rows: a.rows, columns: heads * 16) { rows in
      for n in rows {
        for h in 0..<heads {
          let i = n * heads + h
          pg[i] = -Self.exponential(logA[h]) * Self.softplus(pa[i] + bias[h])
          pbeta[i] = Self.sigmoid(pb[i])
        }
      }
    }
  }

  package func decayGateBackward(
    dG: Tensor, dBeta: Tensor, a: Tensor, beta: Tensor, aLog: Tensor, dtBias: Tensor, dA: Tensor,
    dB: Tensor, dALog: Tensor, dDtBias: Tensor
  ) {
    let heads = aLog.count
    let (pdg, pdbeta, pa, pbeta) = (dG.floats, dBeta.floats, a.floats, beta.floats)
    let (logA, bias, pda, pdb) = (aLog.floats, dtBias.floats, dA.floats, dB.floats)
    let (sumLog, sumBias) = (dALog.floats, dDtBias.floats)
    sumLog.update(repeating: 0, count: heads)
    sumBias.update(repeating: 0, count: heads)
    for n in 0..<a.rows {
      for h in 0..<heads {
        let i = n * heads + h
        let z = pa[i] + bias[h]
        let rate = -Self.exponential(logA[h])
        sumLog[h] += pdg[i] * rate * Self.softplus(z)
        pda[i] = pdg[i] * rate * Self.sigmoid(z)
        sumBias[h] += pda[i]
        pdb[i] = pdbeta[i] * pbeta[i] * (1 - pbeta[i])
      }
    }
  }
}
