// Linear layers with weights packed once. Reference: videoar_kernels/reference/linear.py.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace videoar {

// Packed weights are panels of kPanelColumns outputs, inside them pairs of inputs; both are filled up with zeros. The
// same on every instruction set. float32: (panels, pairs, 2, columns). bfloat16: (panels, pairs, columns, 2), the two
// inputs side by side, as dot products want them, and as a shift or a mask widens them.
constexpr int64_t kPanelColumns = 16;

// weight (out_features, in_features), any strides; `dtype` bf16 or f32.
struct PackLinearParams {
  const void* weight;
  void* packed;
  int64_t out_features, in_features, row_stride, column_stride;
  DType dtype;
};

// out = x @ weight^T + bias. x and out: `rows` rows of contiguous elements; bias float32 (out_features) or null.
struct PackedLinearParams {
  const void* x;
  const void* packed;
  const float* bias;
  void* out;
  int64_t rows, in_features, out_features;
  int64_t x_stride, out_stride;
  DType dtype;         // of x and out
  DType weight_dtype;  // bf16 or f32
};

struct LinearKernels {
  void (*pack_linear_weight)(const PackLinearParams&);
  void (*packed_linear)(const PackedLinearParams&);
};

VIDEOAR_DECLARE_KERNELS(LinearKernels, linear_kernels)

}  // namespace videoar
