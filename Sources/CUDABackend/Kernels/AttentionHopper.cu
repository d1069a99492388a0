// Softmax attention forward by the products of warpgroups (Hopper), operands bfloat16, heads of 128 channels. Spans as in
// AttentionExact.cu. A block has 128 queries, 64 for each of its two warpgroups; keys and values come by asynchronous copies
// in tiles of 128. The scores of the next tile are multiplied while this one's weights meet its values, and exponentiated
// while that goes on (Shah et al., 2024).
#include "Primitives.cuh"
#include "Spans.cuh"

constexpr int SIZE = 128, TILE = 128, GROUPS = 2, QUERIES = GROUPS * 64, THREADS = GROUPS * 128;
/// Elements of [TILE, 64]: rows of 128 bytes, whose eight parts of 16 bytes are exchanged by the row's number.
constexpr int PANEL = TILE * 64;
/// Queries of a block, its threads, and bytes of dynamic shared memory: for the launch.
extern "C" __device__ const int attentionSizes[3] = {QUERIES, THREADS, (2 * QUERIES * 64 + 8 * PANEL) * 2 + 1024};
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
DEVICE void commitProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `pending` groups of products are under way.
template <int pending> DEVICE void waitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
/// Lets the products see what this thread copied.
DEVICE void publishCopies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// d [64, 128] = or += 64 rows times the transpose of 128 rows, 16 channels of each.
DEVICE void multiplyRows(float (&d)[16][4], u64 a, u64 b, int adds) {
  asm volatile(
    "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
    " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
    " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
    " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
    "%64, %65, p, 1, 1, 0, 0;\n}"
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
    : "l"(a), "l"(b), "r"(adds));
}
/// d [64, 128] += a [64, 16] times 16 rows.
DEVICE void multiplyWeights(float (&d)[16][4], const Quad &a, u64 b) {
  asm volatile(
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
    " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
    " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
    " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
    "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
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
    : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b));
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

/// tiles: span and first query of each run of 128 queries. grid (tiles, heads), 256 threads
extern "C" __global__ void __launch_bounds__(THREADS, 1) attentionForward(
  const bf16 *q, const bf16 *k, const bf16 *v, const int *tiles, const Span *spans, int heads, int groups,
  int vStride, float scale, bf16 *o, float *logSums) {
  // Queries, two stages of keys, two of values, from a multiple of 1024 on.
  char *memory = dynamicShared();
  bf16 *queries = reinterpret_cast<bf16 *>(memory + (1024 - sharedAddress(memory) % 1024) % 1024);
  bf16 *keys = queries + 2 * QUERIES * 64, *values = keys + 4 * PANEL;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, member = uniform(threadIdx.x / 128);
  const int h = blockIdx.y, group = h * groups / heads;
  const Span span = spans[tiles[2 * blockIdx.x]];
  const int offset = tiles[2 * blockIdx.x + 1], count = min(QUERIES, span.queryCount - offset);
  // Where the block's first query and this lane's first row stand among the keys.
  const int base = span.keyCount - span.queryCount + offset, row = warp * 16 + lane / 4;
  const int first = max(0, base - span.window + 1) / TILE * TILE, end = base + count;
  const int kStride = groups * SIZE;
  k += (long long)span.key * kStride + group * SIZE;
  v += (long long)span.key * vStride + group * SIZE;
  copyRows<QUERIES>(queries, q + ((long long)(span.query + offset) * heads + h) * SIZE, count, heads * SIZE);
  copyRows<TILE>(keys, k + (long long)first * kStride, end - first, kStride);
  commitCopies();
  if (first + TILE < end)
    copyRows<TILE>(keys + 2 * PANEL, k + (long long)(first + TILE) * kStride, end - first - TILE, kStride);
  copyRows<TILE>(values, v + (long long)first * vStride, end - first, vStride);
  commitCopies();
  waitCopies<1>();
  publishCopies();
  syncBlock();
  float out[16][4] = {}, s[16][4], most[2] = {-1e30f, -1e30f}, sum[2] = {0, 0}, keep[2];
  Quad p[8];
  const float factor = scale * LOG2E;
  const bf16 *own = queries + member * 64 * 64;
  auto score = [&](const bf16 *tile) {
    beginProducts();
#pragma unroll
    for (int d = 0; d < 8; ++d)
      multiplyRows(
        s, descriptor(own + d / 4 * QUERIES * 64 + d % 4 * 16, 16), descriptor(tile + d / 4 * PANEL + d % 4 * 16, 16),
        d > 0);
    commitProducts();
  };
  // Turns the scores of the keys from `key` on into weights, and says by how much earlier sums shrink.
  auto soften = [&](int key) {
    if (key + TILE - 1 > base + member * 64 || key <= base + member * 64 + 63 - span.window) {
#pragma unroll
      for (int j = 0; j < 16; ++j)
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
      for (int j = 0; j < 16; ++j) highest = fmaxf(highest, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
      highest = quadMaximum(highest);
      keep[half] = power2((most[half] - highest) * factor);
      most[half] = highest;
      shift[half] = highest * factor;
      sum[half] *= keep[half];
    }
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[j][i] = power2(s[j][i] * factor - shift[i / 2]);
        sum[i / 2] += s[j][i];
      }
  };
  auto packWeights = [&]() {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      p[j / 2].x[j % 2 * 2] = pack(s[j][0], s[j][1]);
      p[j / 2].x[j % 2 * 2 + 1] = pack(s[j][2], s[j][3]);
    }
  };
  score(keys);
  waitProducts<0>();
  soften(first);
  packWeights();
  auto weigh = [&](const bf16 *tile) {
    beginProducts();
#pragma unroll
    for (int j = 0; j < 8; ++j) multiplyWeights(out, p[j], descriptor(tile + j * 16 * 64, PANEL * 2));
    commitProducts();
  };
  int stage = 0, key = first;
  for (; key + TILE < end; key += TILE, stage ^= 1) {
    // The values of this tile and the keys of the next are there; nobody reads the keys of this one any more.
    waitCopies<0>();
    publishCopies();
    syncBlock();
    if (key + 2 * TILE < end)
      copyRows<TILE>(
        keys + stage * 2 * PANEL, k + (long long)(key + 2 * TILE) * kStride, end - key - 2 * TILE, kStride);
    copyRows<TILE>(
      values + (stage ^ 1) * 2 * PANEL, v + (long long)(key + TILE) * vStride, end - key - TILE, vStride);
    commitCopies();
    score(keys + (stage ^ 1) * 2 * PANEL);
    weigh(values + stage * 2 * PANEL);
    waitProducts<1>();
    soften(key + TILE);
    waitProducts<0>();
#pragma unroll
    for (int d = 0; d < 16; ++d)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[d][i] *= keep[i / 2];
    packWeights();
  }
  waitCopies<0>();
  publishCopies();
  syncBlock();
  weigh(values + stage * 2 * PANEL);
  waitProducts<0>();
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
