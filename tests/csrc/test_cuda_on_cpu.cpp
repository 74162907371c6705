// The machine of cuda_on_cpu.h: barriers, shuffles, threads that leave early, and what a missing barrier does.
#include "cuda_on_cpu.h"

static int failures = 0;

static void expect(bool ok, const char* what) {
  if (ok) return;
  std::printf("failed: %s\n", what);
  ++failures;
}

static constexpr int kThreads = 100;

// out[i] = in[kThreads - 1 - i], through shared memory.
template <bool kBarrier>
__global__ void reverse(const int* in, int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = in[blockIdx.x * kThreads + threadIdx.x];
  if (kBarrier) __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

template <bool kBarrier>
static bool reverses() {
  int in[2 * kThreads], out[2 * kThreads];
  for (int i = 0; i < 2 * kThreads; ++i) in[i] = i + 1;
  VIDEOAR_LAUNCH(2, kThreads, nullptr, reverse<kBarrier>)(in, out);
  bool right = true;
  for (int i = 0; i < 2 * kThreads; ++i)
    right = right && out[i] == in[i / kThreads * kThreads + kThreads - 1 - i % kThreads];
  return right;
}

__global__ void sum_warp(double* out) {
  double value = threadIdx.x;
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  out[threadIdx.x] = value;
}

__global__ void leave_early(int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if (threadIdx.x % 3 == 0) return;
  for (unsigned turn = 0; turn < blockDim.x; ++turn) {
    if (turn == threadIdx.x) ++count;
    __syncthreads();
  }
  out[threadIdx.x] = count;
}

__global__ void cover(dim3* seen) {
  seen[(blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x] = {blockIdx.x, blockIdx.y, threadIdx.x};
}

int main() {
  expect(reverses<true>(), "threads see what others wrote before a barrier");
  expect(!reverses<false>(), "a missing barrier shows");
  double sums[64];
  VIDEOAR_LAUNCH(1, 64, nullptr, sum_warp)(sums);
  for (int i = 0; i < 64; ++i) expect(sums[i] == (i < 32 ? 496 : 1520), "shuffles stay in a warp");
  int counts[50];
  VIDEOAR_LAUNCH(1, 50, nullptr, leave_early)(counts);
  for (int i = 0; i < 50; ++i) expect(i % 3 == 0 || counts[i] == 33, "threads that left are not waited for");
  dim3 seen[3 * 2 * 5];
  VIDEOAR_LAUNCH(dim3(3, 2), 5, nullptr, cover)(seen);
  for (unsigned i = 0; i < 30; ++i) {
    expect(seen[i].x == i / 5 % 3 && seen[i].y == i / 15 && seen[i].z == i % 5, "every thread of every block runs");
  }
  expect(__half2float(__float2half_rn(1 + 0x1p-11f)) == 1 && __half2float(__float2half_rn(1e6f)) > 1e9f, "float16");
  expect(__bfloat162float(__float2bfloat16_rn(1 + 0x1p-8f)) == 1, "bfloat16 rounds ties to even");
  expect(__bfloat162float(__float2bfloat16_rn(1 + 0x3p-8f)) == 1 + 0x1p-6f, "bfloat16 rounds ties to even");
  return failures != 0;
}
