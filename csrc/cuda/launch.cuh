// How a launcher starts kernels and reports failure. With VIDEOAR_CUDA_ON_CPU, which tests build, the same kernels run
// on the CPU, thread by thread (tests/csrc/cuda_on_cpu.h).
#pragma once

#include <cstdint>

#include "../cpu/dtype.h"

#if defined(VIDEOAR_CUDA_ON_CPU)
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define VIDEOAR_LAUNCH(grid, block, stream, ...) (__VA_ARGS__)<<<grid, block, 0, stream>>>
#endif

namespace videoar {
namespace cuda {

constexpr int kWarp = 32;

// What went wrong with the last launch, or null.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Blocks of a grid-stride kernel: past this many, a block takes several pieces of work.
inline unsigned grid_of(int64_t pieces) {
  constexpr int64_t kMost = 1 << 20;
  return unsigned(pieces < kMost ? pieces : kMost);
}

}  // namespace cuda
}  // namespace videoar
