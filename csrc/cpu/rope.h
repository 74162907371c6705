// Rotary embedding over (t, h, w), alone or fused with the RMS norm of queries and keys.
// Reference: videoar_kernels/reference/rope.py.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace videoar {

// Row r of an axis holds `width` cosines, then `width` sines, of its r-th distinct coordinate, in the accumulator
// type; index (samples, length, 3) names the row of each token. See rope_table.h, which builds it.
struct RopeTableView {
  const void* rows[3];
  int64_t width[3];
  const int32_t* index;
  int64_t batch_stride;  // tokens between samples, 0 where they share positions
};

// Sizes of (batch, heads, length, dim) and strides in elements of one such tensor; dim is contiguous.
struct RopeSizes {
  int64_t batch, heads, length, dim;
};
struct RopeStrides {
  int64_t batch, head, token;
};

// out = R(position) x; out may be x.
struct RopeParams {
  const void* x;
  void* out;
  RopeSizes size;
  RopeStrides x_stride, out_stride;
  RopeTableView table;
  bool interleaved;
  DType dtype;
};

// out = R(position) (x * rsqrt(mean(x^2) + eps) * weight); the mean runs over a head, or over all heads of a token
// where full_width. weight: (dim) or (heads, dim), accumulator type. out may be x.
struct NormRopeParams {
  RopeParams rope;
  const void* weight;
  double eps;
  bool full_width;
};

// Gradients of queries or keys and of their norm's weight, on any device. partial: rows of the weight's size, scratch.
struct HeadsGradients {
  const void* grad_out;
  const void* x;
  const void* weight;
  void* grad_x;
  void* grad_weight;
  void* partial;
  RopeSizes size;
  RopeStrides grad_out_stride, x_stride, grad_x_stride;
  double eps;
  bool full_width;
  DType dtype;
};

// `table` holds the inverse rotation; rope_chunks() partial rows.
struct NormRopeBackwardParams : HeadsGradients {
  RopeTableView table;
  bool interleaved;
};

// Tokens whose cosines and sines are laid out together: they stay in the L1 cache for all heads.
constexpr int64_t kRopeTokens = 64;

// Whether the forward kernels want a table with a value for every element, not for every pair.
static inline bool rope_spreads(DType dtype, bool interleaved) { return interleaved && dtype != DType::bf16; }

static inline int64_t rope_blocks(int64_t batch, int64_t length) {
  return batch * ((length + kRopeTokens - 1) / kRopeTokens);
}

// Partial sums of a weight gradient: their number does not depend on the threads, so neither does the result.
static inline int64_t rope_chunks(int64_t batch, int64_t length) {
  const int64_t blocks = rope_blocks(batch, length);
  return blocks < 64 ? blocks : 64;
}

struct RopeKernels {
  void (*rope)(const RopeParams&);
  void (*norm_rope)(const NormRopeParams&);
  void (*norm_rope_backward)(const NormRopeBackwardParams&);
};

VIDEOAR_DECLARE_KERNELS(RopeKernels, rope_kernels)

}  // namespace videoar
