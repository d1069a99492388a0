// What attention by the products of warpgroups (Hopper) has in common: operands bfloat16, heads of 128 channels. One
// warpgroup of a block copies, in stages, what the others multiply; barriers in shared memory say what is there and what is
// no longer read, so that warpgroups need not wait for each other: while one exponentiates, another multiplies.
#pragma once
#include "Primitives.cuh"
#include "Spans.cuh"

constexpr int SIZE = 128, TILE = 64;
/// Elements of [TILE, 64]: rows of 128 bytes, whose eight parts of 16 bytes are exchanged by the row's number.
constexpr int PANEL = TILE * 64;
/// A stage: two matrices [TILE, SIZE] of two panels each.
constexpr int STAGE = 4 * PANEL;
constexpr float LOG2E = 1.4426950408889634f;

DEVICE float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Dynamic shared memory from a multiple of 1024 on, as the products want it.
DEVICE char *alignedShared() {
  char *memory = dynamicShared();
  return memory + (1024 - sharedAddress(memory) % 1024) % 1024;
}

/// What the products read of shared memory: rows of 128 bytes as above, eight of which are 1024 bytes; `leading`: bytes
/// from one panel to the next.
DEVICE u64 descriptor(const bf16 *p, int leading) {
  return (u64)(sharedAddress(p) & 0x3ffff) >> 4 | (u64)(leading >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
/// Channels 16 d on of rows in panels of `rows` rows, for a product over channels.
template <int rows> DEVICE u64 channels(const bf16 *matrix, int d) {
  return descriptor(matrix + d / 4 * rows * 64 + d % 4 * 16, 16);
}
/// Rows 16 j on of a matrix [TILE, SIZE], for a product over rows.
DEVICE u64 someRows(const bf16 *matrix, int j) { return descriptor(matrix + j * 16 * 64, PANEL * 2); }

DEVICE void beginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commitProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `pending` groups of products are under way.
template <int pending> DEVICE void waitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
/// Says that the sums may have changed: products write them while other instructions run.
template <int n> DEVICE void touch(float (&d)[n][4]) {
#pragma unroll
  for (int j = 0; j < n; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[j][i])::"memory");
}

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
/// The same, where the left operand lies in shared memory, too: 64 rows.
DEVICE void multiplyWarpgroup(float (&d)[8][4], u64 a, u64 b, int adds) {
  asm volatile(
    "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
    " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
    "%32, %33, p, 1, 1, 0, 0;\n}"
    : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
      "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
      "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
      "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
      "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
      "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
      "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
      "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
    : "l"(a), "l"(b), "r"(adds));
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

/// Lets the products see what copies have written.
DEVICE void publishCopies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void arrive(u64 *barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(sharedAddress(barrier)) : "memory");
}
DEVICE bool anyLane(bool x) { return __any_sync(0xffffffffu, x); }
/// The threads of one warpgroup wait for each other.
DEVICE void syncWarpgroup(int member) { asm volatile("bar.sync %0, 128;" ::"r"(member + 1) : "memory"); }

/// From here on a warpgroup has so many registers a thread.
template <int count> DEVICE void takeRegisters() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count)); }
template <int count> DEVICE void giveRegisters() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count)); }

/// Stages in turn: which is next, and the parity of its turn.
template <int stages> struct Turn {
  int stage = 0, parity = 0;
  DEVICE void advance() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

/// Barriers of the stages: `full` by every thread that copies, `empty` by every warp that multiplies.
template <int stages> struct Stages {
  u64 *full, *empty;

  /// By all threads of the block; it must synchronize before they are used.
  DEVICE void initialize(u64 *memory, int readers) {
    full = memory, empty = memory + stages;
    if (threadIdx.x > 0) return;
    for (int i = 0; i < stages; ++i) {
      initializeBarrier(full + i, 128);
      initializeBarrier(empty + i, readers);
    }
  }

  // Of those that copy.

  /// Waits until nobody reads the stage any more.
  DEVICE void begin(Turn<stages> turn, int count) {
    if (count >= stages) waitBarrier(empty + turn.stage, turn.parity ^ 1);
  }
  /// The stage is full once the copies that this thread has begun are there; nobody waits for that here.
  DEVICE void end(Turn<stages> turn) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(sharedAddress(full + turn.stage)) : "memory");
  }

  // Of those that multiply.

  /// Waits until the stage is full, and lets the products see what was copied.
  DEVICE void await(Turn<stages> turn) {
    waitBarrier(full + turn.stage, turn.parity);
    publishCopies();
  }
  /// The stage is read no longer, by this warp.
  DEVICE void release(Turn<stages> turn) {
    syncWarp();
    if (threadIdx.x % 32 == 0) arrive(empty + turn.stage);
  }
};

/// Begins to copy `rows` rows of 128 elements, `stride` elements apart, into two panels of so many rows; zeros behind
/// `count`. By the 128 threads of a warpgroup.
template <int rows, int panelRows = rows> DEVICE void copyRows(bf16 *shared, const bf16 *x, int count, int stride) {
  const int c = threadIdx.x % 16;
#pragma unroll 4
  for (int r = threadIdx.x % 128 / 16; r < rows; r += 8)
    copyAsync(
      shared + c / 8 * panelRows * 64 + r * 64 + (c % 8 ^ r % 8) * 8,
      x + (long long)(r < count ? r : 0) * stride + c * 8, r < count);
}

/// Of 64 rows in panels of `panelRows`, the left operands of all channels, this warp's 16 rows.
template <int panelRows> DEVICE void loadOperands(Quad (&a)[8], const bf16 *rows) {
  const int lane = threadIdx.x % 32, r = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
  for (int d = 0; d < 8; ++d) {
    // The tiles of a left operand: rows 0 and 8, then channels 8 on.
    const int c = d * 2 + lane / 16;
    a[d] = loadMatrix(rows + c / 8 * panelRows * 64 + r * 64 + (c % 8 ^ r % 8) * 8);
  }
}

/// Sums [64, 64] as left operands.
DEVICE void packSums(Quad (&a)[4], const float (&s)[8][4]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    a[j / 2].x[j % 2 * 2] = pack(s[j][0], s[j][1]);
    a[j / 2].x[j % 2 * 2 + 1] = pack(s[j][2], s[j][3]);
  }
}
