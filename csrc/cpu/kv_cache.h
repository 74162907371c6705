// Writing blocks of keys and values into ring caches. Reference: videoar_kernels/reference/kv_cache.py.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace videoar {

// One layer: a block (batch, heads, length, head_dim) and the cache (batch, heads, capacity, head_dim) it goes to.
// Strides in elements, of batch, head and token.
struct KvLayer {
  const void* k;
  const void* v;
  void* k_cache;
  void* v_cache;
  const void* k_weight;  // (head_dim,), float (double for double blocks); null: no norm
  int64_t k_strides[3], v_strides[3], k_cache_strides[3], v_cache_strides[3];
};

struct KvAppendParams {
  const KvLayer* layers;
  int64_t layer_count;
  const int64_t* positions;       // (batch or 1, length, 3); null: no rotation
  int64_t position_batch_stride;  // 0 where all samples share them
  const double* frequencies;      // (head_dim / 2), of each pair
  const int32_t* axes;            // (head_dim / 2), the axis each pair follows
  int64_t batch, heads, length, head_dim, capacity;
  int64_t start, sink;  // token i goes to slot i inside the sink, around the ring after it
  double eps;
  bool interleaved;
  DType dtype;
};

struct KvCacheKernels {
  void (*append)(const KvAppendParams&);
};

VIDEOAR_DECLARE_KERNELS(KvCacheKernels, kv_cache_kernels)

// Where token i since the reset lies.
inline int64_t kv_slot(int64_t i, int64_t sink, int64_t capacity) {
  return i < sink ? i : sink + (i - sink) % (capacity - sink);
}

}  // namespace videoar
