// What the kernels take from the machine: bfloat16, tensor-core products of a warp, asynchronous copies, shuffles.
// No header of CUDA is included, so NVRTC needs nothing but itself. Everything here exists from sm_80 up.
//
// A matrix that tensor cores read lies in blocks of 16 x 16 bfloat16, 512 contiguous bytes each: four tiles of 8 x 8,
// row by row, each tile 8 rows of 16 bytes. One ldmatrix of a block is then a linear read without bank conflicts,
// whichever side of a product the block stands on.
#pragma once

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

/// Elements of a block.
constexpr int BLOCK = 256;

/// Four 32-bit registers: the fragment of a 16 x 16 block that a lane holds, or 16 bytes on their way.
struct __align__(16) Quad {
  u32 x[4];
};

#ifndef JETTRAIN_EMULATED
#define DEVICE __device__ __forceinline__

DEVICE char *dynamicShared() {
  extern __shared__ Quad memory[];
  return reinterpret_cast<char *>(memory);
}

DEVICE void syncBlock() { __syncthreads(); }
DEVICE void syncWarp() { __syncwarp(); }
DEVICE float shuffleXor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE float shuffleUp(float x, int delta) { return __shfl_up_sync(0xffffffffu, x, delta); }
DEVICE float shuffleDown(float x, int delta) { return __shfl_down_sync(0xffffffffu, x, delta); }

/// A number that is the same in all lanes, known to be so: branches on it need no care for divergence.
DEVICE int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

DEVICE u32 sharedAddress(const void *p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

/// The four tiles of a block; every lane gives the address of 16 bytes.
DEVICE Quad loadMatrix(const bf16 *row) {
  Quad r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r.x[0]), "=r"(r.x[1]), "=r"(r.x[2]), "=r"(r.x[3])
               : "r"(sharedAddress(row)));
  return r;
}

/// The same, every tile transposed.
DEVICE Quad loadMatrixTransposed(const bf16 *row) {
  Quad r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r.x[0]), "=r"(r.x[1]), "=r"(r.x[2]), "=r"(r.x[3])
               : "r"(sharedAddress(row)));
  return r;
}

/// Transposes an 8 x 8 tile that the warp holds, two elements a lane.
DEVICE u32 transposeTile(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

/// c[16, 8] += a[16, 16] b[16, 8]
DEVICE void multiplyAdd(float (&c)[4], const Quad &a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

/// Two numbers rounded to bfloat16, `low` in the lower half.
DEVICE u32 pack(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

DEVICE float asFloat(u32 x) { return __uint_as_float(x); }
DEVICE u32 asBits(float x) { return __float_as_uint(x); }

/// 16 bytes from device to shared memory, without waiting; zeros where they are not `valid`.
DEVICE void copyAsync(void *shared, const void *global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
DEVICE void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most `pending` groups of this thread's copies are under way.
template <int pending> DEVICE void waitCopies() { asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"); }

// PLAIN_COPIES leaves the engine alone, so that what earlier cards run can be checked on later ones.
#if __CUDA_ARCH__ >= 900 && !defined(PLAIN_COPIES)
#define HAS_BULK_COPIES 1
#endif

#ifdef HAS_BULK_COPIES
// The copy engine of Hopper and later: one instruction copies many bytes, a barrier in shared memory counts them.

/// A barrier that so many arrivals, and the bytes that they announce, complete, phase after phase. By one thread; the block
/// must synchronize before others use it.
DEVICE void initializeBarrier(u64 *barrier, int arrivals = 1) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(sharedAddress(barrier)), "r"(arrivals) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// The arrival of a phase: so many bytes will come.
DEVICE void expectBytes(u64 *barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(sharedAddress(barrier)), "r"(bytes)
               : "memory");
}
/// Copies `bytes`, a multiple of 16, between places that are multiples of 16.
DEVICE void copyBulk(void *shared, const void *global, int bytes, u64 *barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                 sharedAddress(shared)),
               "l"(global), "r"(bytes), "r"(sharedAddress(barrier))
               : "memory");
}
/// Waits for the end of the phases of this parity: 0 for the first, 1 for the second.
DEVICE void waitBarrier(u64 *barrier, int parity) {
  asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
               "@!done bra again;\n}" ::"r"(sharedAddress(barrier)),
               "r"(parity)
               : "memory");
}
#endif

/// e^x for x <= 0, to about two units in the last place near zero.
DEVICE float exponential(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}
/// 1 / x, to about one unit in the last place.
DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// e^x as exact as the machine's library has it: float32 mode.
DEVICE float exactExponential(float x) { return expf(x); }
#else
#include "Emulated.h"
#endif

/// Two bfloat16 of a register.
DEVICE float lower(u32 x) { return asFloat(x << 16); }
DEVICE float upper(u32 x) { return asFloat(x & 0xffff0000u); }
DEVICE float widened(bf16 x) { return asFloat(static_cast<u32>(x) << 16); }
DEVICE bf16 rounded(float x) { return static_cast<bf16>(pack(x, 0.0f)); }

// A block [16, 16] of a product comes by one ldmatrix whose lanes each point at 16 bytes. Four registers in a row must
// be the left operand, or two and two the right operands of 8 columns each, or moves would take as long as the
// products: so the tiles are fetched `straight`, in the order in which they lie, or `crossed`, the two in the middle
// exchanged.
//
//   left operand a[16 rows, 16]      stored [row][k]: crossed          stored [k][row]: transposed, straight
//   right operand b[16, 16 columns]  stored [column][k]: straight      stored [k][column]: transposed, crossed
//
// The first register pair of a right operand serves columns 0 to 7, the second 8 to 15.
DEVICE int straight(int lane) { return lane * 8; }
DEVICE int crossed(int lane) { return (lane / 8 % 2 * 2 + lane / 16) * 64 + lane % 8 * 8; }
/// The same where a block is part of rows `stride` elements apart.
DEVICE int straightRows(int lane, int stride) { return (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8; }
DEVICE int crossedRows(int lane, int stride) { return (lane / 8 % 2 * 8 + lane % 8) * stride + lane / 16 * 8; }

/// c0 and c1 [16, 8 columns each] += a b
DEVICE void multiplyAdd(float (&c0)[4], float (&c1)[4], const Quad &a, const Quad &b) {
  multiplyAdd(c0, a, b.x[0], b.x[1]);
  multiplyAdd(c1, a, b.x[2], b.x[3]);
}
/// Sums [16, 16] as the left operand of the next product.
DEVICE Quad packed(const float (&c0)[4], const float (&c1)[4]) {
  return {{pack(c0[0], c0[1]), pack(c0[2], c0[3]), pack(c1[0], c1[1]), pack(c1[2], c1[3])}};
}
/// Writes a left operand as a block stored [row][k].
DEVICE void storeOperand(bf16 *block, const Quad &a, int lane) {
  u32 *p = reinterpret_cast<u32 *>(block) + lane;
  p[0] = a.x[0];
  p[64] = a.x[1];
  p[32] = a.x[2];
  p[96] = a.x[3];
}
