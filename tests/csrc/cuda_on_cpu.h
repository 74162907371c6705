// Runs CUDA kernels on the CPU, for tests on machines without a GPU: a block's threads are fibers that take turns at
// __syncthreads() and at warp shuffles; blocks run one after the other, every other one with its threads in reverse, so
// that most missing barriers give wrong results in one of the two. Needs no CUDA headers; x86-64 only. It finds wrong
// indices, wrong arithmetic, missing writes and barriers that not all threads reach, and tells nothing about speed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#error "cuda_on_cpu.h: expected x86-64"
#endif

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_cpu {

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 64 << 10;

// Threads arrive; the last of `expected` lets all of them go on.
struct Barrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;

  void release_if_full() {
    if (expected == 0 || arrived < expected) return;
    arrived = 0;
    ++generation;
  }
};

struct Fiber {
  void* stack_pointer;
  std::unique_ptr<char[]> stack;
  uint3 thread;
  Barrier* waiting = nullptr;
  uint64_t generation = 0;  // the barrier's, when the fiber began to wait
  bool done = false;
};

// Keeps the registers that a call must keep on this stack, and goes on where `to` stopped.
__attribute__((naked, noinline)) inline void switch_stacks([[maybe_unused]] void** from, [[maybe_unused]] void* to) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

struct Block {
  void* scheduler = nullptr;
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  Barrier all;
  std::vector<Barrier> warps;
  std::vector<uint64_t> exchange;  // what a thread offers in a shuffle
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  uint3 index;
  dim3 size, grid;
  bool reversed = false;

  void wait(Barrier& barrier) {
    Fiber& fiber = *current;
    ++barrier.arrived;
    fiber.waiting = &barrier;
    fiber.generation = barrier.generation;
    barrier.release_if_full();
    if (fiber.generation != barrier.generation) return;
    switch_stacks(&fiber.stack_pointer, scheduler);
  }

  static void enter();

  // A thread that returns early no longer takes part in barriers.
  void leave() {
    current->done = true;
    for (Barrier* barrier : {&all, &warps[current->thread.x / kWarpSize]}) {
      --barrier->expected;
      barrier->release_if_full();
    }
    void* unused;
    switch_stacks(&unused, scheduler);
  }

  void prepare(unsigned threads) {
    if (fibers.size() < threads) fibers.resize(threads);
    all = {int(threads), 0, 0};
    warps.assign((threads + kWarpSize - 1) / kWarpSize, Barrier{});
    exchange.assign(threads, 0);
    for (unsigned i = 0; i < threads; ++i) {
      ++warps[i / kWarpSize].expected;
      Fiber& fiber = fibers[i];
      if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
      fiber.thread = {i, 0, 0};
      fiber.waiting = nullptr;
      fiber.done = false;
      // As in a call of enter(): six registers, the address to go on at, and 8 past a multiple of 16 from then on.
      const uintptr_t top = uintptr_t(fiber.stack.get() + kStackBytes) / 16 * 16 - 24;
      void** frame = reinterpret_cast<void**>(top) - 7;
      std::memset(frame, 0, 9 * sizeof(void*));
      frame[6] = reinterpret_cast<void*>(&Block::enter);
      fiber.stack_pointer = frame;
    }
  }

  void run(unsigned threads) {
    prepare(threads);
    reversed = !reversed;
    for (bool alive = true; alive;) {
      alive = false;
      bool moved = false;
      for (unsigned turn = 0; turn < threads; ++turn) {
        Fiber& fiber = fibers[reversed ? threads - 1 - turn : turn];
        if (fiber.done) continue;
        alive = true;
        if (fiber.waiting && fiber.waiting->generation == fiber.generation) continue;
        fiber.waiting = nullptr;
        current = &fiber;
        moved = true;
        switch_stacks(&scheduler, fiber.stack_pointer);
      }
      if (alive && !moved) {
        std::fprintf(stderr, "cuda_on_cpu: threads wait for each other at a barrier that not all of them reach\n");
        std::abort();
      }
    }
  }
};

inline Block machine;

inline void Block::enter() {
  machine.body(machine.arguments);
  machine.leave();
}

template <class Kernel>
struct Launcher {
  Kernel kernel;
  dim3 grid, block;

  template <class... Args>
  void operator()(Args... args) const {
    const auto call = [&] { kernel(args...); };
    machine.body = [](const void* f) { (*static_cast<const decltype(call)*>(f))(); };
    machine.arguments = &call;
    machine.size = block;
    machine.grid = grid;
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          machine.index = {x, y, z};
          machine.run(block.x);
        }
  }
};

template <class Kernel>
Launcher<Kernel> launcher(Kernel kernel, dim3 grid, dim3 block) {
  return {kernel, grid, block};
}

template <class T>
T shuffle_xor(T value, int offset) {
  static_assert(sizeof(T) <= 8);
  const unsigned i = machine.current->thread.x;
  Barrier& warp = machine.warps[i / kWarpSize];
  std::memcpy(&machine.exchange[i], &value, sizeof value);
  machine.wait(warp);
  T other;
  std::memcpy(&other, &machine.exchange[i ^ unsigned(offset)], sizeof other);
  machine.wait(warp);
  return other;
}

}  // namespace cuda_on_cpu

struct __half {
  _Float16 value;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half_rn(float x) { return {_Float16(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (x != x) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <class T>
T __ldg(const T* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "failed"; }

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::cuda_on_cpu::machine.current->thread)
#define blockIdx (::cuda_on_cpu::machine.index)
#define blockDim (::cuda_on_cpu::machine.size)
#define gridDim (::cuda_on_cpu::machine.grid)
#define __syncthreads() (::cuda_on_cpu::machine.wait(::cuda_on_cpu::machine.all))
#define __shfl_xor_sync(mask, value, offset) (::cuda_on_cpu::shuffle_xor(value, offset))
#define VIDEOAR_LAUNCH(grid, block, stream, ...) ((void)(stream), ::cuda_on_cpu::launcher((__VA_ARGS__), grid, block))
