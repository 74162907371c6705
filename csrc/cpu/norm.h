// Modulated norms, gated residual and gated activations. Reference: videoar_kernels/reference/norm.py.
#pragma once

#include <cstdint>

#include "../host_device.h"
#include "dtype.h"
#include "isa.h"

namespace videoar {

// One row of `width` contiguous elements for every `tokens` tokens of a sample; absent where data is null. Strides
// are in elements and may be 0, so a broadcast modulation is never expanded.
struct Modulation {
  const void* data;
  int64_t batch_stride, frame_stride, tokens;
};

// (batch, length, width), width contiguous.
struct TokenRows {
  const void* data;
  int64_t batch_stride, token_stride;
};

struct OutputRows {
  void* data;
  int64_t batch_stride, token_stride;
};

struct NormSizes {
  int64_t batch, length, width;
};

// out = norm(x) * weight * (1 + scale) + shift; weight (width) in the accumulator type or null. out may be x.
struct AdalnParams {
  TokenRows x;
  OutputRows out;
  const void* weight;
  Modulation scale, shift;
  NormSizes size;
  double eps;
  bool layer;            // subtract the mean first
  bool wide_modulation;  // scale and shift are in the accumulator type, else in `dtype`
  DType dtype;
};

// Gradients of the above, dense; those of absent arguments are null. partial: norm_tasks() times 3 rows of
// padded_width(), scratch.
struct AdalnBackwardParams {
  AdalnParams forward;  // without `out`
  TokenRows grad_out;
  void* grad_x;
  void* grad_weight;
  void* grad_scale;
  void* grad_shift;
  void* partial;
};

// out = x + gate * y; out may be x or y.
struct GatedResidualParams {
  TokenRows x, y;
  OutputRows out;
  Modulation gate;
  NormSizes size;
  bool wide_modulation;
  DType dtype;
};

// grad_y = grad_out * gate, grad_gate = sum grad_out * y. partial: norm_tasks() rows of width, scratch.
struct GatedResidualBackwardParams {
  TokenRows grad_out, y;
  void* grad_y;
  void* grad_gate;
  void* partial;
  Modulation gate;
  NormSizes size;
  bool wide_modulation;
  DType dtype;
};

// out = silu(gate) * up over `rows` rows of `width` contiguous elements; out may be gate or up.
struct SwigluParams {
  const void* gate;
  const void* up;
  void* out;
  int64_t rows, width;
  int64_t gate_stride, up_stride, out_stride;  // elements between rows
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

// A backward pass sums over the tokens that share a modulation row. It runs over tasks, ranges of rows that either
// lie inside one such group or hold whole groups, and whose bounds do not depend on the number of threads: so the
// sums come out the same for any number. A group shorter than kGroupInTask rows never crosses a task.
constexpr int64_t kGroupInTask = 64;

// Tasks of the CPU's kernels, about.
constexpr int64_t kNormTasks = 128;

// Rows of sums are padded, so that whole vectors fit.
static inline int64_t padded_width(int64_t width) { return (width + 31) / 32 * 32; }

struct NormTasks {
  int64_t span, run, runs_per_span, count;  // rows of a span and of a run; runs are cut from spans
};

// One of tokens_a and tokens_b divides the other, and both divide the length. (Static, so that no instruction set's
// copy can serve another.)
static inline NormTasks norm_tasks(const NormSizes& size, int64_t tokens_a, int64_t tokens_b,
                                   int64_t most_tasks = kNormTasks) {
  const int64_t rows = size.batch * size.length, tokens[2] = {tokens_a, tokens_b};
  if (rows == 0) return {0, 0, 0, 0};
  NormTasks tasks{size.length, 0, 0, 0};
  int64_t unit = 1;
  for (int i = 0; i < 2; ++i) {
    if (tokens[i] < kGroupInTask) {
      unit = tokens[i] > unit ? tokens[i] : unit;
    } else {
      tasks.span = tokens[i] < tasks.span ? tokens[i] : tasks.span;
    }
  }
  const int64_t target = (rows + most_tasks - 1) / most_tasks;
  tasks.run = (target < kGroupInTask ? kGroupInTask : target) / unit * unit;
  tasks.runs_per_span = (tasks.span + tasks.run - 1) / tasks.run;
  tasks.count = rows / tasks.span * tasks.runs_per_span;
  return tasks;
}

VIDEOAR_HOST_DEVICE static inline int64_t task_begin(const NormTasks& tasks, int64_t task) {
  return task / tasks.runs_per_span * tasks.span + task % tasks.runs_per_span * tasks.run;
}

VIDEOAR_HOST_DEVICE static inline int64_t task_end(const NormTasks& tasks, int64_t task) {
  const int64_t span_end = (task / tasks.runs_per_span + 1) * tasks.span, run_end = task_begin(tasks, task) + tasks.run;
  return run_end < span_end ? run_end : span_end;
}

struct NormKernels {
  void (*adaln_norm)(const AdalnParams&);
  void (*adaln_norm_backward)(const AdalnBackwardParams&);
  void (*gated_residual)(const GatedResidualParams&);
  void (*gated_residual_backward)(const GatedResidualBackwardParams&);
  void (*swiglu)(const SwigluParams&);
  void (*swiglu_backward)(const SwigluBackwardParams&);
};

VIDEOAR_DECLARE_KERNELS(NormKernels, norm_kernels)

}  // namespace videoar
