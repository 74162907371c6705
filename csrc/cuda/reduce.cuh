// Sums over the threads of a block, in an order that depends on the block's size alone.
#pragma once

#include "launch.cuh"

namespace videoar {
namespace cuda {

template <class A>
__device__ inline A warp_sum(A value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Replaces every thread's values by their sums over the block. `scratch` holds kCount * kWarp numbers of shared memory;
// the block's threads are a multiple of 32.
template <int kCount, class A>
__device__ inline void block_sum(A (&values)[kCount], A* scratch) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp, warps = int(blockDim.x) / kWarp;
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = warp_sum(values[i]);
  if (warps == 1) return;
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) scratch[i * kWarp + warp] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = warp_sum(lane < warps ? scratch[i * kWarp + lane] : A(0));
  __syncthreads();
}

}  // namespace cuda
}  // namespace videoar
