// What steps of the delta rule share: a block's part of a state [K, V], 128 columns of which a warp has some rows in registers,
// four columns a lane. It moves states once each way and little else, and so should run at the speed of memory.
#pragma once
#include "Rows.cuh"

#ifndef STATE
#define STATE float
#endif

constexpr int STEP_WARPS = KEY_SIZE <= 128 ? 4 : 8;
constexpr int STEP_ROWS = (KEY_SIZE + STEP_WARPS - 1) / STEP_WARPS;

DEVICE void readFour(float (&x)[4], const float *p) {
  const Quad q = *reinterpret_cast<const Quad *>(p);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = asFloat(q.x[i]);
}
DEVICE void readFour(float (&x)[4], const bf16 *p) {
  const u64 q = *reinterpret_cast<const u64 *>(p);
  x[0] = lower((u32)q), x[1] = upper((u32)q), x[2] = lower((u32)(q >> 32)), x[3] = upper((u32)(q >> 32));
}
DEVICE void writeFour(float *p, const float (&x)[4]) {
  *reinterpret_cast<Quad *>(p) = {{asBits(x[0]), asBits(x[1]), asBits(x[2]), asBits(x[3])}};
}
DEVICE void writeFour(bf16 *p, const float (&x)[4]) {
  *reinterpret_cast<u64 *>(p) = (u64)pack(x[0], x[1]) | (u64)pack(x[2], x[3]) << 32;
}

/// The rows of a warp.
struct StateRows {
  float s[STEP_ROWS][4];

  /// From `own`, the first of this lane's columns; zeros where there are none.
  DEVICE void load(const STATE *own, int warp, bool isIn) {
#pragma unroll
    for (int r = 0; r < STEP_ROWS; ++r) {
      const int row = warp * STEP_ROWS + r;
      if (isIn && row < KEY_SIZE)
        readFour(s[r], own + row * VALUE_SIZE);
      else
        s[r][0] = s[r][1] = s[r][2] = s[r][3] = 0.0f;
    }
  }

  /// This warp's part of the products with keys and queries, to parts[warp].
  DEVICE void multiply(const float *keys, const float *queries, float (*parts)[2][128], int warp, int lane) const {
    float known[4] = {}, seen[4] = {};
#pragma unroll
    for (int r = 0; r < STEP_ROWS; ++r) {
      const int row = warp * STEP_ROWS + r < KEY_SIZE ? warp * STEP_ROWS + r : KEY_SIZE - 1;
#pragma unroll
      for (int i = 0; i < 4; ++i) known[i] += keys[row] * s[r][i], seen[i] += queries[row] * s[r][i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) parts[warp][0][lane * 4 + i] = known[i], parts[warp][1][lane * 4 + i] = seen[i];
  }

  /// decay s + keys update^T, back to where it came from.
  DEVICE void update(STATE *own, int warp, float decay, const float *keys, const float (&update)[4]) {
#pragma unroll
    for (int r = 0; r < STEP_ROWS; ++r) {
      const int row = warp * STEP_ROWS + r;
      if (row >= KEY_SIZE) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) s[r][i] = decay * s[r][i] + keys[row] * update[i];
      writeFour(own + row * VALUE_SIZE, s[r]);
    }
  }
};

/// The sums of all warps' parts for one column.
DEVICE void addParts(const float (*parts)[2][128], int column, float &known, float &seen) {
  known = seen = 0;
#pragma unroll
  for (int w = 0; w < STEP_WARPS; ++w) known += parts[w][0][column], seen += parts[w][1][column];
}
