// Sums over the threads of a block, in an order that depends on the block's size alone.
#pragma once

#include "element.cuh"

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

// sums[group][column] = the sum of a group's `count` partial rows, `stride` numbers apart. A block takes 32 columns of
// a group; its warps take turns at the rows, and are added up in order. (Static: each file that starts it has its own.)
template <class A, class S>
static __global__ void __launch_bounds__(kWarp* kWarp)
    add_partials_kernel(const A* partial, int64_t stride, int64_t groups, int64_t count, int64_t width, S* sums) {
  __shared__ A of_warp[kWarp][kWarp];
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp, warps = int(blockDim.x) / kWarp;
  const int64_t strips = (width + kWarp - 1) / kWarp;
  for (int64_t strip = blockIdx.x; strip < groups * strips; strip += gridDim.x) {
    const int64_t group = strip / strips, column = strip % strips * kWarp + lane;
    A sum = A(0);
    if (column < width) {
      const A* first = partial + group * count * stride + column;
#pragma unroll 8
      for (int64_t row = warp; row < count; row += warps) sum += first[row * stride];
    }
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < width) {
      for (int other = 1; other < warps; ++other) sum += of_warp[other][lane];
      sums[group * width + column] = narrow<S, A>(sum);
    }
    __syncthreads();
  }
}

template <class A, class S>
static void add_partials(const A* partial, int64_t stride, int64_t groups, int64_t count, int64_t width, S* sums,
                         cudaStream_t stream) {
  if (groups * width == 0) return;
  int warps = 1;
  while (warps < kWarp && warps < count) warps *= 2;
  const unsigned grid = grid_of(groups * ((width + kWarp - 1) / kWarp));
  VIDEOAR_LAUNCH(grid, warps * kWarp, stream, add_partials_kernel<A, S>)
  (partial, stride, groups, count, width, sums);
}

}  // namespace cuda
}  // namespace videoar
