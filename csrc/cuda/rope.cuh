// Rotary embedding over (t, h, w) on NVIDIA GPUs: what the launcher takes. Reference:
// videoar_kernels/reference/rope.py. Compiled for sm_80, sm_90a and sm_100 by `make cuda-check`; not yet run on a GPU.
#pragma once

#include <cstdint>

#include "../cpu/dtype.h"

namespace videoar {
namespace cuda {

constexpr int kRopeMaxDim = 256;

enum class PositionType : int { i64, i32, f32, f64 };

// Strides are in elements; dim is contiguous. out may be x.
struct RopeParams {
  const void* x;
  void* out;
  const void* positions;  // (samples, length, 3), dense
  int64_t batch, heads, length;
  int64_t x_stride[3], out_stride[3];  // batch, head, token
  int64_t position_batch_stride;       // tokens between samples, 0 where they share positions
  double inverse_frequency[kRopeMaxDim / 2];
  int axis_end[3];  // pairs of axis a end here; the last equals dim / 2
  int dim;
  PositionType position_type;
  DType dtype;
  bool interleaved, inverse;
};

// Enqueues on `stream` (a cudaStream_t); null on success, else what went wrong.
const char* launch_rope(const RopeParams& params, void* stream);

}  // namespace cuda
}  // namespace videoar
