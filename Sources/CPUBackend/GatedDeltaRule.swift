import Foundation
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
    let step = Self.chunkLength
    return (0..<(segment.count + step - 1) / step).map { c in
      let first = segment.lowerBound + c * step
      return Chunk(first: first, length: min(step, segment.upperBound - first), ordinal: ordinal + c)
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

  /// Keys above, scaled queries below, `[2c, K]`: one product with Kᵀ or S₀ serves both.
  private static func stack(
    _ c: Int, _ keySize: Int, _ scale: Float, _ k: Matrix, _ q: Matrix, into rows: FloatPointer
  ) {
    for t in 0..<c {
      (rows + t * keySize).update(from: k.start + t * k.stride, count: keySize)
      scaled(scale, q.start + t * q.stride, into: rows + (c + t) * keySize, keySize)
    }
  }

  /// A above P, `[2c, c]`, of one head of a chunk, from its stacked keys and queries.
  private static func decayedProducts(
    _ c: Int, _ keySize: Int, _ keysAndQueries: FloatPointer, _ d: FloatPointer, _ betas: FloatPointer, stride: Int,
    into a: FloatPointer
  ) {
    let p = a + c * c
    gemm(
      2 * c, c, keySize, 1, Matrix(keysAndQueries, stride: keySize),
      Matrix(keysAndQueries, stride: keySize).transposed, 0, Matrix(a, stride: c))
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
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float, layout: Layout,
    initial: Tensor?, o: Tensor, final: Tensor?, saves: Bool
  ) -> SavedState? {
    let (heads, K, V) = (q.shape[1], q.shape[2], v.shape[2])
    let (pq, pk, pv, pg, pb, po) = (q.floats, k.floats, v.floats, g.floats, beta.floats, o.floats)
    let (segments, ordinals) = (layout.segments, firstChunks(layout))
    if let initial, let final, !saves, segments.ranges.allSatisfy({ $0.count <= Self.recurrentLength }) {
      if initial.floats != final.floats { copy(initial, into: final) }
      recur(q, k, v, g, beta, scale: scale, segments: segments, state: final, o: o)
      return nil
    }
    let (kStride, vStride) = (heads * K, heads * V)
    // States at the starts of chunks, and the corrected values u of every token.
    let saved = saves ? (starts: chunkStates(layout, q, v), corrected: empty(v.shape)) : nil
    let (initialStates, finalStates) = (initial?.floats, final?.floats)
    let (starts, corrected) = (saved?.starts.floats, saved?.corrected.floats)
    let maxLength = min(Self.chunkLength, segments.ranges.map(\.count).max() ?? 0)
    parallel(segments.ranges.count * heads) { slice in
      let (s, h) = (slice / heads, slice % heads)
      var scratch = Scratch(
        Scratch.rounded(K * V) + 2 * Scratch.rounded(maxLength) + Scratch.rounded(maxLength * maxLength)
          + Scratch.rounded(2 * maxLength * maxLength) + Scratch.rounded(maxLength * V)
          + Scratch.rounded(2 * maxLength * V) + Scratch.rounded(2 * maxLength * K))
      defer { scratch.free() }
      let state = scratch.take(K * V)
      let (expGamma, tail) = (scratch.take(maxLength), scratch.take(maxLength))
      let (d, a) = (scratch.take(maxLength * maxLength), scratch.take(2 * maxLength * maxLength))
      let (localU, fromState) = (scratch.take(maxLength * V), scratch.take(2 * maxLength * V))
      let keysAndQueries = scratch.take(2 * maxLength * K)
      if let initialStates {
        state.update(from: initialStates + slice * K * V, count: K * V)
      } else {
        state.update(repeating: 0, count: K * V)
      }
      let stateMatrix = Matrix(state, stride: V)
      for chunk in Self.chunks(segments.ranges[s], ordinal: ordinals[s]) {
        let c = chunk.length
        let tokenHead = chunk.first * heads + h
        let vPointer = pv + tokenHead * V
        let oPointer = po + tokenHead * V
        let betas = pb + tokenHead
        let (u, uStride) = corrected.map { ($0 + tokenHead * V, vStride) } ?? (localU, V)
        let uMatrix = Matrix(u, stride: uStride)
        starts.map { ($0 + (chunk.ordinal * heads + h) * K * V).update(from: state, count: K * V) }
        Self.decays(pg + tokenHead, stride: heads, c, exp: expGamma, tail: tail, d)

        Self.stack(
          c, K, scale, Matrix(pk + tokenHead * K, stride: kStride), Matrix(pq + tokenHead * K, stride: kStride),
          into: keysAndQueries)
        Self.decayedProducts(c, K, keysAndQueries, d, betas, stride: heads, into: a)
        gemm(2 * c, V, K, 1, Matrix(keysAndQueries, stride: K), stateMatrix, 0, Matrix(fromState, stride: V))
        for t in 0..<c {
          let (row, value, out) = (u + t * uStride, vPointer + t * vStride, oPointer + t * vStride)
          let (known, answer) = (fromState + t * V, fromState + (c + t) * V)
          let (e, b) = (expGamma[t], betas[t * heads])
          sweep(V) { i, n in
            row.store((value.lanes(i, n) - known.lanes(i, n) * e) * b, i, n)
            out.store(answer.lanes(i, n) * e, i, n)
          }
          scaled(tail[t], keysAndQueries + t * K, into: keysAndQueries + t * K, K)
        }
        solveUnitLower(c, V, Matrix(a, stride: c), transposed: false, uMatrix)
        gemm(c, V, c, 1, Matrix(a + c * c, stride: c), uMatrix, 1, Matrix(oPointer, stride: vStride))
        scaled(expGamma[c - 1], state, into: state, K * V)
        gemm(K, V, c, 1, Matrix(keysAndQueries, stride: K).transposed, uMatrix, 1, stateMatrix)
      }
      finalStates.map { ($0 + slice * K * V).update(from: state, count: K * V) }
    }
    return saved.map { SavedState([$0.starts, $0.corrected]) }
  }

  /// Tokens of a segment up to which the recurrence beats the products of a chunk.
  private static let recurrentLength = 4

  /// The recurrence itself, token by token, on states that are updated in place: decoding.
  private func recur(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, _ g: Tensor, _ beta: Tensor, scale: Float, segments: Segments,
    state: Tensor, o: Tensor
  ) {
    let (heads, K, V) = (q.shape[1], q.shape[2], v.shape[2])
    let (pq, pk, pv, pg, pb) = (q.floats, k.floats, v.floats, g.floats, beta.floats)
    let (ps, po) = (state.floats, o.floats)
    parallel(segments.ranges.count * heads, kernel: "gatedDeltaRule") { slice in
      let (s, h) = (slice / heads, slice % heads)
      let state = ps + slice * K * V
      var scratch = Scratch(Scratch.rounded(V))
      defer { scratch.free() }
      let change = scratch.take(V)
      for t in segments.ranges[s] {
        let head = t * heads + h
        let (query, key, value, out) = (pq + head * K, pk + head * K, pv + head * V, po + head * V)
        let (decay, b) = (Foundation.exp(pg[head]), pb[head])
        change.update(repeating: 0, count: V)
        for i in 0..<K { axpy(key[i], state + i * V, into: change, V) }
        sweep(V) { i, n in change.store((value.lanes(i, n) - change.lanes(i, n) * decay) * b, i, n) }
        out.update(repeating: 0, count: V)
        for i in 0..<K {
          let (row, k, q) = (state + i * V, key[i], query[i] * scale)
          sweep(V) { j, n in
            let updated = (row.lanes(j, n) * decay).addingProduct(Lanes(repeating: k), change.lanes(j, n))
            row.store(updated, j, n)
            out.store(out.lanes(j, n).addingProduct(Lanes(repeating: q), updated), j, n)
          }
        }
      }
    }
  }

  package func gatedDeltaRuleBackward(
    dO: Tensor, dFinal: Tensor?, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: Float,
    layout: Layout, saved: SavedState, dQ: Tensor, dK: Tensor, dV: Tensor, dG: Tensor,
    dBeta: Tensor, dInitial: Tensor?
  ) {
    let (heads, K, V) = (q.shape[1], q.shape[2], v.shape[2])
    let (pq, pk, pv, pg, pb, pdo) = (q.floats, k.floats, v.floats, g.floats, beta.floats, dO.floats)
    let (pdq, pdk, pdv, pdg, pdb) = (dQ.floats, dK.floats, dV.floats, dG.floats, dBeta.floats)
    let (kStride, vStride) = (heads * K, heads * V)
    let (segments, ordinals) = (layout.segments, firstChunks(layout))
    let (finalGradients, initialGradients) = (dFinal?.floats, dInitial?.floats)
    let (starts, corrected) = (saved.tensors[0].floats, saved.tensors[1].floats)
    let maxLength = min(Self.chunkLength, segments.ranges.map(\.count).max() ?? 0)
    parallel(segments.ranges.count * heads) { slice in
      let (s, h) = (slice / heads, slice % heads)
      var scratch = Scratch(
        Scratch.rounded(K * V) + 3 * Scratch.rounded(maxLength) + Scratch.rounded(maxLength * maxLength)
          + 2 * Scratch.rounded(2 * maxLength * maxLength) + Scratch.rounded(maxLength * V)
          + Scratch.rounded(2 * maxLength * V) + Scratch.rounded(maxLength * K) + 2 * Scratch.rounded(2 * maxLength * K)
      )
      defer { scratch.free() }
      // Gradient of the state at the end of the chunk at hand, then at its start.
      let dState = scratch.take(K * V)
      let (expGamma, tail) = (scratch.take(maxLength), scratch.take(maxLength))
      let dGamma = scratch.take(maxLength)
      // Stacks of two: A above P and their gradients, dR (then dW) above dO, keys above queries.
      let (d, a) = (scratch.take(maxLength * maxLength), scratch.take(2 * maxLength * maxLength))
      let dA = scratch.take(2 * maxLength * maxLength)
      let (w, dR) = (scratch.take(maxLength * V), scratch.take(2 * maxLength * V))
      let (rowsK, keysAndQueries) = (scratch.take(maxLength * K), scratch.take(2 * maxLength * K))
      let throughStart = scratch.take(2 * maxLength * K)
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
        let (dQRows, dKRows, dVRows) = (pdq + tokenHead * K, pdk + tokenHead * K, pdv + tokenHead * V)
        let betas = pb + tokenHead
        let start = starts + (chunk.ordinal * heads + h) * K * V
        let startMatrix = Matrix(start, stride: V)
        let square = { (x: FloatPointer) in Matrix(x, stride: c) }
        Self.decays(pg + tokenHead, stride: heads, c, exp: expGamma, tail: tail, d)

        // What the forward pass had: A, P, and W = V − diag(e^γ) K S₀.
        Self.stack(c, K, scale, kMatrix, qMatrix, into: keysAndQueries)
        Self.decayedProducts(c, K, keysAndQueries, d, betas, stride: heads, into: a)
        let (p, dP, dOCopy) = (a + c * c, dA + c * c, dR + c * V)
        gemm(c, V, K, 1, Matrix(keysAndQueries, stride: K), startMatrix, 0, Matrix(w, stride: V))
        for t in 0..<c {
          let (row, value, e) = (w + t * V, pv + tokenHead * V + t * vStride, expGamma[t])
          sweep(V) { i, n in row.store(value.lanes(i, n) - row.lanes(i, n) * e, i, n) }
          scaled(tail[t], keysAndQueries + t * K, into: rowsK + t * K, K)
          (dOCopy + t * V).update(from: pdo + tokenHead * V + t * vStride, count: V)
        }

        // dU = (diag(tail) K) dS + Pᵀ dO, then dR = (I + A)⁻ᵀ dU; dA = −dR Uᵀ (here without its sign), dP = dO Uᵀ.
        gemm(c, V, K, 1, Matrix(rowsK, stride: K), dStateMatrix, 0, Matrix(dR, stride: V))
        gemm(c, V, c, 1, square(p).transposed, Matrix(dOCopy, stride: V), 1, Matrix(dR, stride: V))
        solveUnitLower(c, V, square(a), transposed: true, Matrix(dR, stride: V))
        gemm(2 * c, c, V, 1, Matrix(dR, stride: V), uMatrix.transposed, 0, square(dA))

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
            let fromA = -dARow.lanes(i, n) * aRow.lanes(i, n)
            let both = fromA + dPRow.lanes(i, n) * pRow.lanes(i, n)
            throughA += fromA
            throughBoth += both
            dGamma.store(dGamma.lanes(i, n) - both, i, n)
            let decay = dRow.lanes(i, n)
            dARow.store(-dARow.lanes(i, n) * decay * b, i, n)
            dPRow.store(dPRow.lanes(i, n) * decay, i, n)
          }
          // dA + dAᵀ is what K sees: the upper half mirrors the lower.
          for i in 0..<t { dA[i * c + t] = dARow[i] }
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
        gemm(2 * c, K, V, 1, Matrix(dR, stride: V), startMatrix.transposed, 0, Matrix(throughStart, stride: K))

        // dQ = scale · (dP K + diag(e^γ) dO S₀ᵀ)
        for t in 0..<c {
          let row = dQRows + t * kStride
          scaled(scale * expGamma[t], throughStart + (c + t) * K, into: row, K)
          dGamma[t] += dot(row, qMatrix.start + t * kStride, K)
        }
        gemm(c, K, c, scale, square(dP), Matrix(keysAndQueries, stride: K), 1, Matrix(dQRows, stride: kStride))

        // dK = diag(tail) U dSᵀ − diag(e^γ) dW S₀ᵀ + dPᵀ (scale · Q) + (dA + dAᵀ) K
        gemm(c, K, V, 1, uMatrix, dStateMatrix.transposed, 0, Matrix(rowsK, stride: K))
        var atEnd = dot(start, dState, K * V) * expGamma[c - 1]
        for t in 0..<c {
          let (x, y, key, out) = (rowsK + t * K, throughStart + t * K, keysAndQueries + t * K, dKRows + t * kStride)
          let fromEnd = dot(x, key, K) * tail[t]
          atEnd += fromEnd
          dGamma[t] -= fromEnd + dot(y, key, K) * expGamma[t]
          let (tailDecay, decay) = (tail[t], expGamma[t])
          sweep(K) { i, n in out.store(x.lanes(i, n) * tailDecay - y.lanes(i, n) * decay, i, n) }
        }
        dGamma[c - 1] += atEnd
        let dKMatrix = Matrix(dKRows, stride: kStride)
        gemm(c, K, c, 1, square(dP).transposed, Matrix(keysAndQueries + c * K, stride: K), 1, dKMatrix)
        gemm(c, K, c, 1, square(dA), Matrix(keysAndQueries, stride: K), 1, dKMatrix)

        // dS₀ = e^γC dS + (scale · diag(e^γ) Q)ᵀ dO − (diag(e^γ) K)ᵀ dW
        for t in 0..<c {
          scaled(-expGamma[t], keysAndQueries + t * K, into: keysAndQueries + t * K, K)
          scaled(expGamma[t], keysAndQueries + (c + t) * K, into: keysAndQueries + (c + t) * K, K)
        }
        scaled(expGamma[c - 1], dState, into: dState, K * V)
        gemm(K, V, 2 * c, 1, Matrix(keysAndQueries, stride: K).transposed, Matrix(dR, stride: V), 1, dStateMatrix)

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
    let (pa, pb) = (a.floatRows, b.floatRows)
    let (logA, bias, pg, pbeta) = (aLog.floats, dtBias.floats, g.floats, beta.floats)
    forEachSlice(rows: a.rows, columns: heads * 16) { rows in
      for n in rows {
        for h in 0..<heads {
          let i = n * heads + h
          pg[i] = -Self.exponential(logA[h]) * Self.softplus(pa[n][h] + bias[h])
          pbeta[i] = Self.sigmoid(pb[n][h])
        }
      }
    }
  }

  package func decayGateBackward(
    dG: Tensor, dBeta: Tensor, a: Tensor, beta: Tensor, aLog: Tensor, dtBias: Tensor, dA: Tensor,
    dB: Tensor, dALog: Tensor, dDtBias: Tensor
  ) {
    let heads = aLog.count
    let (pdg, pdbeta, pa, pbeta) = (dG.floats, dBeta.floats, a.floatRows, beta.floats)
    let (logA, bias, pda, pdb) = (aLog.floats, dtBias.floats, dA.floatRows, dB.floatRows)
    let (sumLog, sumBias) = (dALog.floats, dDtBias.floats)
    sumLog.update(repeating: 0, count: heads)
    sumBias.update(repeating: 0, count: heads)
    for n in 0..<a.rows {
      for h in 0..<heads {
        let i = n * heads + h
        let z = pa[n][h] + bias[h]
        let rate = -Self.exponential(logA[h])
        sumLog[h] += pdg[i] * rate * Self.softplus(z)
        pda[n][h] = pdg[i] * rate * Self.sigmoid(z)
        sumBias[h] += pda[n][h]
        pdb[n][h] = pdbeta[i] * pbeta[i] * (1 - pbeta[i])
      }
    }
  }
}
