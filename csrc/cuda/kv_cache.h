// Writing blocks of keys and values into the ring caches of many layers at once, on NVIDIA GPUs. Not yet run on a GPU.
#pragma once

#include "../cpu/kv_cache.h"
#include "rope.h"

namespace videoar {
namespace cuda {

// Layers of one launch: their pointers travel as kernel parameters.
constexpr int kLaunchLayers = 48;

// As KvAppendParams, with pointers to device memory; `layers` is read on the host. Keys are rotated where
// rotation.positions is not null.
struct KvAppendLaunch {
  const KvLayer* layers;
  int64_t layer_count;
  RopeSizes size;
  Rotation rotation;
  int64_t capacity, start, sink;
  double eps;
  DType dtype;
};

// Tensors and moves of one launch.
constexpr int kLaunchMoved = 128, kLaunchMoves = 64;

// Enqueue on `stream` (a cudaStream_t); null on success, else what went wrong.
const char* launch_kv_append(const KvAppendLaunch& params, void* stream);
const char* launch_kv_move(const KvMoveParams& params, void* stream);

}  // namespace cuda
}  // namespace videoar
