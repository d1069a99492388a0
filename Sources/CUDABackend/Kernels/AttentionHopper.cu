// Softmax attention forward by the products of warpgroups (Hopper), operands bfloat16, heads of 128 channels. Spans as in
// AttentionExact.cu. A block keeps 192 queries, 64 for each of its three warpgroups, in registers; keys and values come by
// asynchronous copies, one tile of 64 ahead. While one warpgroup exponentiates, the others multiply.
#include "Primitives.cuh"
#include "Spans.cuh"

constexpr int SIZE = 128, TILE = 64, GROUPS = 3, QUERIES = GROUPS * TILE, THREADS = GROUPS * 128;
/// Elements of [TILE, 64]: rows of 128 bytes, whose eight parts of 16 bytes are exchanged by the row's number.
constexpr int PANEL = TILE * 64;
/// Queries of a block, its threads, and bytes of dynamic shared memory: for the launch.
extern "C" __device__ const int attentionSizes[3] = {QUERIES, THREADS, 8 * PANEL * 2 + 1024};
constexpr float LOG2E = 1.4426950408889634f;

DEVICE float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// What the products read of shared memory: rows of 128 bytes as above, eight of which are 1024 bytes; `leading`: bytes
/// from one panel to the next.
DEVICE u64 descriptor(const bf16 *p, int leading) {
  return (u64)(sharedAddress(p) & 0x3ffff) >> 4 | (u64)(leading >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
DEVICE void beginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void endProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
}
/// Lets the products see what this thread copied.
DEVICE void publishCopies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// d [64, 64] = or += a [64, 16] times the transpose of 64 rows.
DEVICE void multiplyWarpgroup(float (&d)[8][4], const Quad &a, u64 b, int adds) {
  asm volatile(
    "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
    " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
    "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"
    : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
      "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
      "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
      "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
      "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
      "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
      "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
      "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
    : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b), "r"(adds));
}
/// d [64, 128] += a [64, 16] times 16 rows.
DEVICE void multiplyWarpgroup(float (&d)[16][4], const Quad &a, u64 b, int adds) {
  asm volatile(
    "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
    " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
    " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
    " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
    "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
    : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
      "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
      "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
      "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
      "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
      "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
      "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
      "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
      "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),
      "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
      "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),
      "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
      "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),
      "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
      "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),
      "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
    : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b), "r"(adds));
}

/// Begins to copy `rows` rows of 128 elements, `stride` elements apart, into two panels of so many rows; zeros behind
/// `count`.
template <int rows> DEVICE void copyRows(bf16 *shared, const bf16 *x, int count, int stride) {
  const int c = threadIdx.x % 16;
#pragma unroll 1
  for (int r = threadIdx.x / 16; r < rows; r += THREADS / 16)
    copyAsync(
      shared + c / 8 * rows * 64 + r * 64 + (c % 8 ^ r % 8) * 8, x + (long long)(r < count ? r : 0) * stride + c * 8,
      r < count);
}

DEVICE float quadTotal(float x) {
  x += shuffleXor(x, 1);
  return x + shuffleXor(x, 2);
}
DEVICE float quadMaximum(float x) {
  x = fmaxf(x, shuffleXor(x, 1));
  return fmaxf(x, shuffleXor(x, 2));
}

/// tiles: span and first query of each run of 192 queries. grid (tiles, heads), 384 threads
extern "C" __global__ void __launch_bounds__(THREADS, 1) attentionForward(
  const bf16 *q, const bf16 *k, const bf16 *v, const int *tiles, const Span *spans, int heads, int groups,
  int vStride, float scale, bf16 *o, float *logSums) {
  // Two stages of keys, then two of values, from a multiple of 1024 on.
  char *memory = dynamicShared();
  bf16 *keys = reinterpret_cast<bf16 *>(memory + (1024 - sharedAddress(memory) % 1024) % 1024);
  bf16 *values = keys + 4 * PANEL;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, member = uniform(threadIdx.x / 128);
  const int h = blockIdx.y, group = h * groups / heads;
  const Span span = spans[tiles[2 * blockIdx.x]];
  const int offset = tiles[2 * blockIdx.x + 1], count = min(QUERIES, span.queryCount - offset);
  // Where the block's first query and this lane's first row stand among the keys.
  const int base = span.keyCount - span.queryCount + offset, row = warp * 16 + lane / 4;
  const int first = max(0, base - span.window + 1) / TILE * TILE, end = base + count;
  copyRows<QUERIES>(keys, q + ((long long)(span.query + offset) * heads + h) * SIZE, count, heads * SIZE);
  commitCopies();
  waitCopies<0>();
  syncBlock();
  Quad query[8];
#pragma unroll
  for (int d = 0; d < 8; ++d) {
    // The tiles of a left operand: rows 0 and 8, then channels 8 on.
    const int r = warp * 16 + lane % 16, c = d * 2 + lane / 16;
    query[d] = loadMatrix(keys + c / 8 * QUERIES * 64 + r * 64 + (c % 8 ^ r % 8) * 8);
  }
  syncBlock();
  const int kStride = groups * SIZE;
  k += (long long)span.key * kStride + group * SIZE;
  v += (long long)span.key * vStride + group * SIZE;
  copyRows<TILE>(keys, k + (long long)first * kStride, end - first, kStride);
  copyRows<TILE>(values, v + (long long)first * vStride, end - first, vStride);
  commitCopies();
  float out[16][4] = {}, most[2] = {-1e30f, -1e30f}, sum[2] = {0, 0};
  const float factor = scale * LOG2E;
  // The keys that some query of this warpgroup sees.
  const int groupFirst = base + member * TILE - span.window + 1, groupEnd = base + member * TILE + TILE;
  int stage = 0;
  for (int key = first; key < end; key += TILE, stage ^= 1) {
    waitCopies<0>();
    publishCopies();
    syncBlock();
    if (key + TILE < end) {
      const int next = (stage ^ 1) * 2 * PANEL, left = end - key - TILE;
      copyRows<TILE>(keys + next, k + (long long)(key + TILE) * kStride, left, kStride);
      copyRows<TILE>(values + next, v + (long long)(key + TILE) * vStride, left, vStride);
      commitCopies();
    }
    if (key >= groupEnd || key + TILE <= groupFirst) continue;
    float s[8][4];
    beginProducts();
#pragma unroll
    for (int d = 0; d < 8; ++d)
      multiplyWarpgroup(
        s, query[d], descriptor(keys + stage * 2 * PANEL + d / 4 * PANEL + d % 4 * 16, 16), d > 0);
    endProducts();
    if (key + TILE - 1 > base + member * TILE || key <= base + member * TILE + TILE - 1 - span.window) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int place = key + j * 8 + lane % 4 * 2 + i % 2, position = base + row + i / 2 * 8;
          if (place > position || place <= position - span.window) s[j][i] = -1e30f;
        }
    }
    float shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = most[half];
#pragma unroll
      for (int j = 0; j < 8; ++j) highest = fmaxf(highest, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
      highest = quadMaximum(highest);
      const float keep = power2((most[half] - highest) * factor);
      most[half] = highest;
      // Where nothing is seen yet the weights become zero: what rounding leaves of large numbers must not.
      shift[half] = fmaxf(highest, -1e29f) * factor;
      sum[half] *= keep;
#pragma unroll
      for (int d = 0; d < 16; ++d) {
        out[d][2 * half] *= keep;
        out[d][2 * half + 1] *= keep;
      }
    }
    Quad p[4];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[j][i] = power2(s[j][i] * factor - shift[i / 2]);
        sum[i / 2] += s[j][i];
      }
      p[j / 2].x[j % 2 * 2] = pack(s[j][0], s[j][1]);
      p[j / 2].x[j % 2 * 2 + 1] = pack(s[j][2], s[j][3]);
    }
    beginProducts();
#pragma unroll
    for (int j = 0; j < 4; ++j)
      multiplyWarpgroup(out, p[j], descriptor(values + stage * 2 * PANEL + j * 16 * 64, PANEL * 2), 1);
    endProducts();
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] = quadTotal(sum[half]);
    const int r = row + 8 * half;
    if (r >= count) continue;
    const long long place = (long long)(span.query + offset + r) * heads + h;
    const float inverse = 1.0f / sum[half];
    if (lane % 4 == 0) logSums[place] = most[half] * scale + logf(sum[half]);
    u32 *to = reinterpret_cast<u32 *>(o + place * SIZE) + lane % 4;
#pragma unroll
    for (int d = 0; d < 16; ++d) to[d * 4] = pack(out[d][2 * half] * inverse, out[d][2 * half + 1] * inverse);
  }
}
