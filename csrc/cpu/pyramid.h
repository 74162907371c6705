// Multi-scale residual quantization of every frame. Reference: videoar_kernels/reference/pyramid.py.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace videoar {

// `scales` holds `count` pairs (h, w), coarse to fine; the last is the full size of a plane. A frame has
// `tokens` = sum of h * w tokens.
struct PyramidShape {
  const int64_t* scales;
  int64_t count, tokens;
  int64_t batch, frames, height, width, dim;
  DType dtype;
};

// A (batch, frames, height, width, dim) tensor; strides in elements, dim contiguous.
struct Planes {
  const void* data;
  int64_t batch, frame, row, column;
};

// flip_p: null for flip_all everywhere, or (batch, frames, count) probabilities. `total` may be z. labels (batch,
// frames, tokens, bytes), inputs (batch, frames, tokens, dim) and total (batch, frames, height, width, dim) are dense.
struct EncodeParams {
  PyramidShape shape;
  Planes z;
  const double* flip_p;
  double flip_all;
  uint64_t seed, offset;
  bool inherit;
  uint8_t* labels;
  void* inputs;
  void* total;
};

// keep: null for keep_all everywhere, or (batch, frames) numbers of scales. bits and total are dense.
struct DecodeParams {
  PyramidShape shape;
  const uint8_t* bits;
  const int64_t* keep;
  int64_t keep_all;
  void* total;
};

// x is down-sampled to every scale; out (batch, frames, tokens, dim) is dense.
struct ResampleParams {
  PyramidShape shape;
  Planes x;
  void* out;
};

// grad (batch, frames, tokens, dim) and grad_x (batch, frames, height, width, dim) are dense.
struct ResampleBackwardParams {
  PyramidShape shape;
  const void* grad;
  void* grad_x;
};

// Straight-through: grad_z = sum over scales of down^T(up^T(grad_total)).
struct EncodeBackwardParams {
  PyramidShape shape;
  Planes grad_total;
  void* grad_z;
};

// total_out = total + up(code(bits)); input (batch, next_h * next_w, dim) = down(total_out) unless it is null;
// total_out may be total. shape.frames is 1 and shape.scales holds the step's scale and, if wanted, the next.
struct StepParams {
  PyramidShape shape;
  Planes total;
  const uint8_t* bits;
  void* total_out;
  void* input;
};

struct PyramidKernels {
  void (*encode)(const EncodeParams&);
  void (*encode_backward)(const EncodeBackwardParams&);
  void (*decode)(const DecodeParams&);
  void (*resample)(const ResampleParams&);
  void (*resample_backward)(const ResampleBackwardParams&);
  void (*step)(const StepParams&);
};

VIDEOAR_DECLARE_KERNELS(PyramidKernels, pyramid_kernels)

}  // namespace videoar
