// Losses with their gradients: the vocabulary's cross-entropy and KL, and the squared error of hidden states.
#include "Rows.cuh"

constexpr int THREADS = 512;

/// Sums of a row relative to its maxima: of e^z of the student, of e^z of the teacher, and of the teacher's e^z times
/// the difference of the two logits.
struct Sums {
  float student, studentSum, teacher, teacherSum, difference;
};

DEVICE float powerOf(float x) { return sizeof(ELEMENT) == 2 ? exponential(x) : exactExponential(x); }

DEVICE void merge(Sums &a, const Sums &b) {
  const float m = fmaxf(a.student, b.student), t = fmaxf(a.teacher, b.teacher);
  a.studentSum = a.studentSum * powerOf(a.student - m) + b.studentSum * powerOf(b.student - m);
  const float x = powerOf(a.teacher - t), y = powerOf(b.teacher - t);
  a.teacherSum = a.teacherSum * x + b.teacherSum * y;
  a.difference = a.difference * x + b.difference * y;
  a.student = m;
  a.teacher = t;
}

template <int n> DEVICE Sums sumRow(const ELEMENT *z, const ELEMENT *t, int columns) {
  // Lower than any logit, and finite, so that differences stay numbers.
  Sums sums = {-1e30f, 0, -1e30f, 0, 0};
  for (int c = threadIdx.x * n; c < columns; c += THREADS * n) {
    float s[n], e[n];
    read(s, z + c);
    Sums part = {s[0], 0, -1e30f, 0, 0};
#pragma unroll
    for (int i = 1; i < n; ++i) part.student = fmaxf(part.student, s[i]);
    part.student = fmaxf(part.student, sums.student);
#pragma unroll
    for (int i = 0; i < n; ++i) part.studentSum += powerOf(s[i] - part.student);
    if (t) {
      read(e, t + c);
      part.teacher = e[0];
#pragma unroll
      for (int i = 1; i < n; ++i) part.teacher = fmaxf(part.teacher, e[i]);
      part.teacher = fmaxf(part.teacher, sums.teacher);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float weight = powerOf(e[i] - part.teacher);
        part.teacherSum += weight;
        part.difference += weight * (e[i] - s[i]);
      }
    }
    merge(sums, part);
  }
  return sums;
}

template <int n>
DEVICE void writeGradient(
  ELEMENT *z, const ELEMENT *t, int columns, int label, const Sums &sums, float crossEntropyScale, float klScale) {
  const float factor = (crossEntropyScale + klScale) / sums.studentSum;
  const float teacherFactor = t ? klScale / sums.teacherSum : 0;
  for (int c = threadIdx.x * n; c < columns; c += THREADS * n) {
    float s[n], e[n];
    read(s, z + c);
    if (t) read(e, t + c);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      s[i] = powerOf(s[i] - sums.student) * factor;
      if (t) s[i] -= powerOf(e[i] - sums.teacher) * teacherFactor;
      if (c + i == label) s[i] -= crossEntropyScale;
    }
    write(z + c, s);
  }
}

/// Turns logits [rows, columns] into their gradient: of crossEntropyScale times the cross-entropy with `labels`, and of
/// klScale times KL(teacher || student) where there are the teacher's logits. Rows whose label is negative count for
/// nothing. grid (rows), 512 threads.
extern "C" __global__ void __launch_bounds__(THREADS) vocabularyLoss(
  ELEMENT *logits, const ELEMENT *teacher, const int *labels, int columns, float crossEntropyScale, float klScale,
  float *crossEntropy, float *kl) {
  __shared__ Sums parts[THREADS];
  __shared__ float atLabel;
  const int row = blockIdx.x, label = labels[row];
  ELEMENT *z = logits + (long long)row * columns;
  const ELEMENT *t = teacher ? teacher + (long long)row * columns : nullptr;
  if (label < 0) {
    for (int c = threadIdx.x; c < columns; c += THREADS) writeElement(z + c, 0.0f);
    if (threadIdx.x == 0) crossEntropy[row] = kl[row] = 0;
    return;
  }
  const bool isEven = movesEight(columns, z, t);
  if (threadIdx.x == 0) atLabel = readElement(z + label);
  parts[threadIdx.x] = isEven ? sumRow<8>(z, t, columns) : sumRow<1>(z, t, columns);
  syncBlock();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) merge(parts[threadIdx.x], parts[threadIdx.x + half]);
    syncBlock();
  }
  const Sums sums = parts[0];
  if (threadIdx.x == 0) {
    const float logSum = sums.student + logf(sums.studentSum);
    crossEntropy[row] = logSum - atLabel;
    kl[row] = t ? sums.difference / sums.teacherSum + logSum - sums.teacher - logf(sums.teacherSum) : 0;
  }
  isEven ? writeGradient<8>(z, t, columns, label, sums, crossEntropyScale, klScale)
         : writeGradient<1>(z, t, columns, label, sums, crossEntropyScale, klScale);
}

template <int n>
DEVICE float squaredErrorRow(
  const ELEMENT *x, const ELEMENT *target, int columns, float factor, ELEMENT *dx, int adds) {
  float sum = 0;
  for (int c = threadIdx.x % 32 * n; c < columns; c += 32 * n) {
    float a[n], b[n], d[n];
    read(a, x + c);
    read(b, target + c);
    if (adds) read(d, dx + c);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      a[i] -= b[i];
      sum += a[i] * a[i];
      d[i] = a[i] * factor + (adds ? d[i] : 0.0f);
    }
    if (dx) write(dx + c, d);
  }
  return laneTotal(sum);
}

/// losses[row] = mean of (x - target)^2; dx, unless null, becomes seed times its gradient, or has it added.
/// grid (rows / 8 rounded up), 256 threads.
extern "C" __global__ void __launch_bounds__(256) squaredError(
  const ELEMENT *x, const ELEMENT *target, int rows, int columns, float seed, float *losses, ELEMENT *dx, int adds) {
  const int row = blockIdx.x * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  const long long first = (long long)row * columns;
  ELEMENT *out = dx ? dx + first : nullptr;
  const float factor = seed * 2 / columns;
  const float sum = movesEight(columns, x, target, dx)
                      ? squaredErrorRow<8>(x + first, target + first, columns, factor, out, dx && adds)
                      : squaredErrorRow<1>(x + first, target + first, columns, factor, out, dx && adds);
  if (threadIdx.x % 32 == 0) losses[row] = sum / columns;
}
