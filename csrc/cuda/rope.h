// Rotary embedding over (t, h, w) on NVIDIA GPUs, alone or fused with the RMS norm of queries and keys: what the
// launchers take. Reference: videoar_kernels/reference/rope.py. Not yet run on a GPU.
#pragma once

#include "../cpu/rope.h"

namespace videoar {
namespace cuda {

constexpr int kRopeMaxDim = 256;
// Tokens whose cosines and sines a block keeps in shared memory: all heads read them there.
constexpr int kTokens = 4;

enum class PositionType : int { i64, i32, f32, f64 };

// Where the angles of a launch come from; null positions: no rotation.
struct Rotation {
  const void* positions;  // (samples, length, 3), dense
  int64_t batch_stride;   // tokens between samples, 0 where they share positions
  double inverse_frequency[kRopeMaxDim / 2];
  int axis_end[3];  // pairs of axis a end here; the last equals dim / 2
  PositionType type;
  bool interleaved, inverse;
};

// out = R(position) x, of x * rsqrt(mean(x^2) + eps) * weight where there is a weight; out may be x. weight: (dim), or
// (heads, dim) where full_width, in the compute type.
struct HeadsParams {
  const void* x;
  void* out;
  const void* weight;
  RopeSizes size;
  RopeStrides x_stride, out_stride;
  Rotation rotation;
  double eps;
  bool full_width;
  DType dtype;
};

// `rotation` is the inverse one; heads_chunks() partial rows.
struct HeadsBackwardParams : HeadsGradients {
  Rotation rotation;
};

// Partial sums of a weight gradient, a block each.
inline int64_t heads_chunks(const RopeSizes& size) {
  const int64_t groups = (size.batch * size.length + kTokens - 1) / kTokens;
  return groups < 1024 ? groups : 1024;
}

// A full-width norm sums over at most so many heads.
constexpr int64_t kFullWidthHeads = 256;

// Enqueue on `stream` (a cudaStream_t); null on success, else what went wrong.
const char* launch_heads(const HeadsParams& params, void* stream);
const char* launch_heads_backward(const HeadsBackwardParams& params, void* stream);

}  // namespace cuda
}  // namespace videoar
