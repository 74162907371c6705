// Modulated norms and gated activations. Reference: videoar_kernels/reference/norm.py.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace videoar {

// out = silu(gate) * up over `rows` rows of `width` contiguous elements.
struct SwigluParams {
  const void* gate;
  const void* up;
  void* out;
  int64_t rows, width;
  int64_t gate_stride, up_stride;  // elements between rows; the output is dense
  DType dtype;
};

// grad_gate = grad_out * up * silu'(gate), grad_up = grad_out * silu(gate).
struct SwigluBackwardParams {
  const void* grad_out;
  const void* gate;
  const void* up;
  void* grad_gate;
  void* grad_up;
  int64_t rows, width;
  int64_t grad_out_stride, gate_stride, up_stride;
  DType dtype;
};

struct NormKernels {
  void (*swiglu)(const SwigluParams&);
  void (*swiglu_backward)(const SwigluBackwardParams&);
};

VIDEOAR_DECLARE_KERNELS(NormKernels, norm_kernels)

}  // namespace videoar
