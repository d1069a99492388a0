// What Primitives.cuh takes of a warp's matrix instructions, where a card emulated; included by it once Quad is known.
#pragma once

static Quad loadMatrices(const bf16 *row, bool transposed) {
  struct Lane {
    const bf16 *row;
    Quad out;
  } lane{row, {}};
  emulation::collective(&lane, [=](void **lanes) {
    for (int m = 0; m < 4; ++m) {
      auto element = [&](int r, int c) { return (u32)((Lane *)lanes[m * 8 + r])->row[c]; };
      for (int i = 0; i < 32; ++i) {
        const int a = i / 4, b = i % 4 * 2;
        ((Lane *)lanes[i])->out.x[m] =
          transposed ? element(b, a) | element(b + 1, a) << 16 : element(a, b) | element(a, b + 1) << 16;
      }
    }
  });
  return lane.out;
}
static inline Quad loadMatrix(const bf16 *row) { return loadMatrices(row, false); }
static inline Quad loadMatrixTransposed(const bf16 *row) { return loadMatrices(row, true); }

static inline u32 transposeTile(u32 x) {
  struct Lane {
    u32 in, out;
  } lane{x, 0};
  emulation::collective(&lane, [](void **lanes) {
    bf16 tile[8][8];
    for (int i = 0; i < 32; ++i) {
      tile[i / 4][i % 4 * 2] = ((Lane *)lanes[i])->in;
      tile[i / 4][i % 4 * 2 + 1] = ((Lane *)lanes[i])->in >> 16;
    }
    for (int i = 0; i < 32; ++i)
      ((Lane *)lanes[i])->out = tile[i % 4 * 2][i / 4] | (u32)tile[i % 4 * 2 + 1][i / 4] << 16;
  });
  return lane.out;
}

static inline void multiplyAdd(float (&c)[4], const Quad &a, u32 b0, u32 b1) {
  struct Lane {
    float *c;
    Quad a;
    u32 b[2];
  } lane{c, a, {b0, b1}};
  emulation::collective(&lane, [](void **lanes) {
    float a[16][16], b[16][8];
    auto low = [](u32 x) { return asFloat(x << 16); };
    auto high = [](u32 x) { return asFloat(x & 0xffff0000u); };
    for (int i = 0; i < 32; ++i) {
      const Lane &lane = *(Lane *)lanes[i];
      const int row = i / 4, column = i % 4 * 2;
      for (int r = 0; r < 4; ++r) {
        a[row + r % 2 * 8][column + r / 2 * 8] = low(lane.a.x[r]);
        a[row + r % 2 * 8][column + 1 + r / 2 * 8] = high(lane.a.x[r]);
      }
      for (int r = 0; r < 2; ++r) {
        b[column + r * 8][row] = low(lane.b[r]);
        b[column + 1 + r * 8][row] = high(lane.b[r]);
      }
    }
    for (int i = 0; i < 32; ++i)
      for (int e = 0; e < 4; ++e) {
        float sum = ((Lane *)lanes[i])->c[e];
        for (int k = 0; k < 16; ++k) sum += a[i / 4 + e / 2 * 8][k] * b[k][i % 4 * 2 + e % 2];
        ((Lane *)lanes[i])->c[e] = sum;
      }
  });
}
