// A block of CUDA threads on one CPU thread, so that the kernels' logic is tested where no card is: every thread is a
// fiber; collectives of a warp and barriers switch among fibers. Asynchronous copies happen only when they are waited
// for, and shared memory begins as NaN, so that a missing wait shows. What it cannot show are races between threads
// that no barrier orders: compute-sanitizer's racecheck does that on a card.
#pragma once
#define JETTRAIN_EMULATED
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define DEVICE inline

struct Dimensions {
  unsigned x, y, z;
};
static Dimensions threadIdx, blockIdx, gridDim;
typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

namespace emulation {
struct Copy {
  void *to;
  const void *from;
  int bytes;
  bool valid;

  void run() const {
    if (valid)
      memcpy(to, from, bytes);
    else
      memset(to, 0, bytes);
  }
};
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
};
struct Warp {
  int arrived = 0;
  long generation = 0;
  void *arguments[32];
};
/// A barrier of bulk copies: the bytes that its phase expects, none announced yet while negative.
struct Transfers {
  int expected = -1;
  long phase = 0;
  std::vector<Copy> copies;
};

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static std::map<void *, Transfers> transfers;
static std::vector<char> shared;
static ucontext_t scheduler;
static std::function<void()> body;
static int current, arrivedAtBarrier;
static long barrierGeneration;

[[noreturn]] static void die(const char *what) {
  fprintf(stderr, "kernel emulator: %s\n", what);
  abort();
}

static void yield() {
  swapcontext(&fibers[current].context, &scheduler);
  threadIdx.x = current;
}

static void enter() {
  body();
  fibers[current].done = true;
}

/// The last lane of a warp to come runs `run` on the arguments of all.
template <typename F> static void collective(void *arguments, F run) {
  Warp &warp = warps[current / 32];
  warp.arguments[current % 32] = arguments;
  const long generation = warp.generation;
  if (++warp.arrived == 32) {
    run(warp.arguments);
    warp.arrived = 0;
    warp.generation++;
    return;
  }
  while (warp.generation == generation) yield();
}

static void barrier() {
  const long generation = barrierGeneration;
  if (++arrivedAtBarrier == (int)fibers.size()) {
    arrivedAtBarrier = 0;
    barrierGeneration++;
    return;
  }
  while (barrierGeneration == generation) yield();
}

/// Runs `kernel` in every thread of every block, block after block.
static void launch(Dimensions grid, int threads, int sharedBytes, std::function<void()> kernel) {
  body = kernel;
  gridDim = grid;
  if ((int)fibers.size() != threads) {
    fibers.clear();
    fibers.resize(threads);
    for (auto &fiber : fibers) fiber.stack.resize(1 << 18);
  }
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        shared.assign(sharedBytes + 16, (char)0xff);
        transfers.clear();
        arrivedAtBarrier = 0;
        warps.assign(threads / 32, Warp());
        for (auto &fiber : fibers) {
          fiber.done = false;
          fiber.groups.clear();
          fiber.open.clear();
          getcontext(&fiber.context);
          fiber.context.uc_stack.ss_sp = fiber.stack.data();
          fiber.context.uc_stack.ss_size = fiber.stack.size();
          fiber.context.uc_link = &scheduler;
          makecontext(&fiber.context, (void (*)())enter, 0);
        }
        long turns = 0;
        for (int left = threads; left > 0;) {
          left = 0;
          if (++turns > 50'000'000) die("threads wait for each other");
          for (int i = 0; i < threads; ++i) {
            if (fibers[i].done) continue;
            current = i;
            threadIdx = {(unsigned)i, 0, 0};
            swapcontext(&scheduler, &fibers[i].context);
            left += !fibers[i].done;
          }
        }
      }
}
}  // namespace emulation

static inline char *dynamicShared() { return (char *)(((size_t)emulation::shared.data() + 15) & ~size_t(15)); }
static inline void syncBlock() { emulation::barrier(); }
static inline void syncWarp() { emulation::collective(nullptr, [](void **) {}); }
static inline int uniform(int x) { return x; }

template <typename F> static float shuffle(float x, F from) {
  struct Lane {
    float in, out;
  } lane{x, 0};
  emulation::collective(&lane, [&](void **lanes) {
    for (int i = 0; i < 32; ++i) {
      const int source = from(i);
      ((Lane *)lanes[i])->out = ((Lane *)lanes[source < 0 || source > 31 ? i : source])->in;
    }
  });
  return lane.out;
}
static inline float shuffleXor(float x, int mask) { return shuffle(x, [=](int i) { return i ^ mask; }); }
static inline float shuffleUp(float x, int delta) { return shuffle(x, [=](int i) { return i - delta; }); }
static inline float shuffleDown(float x, int delta) { return shuffle(x, [=](int i) { return i + delta; }); }

static inline float asFloat(u32 x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
static inline u32 asBits(float f) {
  u32 x;
  memcpy(&x, &f, 4);
  return x;
}
static inline u32 roundToBF16(float f) {
  const u32 x = asBits(f);
  return f != f ? 0x7fff : (x + 0x7fff + (x >> 16 & 1)) >> 16;
}
static inline u32 pack(float low, float high) { return roundToBF16(low) | roundToBF16(high) << 16; }
static inline float exponential(float x) { return expf(x); }
static inline float reciprocal(float x) { return 1 / x; }
static inline float exactExponential(float x) { return expf(x); }

static inline void copyAsync(void *to, const void *from, bool valid) {
  if ((size_t)to % 16 || (size_t)from % 16) emulation::die("a copy of 16 bytes is not aligned");
  emulation::fibers[emulation::current].open.push_back({to, from, 16, valid});
}
static inline void commitCopies() {
  auto &fiber = emulation::fibers[emulation::current];
  fiber.groups.push_back(fiber.open);
  fiber.open.clear();
}
template <int pending> static void waitCopies() {
  auto &groups = emulation::fibers[emulation::current].groups;
  while ((int)groups.size() > pending) {
    for (auto &copy : groups[0]) copy.run();
    groups.erase(groups.begin());
  }
}

static inline void initializeBarrier(u64 *barrier) { emulation::transfers[barrier] = {}; }
static inline void expectBytes(u64 *barrier, int bytes) {
  auto &t = emulation::transfers[barrier];
  if (t.expected >= 0) emulation::die("a barrier is told of bytes twice in one phase");
  t.expected = bytes;
}
static inline void copyBulk(void *to, const void *from, int bytes, u64 *barrier) {
  if ((size_t)to % 16 || (size_t)from % 16 || bytes % 16) emulation::die("a bulk copy is not aligned");
  emulation::transfers[barrier].copies.push_back({to, from, bytes, true});
}
static inline void waitBarrier(u64 *barrier, int parity) {
  auto &t = emulation::transfers[barrier];
  for (long turns = 0; (t.phase & 1) == parity; ++turns) {
    int bytes = 0;
    for (auto &copy : t.copies) bytes += copy.bytes;
    if (t.expected >= 0 && bytes == t.expected) {
      for (auto &copy : t.copies) copy.run();
      t.copies.clear();
      t.expected = -1;
      t.phase++;
      return;
    }
    if (turns > 10'000'000) emulation::die("a barrier waits for bytes that do not come");
    emulation::yield();
  }
}
