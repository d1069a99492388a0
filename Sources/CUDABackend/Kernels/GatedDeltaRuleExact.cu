// The gated delta rule by chunks of 64 tokens in plain float32 arithmetic, for any head sizes: the float32 mode, and
// what bfloat16 falls back to where GatedDeltaRule.cuh has no kernel. ELEMENT is float or bf16: the type of q, k, v, o
// and their gradients. Formulas as in GatedDeltaRule.cuh, but for dbeta, which also holds where beta is 0:
//
//   dbeta_t = dR_t . R_t + sum over i < t of dA[t, i] M[t, i],  R = V - diag(e^gamma) K S0,  M = K K^T o D
//
// A block of threads walks a whole sequence and head; intermediates lie in its part of `workspace`.
#include "Primitives.cuh"

#ifndef ELEMENT
#define ELEMENT float
#endif

constexpr int CHUNK = 64;
constexpr int THREADS = 512;

DEVICE float read(const float *p) { return *p; }
DEVICE float read(const bf16 *p) { return widened(*p); }
DEVICE void write(float *p, float x) { *p = x; }
DEVICE void write(bf16 *p, float x) { *p = rounded(x); }

/// sink(i, j, sum over k of a(i, k) b(k, j)) for i < rows, j < columns, by the whole block; a thread makes 4 x 4 sums,
/// each in order of k.
template <typename A, typename B, typename Sink>
DEVICE void product(int rows, int columns, int depth, A a, B b, Sink sink) {
  const int across = (columns + 3) / 4, tiles = (rows + 3) / 4 * across;
  for (int tile = threadIdx.x; tile < tiles; tile += THREADS) {
    const int i0 = tile / across * 4, j0 = tile % across;
    float sums[4][4] = {};
    for (int k = 0; k < depth; ++k) {
      float x[4], y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = i0 + i < rows ? a(i0 + i, k) : 0.0f;
        y[i] = j0 + i * across < columns ? b(k, j0 + i * across) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += x[i] * y[j];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (i0 + i < rows && j0 + j * across < columns) sink(i0 + i, j0 + j * across, sums[i][j]);
  }
}

/// The sum of x over the block, the same in every thread, in an order that depends on nothing.
DEVICE float blockTotal(float x, float *partial) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += shuffleXor(x, mask);
  syncBlock();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  syncBlock();
  float sum = 0;
  for (int i = 0; i < THREADS / 32; ++i) sum += partial[i];
  return sum;
}

struct Gates {
  double gamma[CHUNK];
  float exp[CHUNK], tail[CHUNK], beta[CHUNK];
};

DEVICE void computeGates(Gates &gates, const float *g, const float *beta, int length, int heads) {
  syncBlock();
  if (threadIdx.x == 0) {
    // In double precision: at strong decay the sums are large and their differences small.
    double sum = 0;
    for (int t = 0; t < length; ++t) gates.gamma[t] = sum += g[t * (long long)heads];
  }
  syncBlock();
  if ((int)threadIdx.x < length) {
    const int t = threadIdx.x;
    gates.exp[t] = exactExponential((float)gates.gamma[t]);
    gates.tail[t] = exactExponential((float)(gates.gamma[length - 1] - gates.gamma[t]));
    gates.beta[t] = beta[t * (long long)heads];
  }
  syncBlock();
}

DEVICE float decayBetween(const Gates &gates, int t, int i) {
  return exactExponential((float)(gates.gamma[t] - gates.gamma[i]));
}

/// Floats of `workspace` that a block needs.
extern "C" __device__ constexpr int workspaceFloats(int keys, int values) {
  return keys * values + 4 * CHUNK * CHUNK + 2 * CHUNK * values + 3 * CHUNK * keys;
}

/// grid (heads, segments), 512 threads
///
/// starts: [chunks, heads, keys, values] and corrected [N, heads, values], or null where no backward pass follows
extern "C" __global__ void __launch_bounds__(THREADS, 1) gatedDeltaRuleExactForward(
  const ELEMENT *q, const ELEMENT *k, const ELEMENT *v, const float *g, const float *beta, const int *chunks,
  const int *segments, int heads, int keys, int values, float scale, const float *initial, ELEMENT *o, float *final,
  float *starts, float *corrected, float *workspace) {
  __shared__ Gates gates;
  const int head = blockIdx.x, segment = blockIdx.y, thread = threadIdx.x;
  const long long sequence = (long long)segment * heads + head;
  float *s = workspace + sequence * workspaceFloats(keys, values);
  float *a = s + keys * values, *p = a + CHUNK * CHUNK, *u = p + 3 * CHUNK * CHUNK, *y = u + CHUNK * values;
  for (int i = thread; i < keys * values; i += THREADS) s[i] = initial ? initial[sequence * keys * values + i] : 0;
  for (int chunk = segments[segment]; chunk < segments[segment + 1]; ++chunk) {
    const int first = chunks[2 * chunk], c = chunks[2 * chunk + 1];
    const long long tokenHead = (long long)first * heads + head, keyStride = heads * keys, valueStride = heads * values;
    const ELEMENT *queries = q + tokenHead * keys, *ks = k + tokenHead * keys, *vs = v + tokenHead * values;
    computeGates(gates, g + tokenHead, beta + tokenHead, c, heads);
    if (starts)
      for (int i = thread; i < keys * values; i += THREADS)
        starts[((long long)chunk * heads + head) * keys * values + i] = s[i];
    auto key = [&](int t, int i) { return read(ks + t * keyStride + i); };
    auto query = [&](int t, int i) { return read(queries + t * keyStride + i); };
    auto state = [&](int i, int j) { return s[i * values + j]; };
    product(c, c, keys, key, [&](int i, int t) { return key(t, i); }, [&](int t, int i, float x) {
      a[t * CHUNK + i] = i < t ? x * gates.beta[t] * decayBetween(gates, t, i) : 0;
    });
    product(c, c, keys, query, [&](int i, int t) { return key(t, i); }, [&](int t, int i, float x) {
      p[t * CHUNK + i] = i <= t ? x * scale * decayBetween(gates, t, i) : 0;
    });
    product(c, values, keys, key, state, [&](int t, int j, float x) {
      u[t * values + j] = gates.beta[t] * (read(vs + t * valueStride + j) - gates.exp[t] * x);
    });
    product(c, values, keys, query, state,
            [&](int t, int j, float x) { y[t * values + j] = scale * gates.exp[t] * x; });
    syncBlock();
    for (int j = thread; j < values; j += THREADS)
      for (int t = 1; t < c; ++t) {
        float x = u[t * values + j];
        for (int i = 0; i < t; ++i) x -= a[t * CHUNK + i] * u[i * values + j];
        u[t * values + j] = x;
      }
    syncBlock();
    if (corrected)
      for (int i = thread; i < c * values; i += THREADS)
        corrected[tokenHead * values + i / values * valueStride + i % values] = u[i];
    auto change = [&](int t, int j) { return u[t * values + j]; };
    product(c, values, c, [&](int t, int i) { return p[t * CHUNK + i]; }, change, [&](int t, int j, float x) {
      write(o + tokenHead * values + t * valueStride + j, y[t * values + j] + x);
    });
    product(keys, values, c, [&](int i, int t) { return gates.tail[t] * key(t, i); }, change,
            [&](int i, int j, float x) { s[i * values + j] = gates.exp[c - 1] * s[i * values + j] + x; });
    syncBlock();
  }
  if (final)
    for (int i = thread; i < keys * values; i += THREADS) final[sequence * keys * values + i] = s[i];
}

/// grid (heads, segments), 512 threads
extern "C" __global__ void __launch_bounds__(THREADS, 1) gatedDeltaRuleExactBackward(
  const ELEMENT *q, const ELEMENT *k, const ELEMENT *v, const float *g, const float *beta, const ELEMENT *dO,
  const float *dFinal, const float *starts, const float *corrected, const int *chunks, const int *segments, int heads,
  int keys, int values, float scale, ELEMENT *dQ, ELEMENT *dK, ELEMENT *dV, float *dG, float *dBeta, float *dInitial,
  float *workspace) {
  __shared__ Gates gates;
  __shared__ float dGamma[CHUNK], throughEnd[CHUNK], partial[THREADS / 32];
  const int head = blockIdx.x, segment = blockIdx.y, thread = threadIdx.x;
  const long long sequence = (long long)segment * heads + head;
  float *ds = workspace + sequence * workspaceFloats(keys, values);
  float *m = ds + keys * values, *p = m + CHUNK * CHUNK, *dM = p + CHUNK * CHUNK, *dP = dM + CHUNK * CHUNK;
  float *r = dP + CHUNK * CHUNK, *dR = r + CHUNK * values;
  float *left = dR + CHUNK * values, *right = left + CHUNK * keys, *dQuery = right + CHUNK * keys;
  for (int i = thread; i < keys * values; i += THREADS) ds[i] = dFinal ? dFinal[sequence * keys * values + i] : 0;
  for (int chunk = segments[segment + 1] - 1; chunk >= segments[segment]; --chunk) {
    const int first = chunks[2 * chunk], c = chunks[2 * chunk + 1];
    const long long tokenHead = (long long)first * heads + head, keyStride = heads * keys, valueStride = heads * values;
    const ELEMENT *queries = q + tokenHead * keys, *ks = k + tokenHead * keys, *vs = v + tokenHead * values;
    const ELEMENT *dos = dO + tokenHead * values;
    const float *us = corrected + tokenHead * values;
    const float *s = starts + ((long long)chunk * heads + head) * keys * values;
    computeGates(gates, g + tokenHead, beta + tokenHead, c, heads);
    auto key = [&](int t, int i) { return read(ks + t * keyStride + i); };
    auto query = [&](int t, int i) { return read(queries + t * keyStride + i); };
    auto dOut = [&](int t, int j) { return read(dos + t * valueStride + j); };
    auto change = [&](int t, int j) { return us[t * valueStride + j]; };
    auto dChange = [&](int t, int j) { return dR[t * values + j]; };
    product(c, c, keys, key, [&](int i, int t) { return key(t, i); }, [&](int t, int i, float x) {
      m[t * CHUNK + i] = i < t ? x * decayBetween(gates, t, i) : 0;
    });
    product(c, c, keys, query, [&](int i, int t) { return key(t, i); }, [&](int t, int i, float x) {
      p[t * CHUNK + i] = i <= t ? x * scale * decayBetween(gates, t, i) : 0;
    });
    product(c, values, keys, key, [&](int i, int j) { return s[i * values + j]; }, [&](int t, int j, float x) {
      r[t * values + j] = read(vs + t * valueStride + j) - gates.exp[t] * x;
    });
    syncBlock();
    product(c, values, keys, key, [&](int i, int j) { return ds[i * values + j]; },
            [&](int t, int j, float x) { dR[t * values + j] = gates.tail[t] * x; });
    syncBlock();
    product(c, values, c, [&](int t, int i) { return p[i * CHUNK + t]; }, dOut,
            [&](int t, int j, float x) { dR[t * values + j] += x; });
    syncBlock();
    for (int j = thread; j < values; j += THREADS)
      for (int t = c - 2; t >= 0; --t) {
        float x = dR[t * values + j];
        for (int i = t + 1; i < c; ++i) x -= gates.beta[i] * m[i * CHUNK + t] * dR[i * values + j];
        dR[t * values + j] = x;
      }
    syncBlock();
    product(c, c, values, dChange, [&](int j, int i) { return change(i, j); },
            [&](int t, int i, float x) { dM[t * CHUNK + i] = i < t ? -x : 0; });
    product(c, c, values, dOut, [&](int j, int i) { return change(i, j); }, [&](int t, int i, float x) {
      dP[t * CHUNK + i] = i <= t ? x * scale * decayBetween(gates, t, i) : 0;
    });
    syncBlock();
    if (thread < c) {
      float sum = 0;
      for (int j = 0; j < values; ++j) sum += dR[thread * values + j] * r[thread * values + j];
      for (int i = 0; i < thread; ++i) sum += dM[thread * CHUNK + i] * m[thread * CHUNK + i];
      dBeta[tokenHead + (long long)thread * heads] = sum;
    }
    syncBlock();
    for (int i = thread; i < c * CHUNK; i += THREADS) {
      const int t = i / CHUNK, column = i % CHUNK;
      if (column < t) dM[i] *= gates.beta[t] * decayBetween(gates, t, column);
    }
    for (int i = thread; i < c * values; i += THREADS) {
      const int t = i / values, j = i % values;
      dR[i] *= gates.beta[t];
      write(dV + tokenHead * values + t * valueStride + j, dR[i]);
    }
    syncBlock();
    product(c, keys, values, dChange, [&](int j, int i) { return s[i * values + j]; },
            [&](int t, int i, float x) { left[t * keys + i] = -gates.exp[t] * x; });
    product(c, keys, values, change, [&](int j, int i) { return ds[i * values + j]; },
            [&](int t, int i, float x) { right[t * keys + i] = gates.tail[t] * x; });
    product(c, keys, values, dOut, [&](int j, int i) { return s[i * values + j]; },
            [&](int t, int i, float x) { dQuery[t * keys + i] = scale * gates.exp[t] * x; });
    float overlap = 0;
    for (int i = thread; i < keys * values; i += THREADS) overlap += s[i] * ds[i];
    overlap = blockTotal(overlap, partial) * gates.exp[c - 1];
    if (thread < c) {
      float sum = 0;
      for (int i = 0; i < keys; ++i) sum += key(thread, i) * right[thread * keys + i];
      throughEnd[thread] = sum;
    }
    syncBlock();
    product(c, keys, c, [&](int t, int i) { return dM[t * CHUNK + i]; }, key,
            [&](int t, int i, float x) { left[t * keys + i] += x; });
    product(c, keys, c, [&](int t, int i) { return dP[t * CHUNK + i]; }, key,
            [&](int t, int i, float x) { dQuery[t * keys + i] += x; });
    product(c, keys, c, [&](int t, int i) { return dM[i * CHUNK + t]; }, key,
            [&](int t, int i, float x) { right[t * keys + i] += x; });
    syncBlock();
    product(c, keys, c, [&](int t, int i) { return dP[i * CHUNK + t]; }, query,
            [&](int t, int i, float x) { right[t * keys + i] += x; });
    syncBlock();
    for (int i = thread; i < c * keys; i += THREADS) {
      const int t = i / keys, j = i % keys;
      write(dQ + tokenHead * keys + t * keyStride + j, dQuery[i]);
      write(dK + tokenHead * keys + t * keyStride + j, left[i] + right[i]);
    }
    if (thread < c) {
      float sum = 0;
      for (int i = 0; i < keys; ++i)
        sum += query(thread, i) * dQuery[thread * keys + i]
          + key(thread, i) * (left[thread * keys + i] - right[thread * keys + i]);
      dGamma[thread] = sum;
    }
    syncBlock();
    if (thread == 0) {
      float sum = overlap;
      for (int t = 0; t < c; ++t) sum += throughEnd[t];
      for (int t = c - 1; t >= 0; --t) dG[tokenHead + (long long)t * heads] = sum += dGamma[t];
    }
    product(keys, values, c, [&](int i, int t) { return scale * gates.exp[t] * query(t, i); }, dOut,
            [&](int i, int j, float x) { ds[i * values + j] = gates.exp[c - 1] * ds[i * values + j] + x; });
    syncBlock();
    product(keys, values, c, [&](int i, int t) { return -gates.exp[t] * key(t, i); }, dChange,
            [&](int i, int j, float x) { ds[i * values + j] += x; });
    syncBlock();
  }
  if (dInitial)
    for (int i = thread; i < keys * values; i += THREADS) dInitial[sequence * keys * values + i] = ds[i];
}
