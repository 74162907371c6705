// Writing blocks of keys and values into ring caches. Reference: videoar_kernels/reference/kv_cache.py.
#pragma once

#include <cstdint>

#include "../host_device.h"
#include "dtype.h"
#include "isa.h"
#include "rope.h"

namespace videoar {

// One layer: a block (batch, heads, length, dim) and the cache (batch, heads, capacity, dim) it goes to.
struct KvLayer {
  const void* k;
  const void* v;
  void* k_cache;
  void* v_cache;
  const void* weight;  // (dim,), accumulator type; null: no norm
  RopeStrides k_stride, v_stride, k_cache_stride, v_cache_stride;
};

struct KvAppendParams {
  const KvLayer* layers;
  int64_t layer_count;
  RopeSizes size;
  RopeTableView table;  // index is null where keys are not rotated
  int64_t capacity;
  int64_t start, sink;  // the first token's number since the reset, and how many slots are pinned
  double eps;
  bool interleaved;
  DType dtype;
};

// A tensor (batch, heads, capacity, row) whose tokens move; sizes and strides in bytes but for batch and heads.
struct KvMoved {
  void* data;
  int64_t batch, heads, row;
  int64_t batch_stride, head_stride, token_stride;
};

// Tokens of consecutive slots from `source` on go to those from `target` on, as if all were read before any is written.
struct KvMove {
  int64_t source, target, length;
};

// Moves follow one after the other, in every tensor.
struct KvMoveParams {
  const KvMoved* tensors;
  const KvMove* moves;
  int64_t tensor_count, move_count;
};

struct KvCacheKernels {
  void (*append)(const KvAppendParams&);
  void (*move)(const KvMoveParams&);
};

VIDEOAR_DECLARE_KERNELS(KvCacheKernels, kv_cache_kernels)

// Where token i since the reset lies: in the sink, or around the ring after it.
VIDEOAR_HOST_DEVICE static inline int64_t kv_slot(int64_t i, int64_t sink, int64_t capacity) {
  return i < sink ? i : sink + (i - sink) % (capacity - sink);
}

}  // namespace videoar
