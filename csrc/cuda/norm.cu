#include "cells.cuh"
#include "norm.h"
#include "reduce.cuh"

namespace videoar {
namespace cuda {
namespace {

constexpr int kMostThreads = 512;
constexpr int kNormThreads = 384;  // two such blocks leave 80 registers a thread

template <class T>
__device__ inline const T* row_of(const TokenRows& rows, int64_t row, int64_t length) {
  return (const T*)rows.data + row / length * rows.batch_stride + row % length * rows.token_stride;
}

// The modulation row of a token, null where there is no modulation.
template <class M>
__device__ inline const M* row_of(const Modulation& m, int64_t row, int64_t length) {
  if (m.data == nullptr) return nullptr;
  return (const M*)m.data + row / length * m.batch_stride + row % length / m.tokens * m.frame_stride;
}

template <class T>
__device__ inline T* row_of(const OutputRows& rows, int64_t row, int64_t length) {
  return (T*)rows.data + row / length * rows.batch_stride + row % length * rows.token_stride;
}

__device__ inline float reciprocal_root(float x) { return rsqrtf(x); }
__device__ inline double reciprocal_root(double x) { return rsqrt(x); }

template <class T, class M, int kPack, int kPacks>
__global__ void __launch_bounds__(kNormThreads, 2) adaln_norm_kernel(const __grid_constant__ AdalnParams p) {
  using A = Accumulator<T>;
  __shared__ A scratch[kWarp];
  const int64_t width = p.size.width, length = p.size.length, rows = p.size.batch * length;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const RowCells<T, A, kPack, kPacks> x(row_of<T>(p.x, row, length), width);
    A sum[1] = {A(0)}, squares[1] = {A(0)};
    A mean = A(0);
    if (p.layer) {
      const A guess = widen<A>(row_of<T>(p.x, row, length)[0]);  // so that constant rows have no variance at all
      for_cells<kPack, kPacks>(width, [&](int i, int j, int64_t c) { sum[0] += x.at(i, j, c) - guess; });
      block_sum(sum, scratch);
      mean = guess + sum[0] / A(width);
    }
    for_cells<kPack, kPacks>(width, [&](int i, int j, int64_t c) {
      const A centred = x.at(i, j, c) - mean;
      squares[0] += centred * centred;
    });
    block_sum(squares, scratch);
    const A rstd = reciprocal_root(squares[0] / A(width) + A(p.eps));
    const M *scales = row_of<M>(p.scale, row, length), *shifts = row_of<M>(p.shift, row, length);
    write_packs<T, A, kPack, kPacks>(row_of<T>(p.out, row, length), width, [&](int i, int64_t first, A(&value)[kPack]) {
      A weight[kPack], scale[kPack], shift[kPack];
      read_pack(weight, (const A*)p.weight, first, A(1));
      read_pack(scale, scales, first);
      read_pack(shift, shifts, first);
#pragma unroll
      for (int j = 0; j < kPack; ++j)
        value[j] = (x.at(i, j, first + j) - mean) * rstd * weight[j] * (1 + scale[j]) + shift[j];
    });
  }
}

// Sums over the rows that share a modulation row: short groups end inside a task and go straight to `grads`, long ones
// leave one partial sum a task (and so does the weight, with grads null).
template <class A, class M, int kPack, int kPacks>
struct GroupSums {
  CellSums<A, kPack, kPacks> sums;
  A* partial;
  M* grads;
  int64_t tokens, width;

  __device__ GroupSums(A* partial, M* grads, int64_t tokens, int64_t width)
      : sums(partial, width),
        partial(partial),
        grads(tokens < kGroupInTask ? grads : nullptr),
        tokens(tokens),
        width(width) {}
  __device__ bool wanted() const { return partial != nullptr; }
  __device__ void row_done(int64_t row) {
    if (!wanted() || grads == nullptr || (row + 1) % tokens != 0) return;
    M* out = grads + row / tokens * width;
    for_cells<kPack, kPacks>(width, [&](int i, int j, int64_t c) { out[c] = narrow<M, A>(sums.at(i, j, c)); });
    sums.clear(width);
  }
  __device__ void task_done() {
    if (!wanted() || grads != nullptr || kPacks == 0) return;
    for_cells<kPack, kPacks>(width, [&](int i, int j, int64_t c) { partial[c] = sums.at(i, j, c); });
  }
};

template <class T, class M, int kPack, int kPacks>
__global__ void __launch_bounds__(kMostThreads)
    adaln_norm_backward_kernel(const __grid_constant__ AdalnBackwardParams p, const __grid_constant__ NormTasks tasks) {
  using A = Accumulator<T>;
  __shared__ A scratch[3 * kWarp];
  const AdalnParams& f = p.forward;
  const int64_t width = f.size.width, length = f.size.length;
  for (int64_t task = blockIdx.x; task < tasks.count; task += gridDim.x) {
    A* partial = (A*)p.partial + task * 3 * width;
    GroupSums<A, A, kPack, kPacks> weight_sum(f.weight ? partial : nullptr, nullptr, kGroupInTask, width);
    GroupSums<A, M, kPack, kPacks> scale_sum(f.scale.data ? partial + width : nullptr, (M*)p.grad_scale, f.scale.tokens,
                                             width);
    GroupSums<A, M, kPack, kPacks> shift_sum(f.shift.data ? partial + 2 * width : nullptr, (M*)p.grad_shift,
                                             f.shift.tokens, width);
    const int64_t end = task_end(tasks, task);
    for (int64_t row = task_begin(tasks, task); row < end; ++row) {
      const RowCells<T, A, kPack, kPacks> x(row_of<T>(f.x, row, length), width);
      const RowCells<T, A, kPack, kPacks> grad(row_of<T>(p.grad_out, row, length), width);
      const RowCells<A, A, kPack, kPacks> weight((const A*)f.weight, width, A(1));
      const RowCells<M, A, kPack, kPacks> scale(row_of<M>(f.scale, row, length), width);
      A mean = A(0);
      if (f.layer) {
        const A guess = widen<A>(row_of<T>(f.x, row, length)[0]);
        A sum[1] = {A(0)};
        for_cells<kPack, kPacks>(width, [&](int i, int j, int64_t c) { sum[0] += x.at(i, j, c) - guess; });
        block_sum(sum, scratch);
        mean = guess + sum[0] / A(width);
      }
      A sums[3] = {A(0), A(0), A(0)};  // of centred^2, h * centred and h, with h = grad * weight * (1 + scale)
      for_cells<kPack, kPacks>(width, [&](int i, int j, int64_t c) {
        const A centred = x.at(i, j, c) - mean;
        const A h = grad.at(i, j, c) * weight.at(i, j, c) * (1 + scale.at(i, j, c));
        sums[0] += centred * centred;
        sums[1] += h * centred;
        sums[2] += h;
      });
      block_sum(sums, scratch);
      const A rstd = reciprocal_root(sums[0] / A(width) + A(f.eps));
      const A product = sums[1] * rstd / A(width), slope = f.layer ? sums[2] / A(width) : A(0);
      write_cells<T, A, kPack, kPacks>((T*)p.grad_x + row * width, width, [&](int i, int j, int64_t c) {
        const A g = grad.at(i, j, c), xhat = (x.at(i, j, c) - mean) * rstd;
        const A h = g * weight.at(i, j, c) * (1 + scale.at(i, j, c));
        if (weight_sum.wanted()) weight_sum.sums.add(i, j, c, g * xhat * (1 + scale.at(i, j, c)));
        if (scale_sum.wanted()) scale_sum.sums.add(i, j, c, g * xhat * weight.at(i, j, c));
        if (shift_sum.wanted()) shift_sum.sums.add(i, j, c, g);
        return rstd * (h - xhat * product - slope);
      });
      scale_sum.row_done(row);
      shift_sum.row_done(row);
    }
    weight_sum.task_done();
    scale_sum.task_done();
    shift_sum.task_done();
  }
}

template <class A, class M>
void add_group_partials(const A* partial, int64_t stride, const NormSizes& size, const NormTasks& tasks, int64_t tokens,
                        M* grads, cudaStream_t stream) {
  if (tokens < kGroupInTask) return;
  const int64_t groups = size.batch * size.length / tokens;
  add_partials(partial, stride, groups, tasks.count / groups, size.width, grads, stream);
}

template <class T, class M, int kPack, int kPacks>
__global__ void __launch_bounds__(kMostThreads) gated_residual_kernel(const __grid_constant__ GatedResidualParams p) {
  using A = Accumulator<T>;
  const int64_t width = p.size.width, length = p.size.length, rows = p.size.batch * length;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const RowCells<T, A, kPack, kPacks> x(row_of<T>(p.x, row, length), width);
    const RowCells<T, A, kPack, kPacks> y(row_of<T>(p.y, row, length), width);
    const M* gates = row_of<M>(p.gate, row, length);
    write_packs<T, A, kPack, kPacks>(row_of<T>(p.out, row, length), width, [&](int i, int64_t first, A(&value)[kPack]) {
      A gate[kPack];
      read_pack(gate, gates, first);
#pragma unroll
      for (int j = 0; j < kPack; ++j) value[j] = x.at(i, j, first + j) + gate[j] * y.at(i, j, first + j);
    });
  }
}

template <class T, class M, int kPack, int kPacks>
__global__ void __launch_bounds__(kMostThreads, 2)
    gated_residual_backward_kernel(const __grid_constant__ GatedResidualBackwardParams p,
                                   const __grid_constant__ NormTasks tasks) {
  using A = Accumulator<T>;
  const int64_t width = p.size.width, length = p.size.length;
  for (int64_t task = blockIdx.x; task < tasks.count; task += gridDim.x) {
    GroupSums<A, M, kPack, kPacks> gate_sum((A*)p.partial + task * width, (M*)p.grad_gate, p.gate.tokens, width);
    const int64_t end = task_end(tasks, task);
    for (int64_t row = task_begin(tasks, task); row < end; ++row) {
      const RowCells<T, A, kPack, kPacks> grad(row_of<T>(p.grad_out, row, length), width);
      const RowCells<T, A, kPack, kPacks> y(row_of<T>(p.y, row, length), width);
      const RowCells<M, A, kPack, kPacks> gate(row_of<M>(p.gate, row, length), width);
      write_cells<T, A, kPack, kPacks>((T*)p.grad_y + row * width, width, [&](int i, int j, int64_t c) {
        gate_sum.sums.add(i, j, c, grad.at(i, j, c) * y.at(i, j, c));
        return grad.at(i, j, c) * gate.at(i, j, c);
      });
      gate_sum.row_done(row);
    }
    gate_sum.task_done();
  }
}

// Whether 16-byte accesses are aligned in every row.
struct Alignment {
  bool good;
  int64_t element;

  Alignment(int64_t width, int64_t element) : good(width * element % 16 == 0), element(element) {}
  Alignment& dense(const void* p) {
    good = good && aligned_to_16(p);
    return *this;
  }
  Alignment& rows(const void* p, int64_t stride) {
    good = good && aligned_to_16(p) && stride * element % 16 == 0;
    return *this;
  }
  template <class R>
  Alignment& tokens(const R& r) {
    return rows(r.data, r.batch_stride | r.token_stride);
  }
  Alignment& modulation(const Modulation& m, int64_t bytes) {
    good =
        good && (m.data == nullptr || (aligned_to_16(m.data) && (m.batch_stride | m.frame_stride) * bytes % 16 == 0));
    return *this;
  }
};

// f.template operator()<kPack, kPacks>(threads) with rows in registers where they are aligned and fit: as many packs a
// thread as let a warp or more share a row, so that many rows are on their way at once.
template <class T, int kMostPacks, int kThreads = kMostThreads, class F>
void with_cells(bool aligned, int64_t width, const F& f) {
  constexpr int kPack = kPackOf<T>;
  const auto start = [&]<int kPacks>() {
    f.template operator()<kPack, kPacks>(row_threads(width, kPack, kPacks, kThreads));
  };
  if constexpr (sizeof(T) < 8) {
    if (aligned && width <= int64_t(kPack) * kMostPacks * kThreads) {
      if constexpr (kMostPacks >= 4)
        if (width > 2 * kPack * kWarp) return start.template operator()<4>();
      if constexpr (kMostPacks >= 2)
        if (width > kPack * kWarp) return start.template operator()<2>();
      return start.template operator()<1>();
    }
  }
  f.template operator()<1, 0>(row_threads(width, 1, 0, kThreads));
}

// Packs of a thread: 32 numbers where only a row is kept, 16 where two are, eight beside backward's sums (more spill).
constexpr int kNormPacks = 4, kResidualPacks = 2;
template <class T>
constexpr int kBackwardPacks = sizeof(T) == 4 ? 2 : 1;

template <class T, class M>
void adaln_norm_of(const AdalnParams& p, cudaStream_t stream) {
  const int64_t rows = p.size.batch * p.size.length;
  Alignment a(p.size.width, sizeof(T));
  a.tokens(p.x).tokens(p.out).dense(p.weight).modulation(p.scale, sizeof(M)).modulation(p.shift, sizeof(M));
  with_cells<T, kNormPacks, kNormThreads>(a.good, p.size.width, [&]<int kPack, int kPacks>(int threads) {
    VIDEOAR_LAUNCH(grid_of(rows), threads, stream, adaln_norm_kernel<T, M, kPack, kPacks>)(p);
  });
}

template <class T, class M>
void adaln_norm_backward_of(const AdalnBackwardParams& p, cudaStream_t stream) {
  using A = Accumulator<T>;
  const AdalnParams& f = p.forward;
  const int64_t width = f.size.width;
  const NormTasks tasks = norm_tasks(f.size, f.scale.tokens, f.shift.tokens, kNormTasks);
  Alignment a(width, sizeof(T));
  a.tokens(f.x).tokens(p.grad_out).dense(p.grad_x).dense(f.weight).modulation(f.scale, sizeof(M));
  with_cells<T, kBackwardPacks<T>>(a.good, width, [&]<int kPack, int kPacks>(int threads) {
    VIDEOAR_LAUNCH(grid_of(tasks.count), threads, stream, adaln_norm_backward_kernel<T, M, kPack, kPacks>)(p, tasks);
  });
  const A* partial = (const A*)p.partial;
  if (f.weight) add_partials(partial, 3 * width, 1, tasks.count, width, (A*)p.grad_weight, stream);
  if (f.scale.data)
    add_group_partials(partial + width, 3 * width, f.size, tasks, f.scale.tokens, (M*)p.grad_scale, stream);
  if (f.shift.data)
    add_group_partials(partial + 2 * width, 3 * width, f.size, tasks, f.shift.tokens, (M*)p.grad_shift, stream);
}

template <class T, class M>
void gated_residual_of(const GatedResidualParams& p, cudaStream_t stream) {
  const int64_t rows = p.size.batch * p.size.length;
  Alignment a(p.size.width, sizeof(T));
  a.tokens(p.x).tokens(p.y).tokens(p.out).modulation(p.gate, sizeof(M));
  with_cells<T, kResidualPacks>(a.good, p.size.width, [&]<int kPack, int kPacks>(int threads) {
    VIDEOAR_LAUNCH(grid_of(rows), threads, stream, gated_residual_kernel<T, M, kPack, kPacks>)(p);
  });
}

template <class T, class M>
void gated_residual_backward_of(const GatedResidualBackwardParams& p, cudaStream_t stream) {
  using A = Accumulator<T>;
  const NormTasks tasks = norm_tasks(p.size, p.gate.tokens, p.gate.tokens, kNormTasks);
  Alignment a(p.size.width, sizeof(T));
  a.tokens(p.y).tokens(p.grad_out).dense(p.grad_y).modulation(p.gate, sizeof(M));
  with_cells<T, kBackwardPacks<T>>(a.good, p.size.width, [&]<int kPack, int kPacks>(int threads) {
    VIDEOAR_LAUNCH(grid_of(tasks.count), threads, stream, gated_residual_backward_kernel<T, M, kPack, kPacks>)
    (p, tasks);
  });
  add_group_partials((const A*)p.partial, p.size.width, p.size, tasks, p.gate.tokens, (M*)p.grad_gate, stream);
}

// The modulation's type: the compute type, or the element's own.
template <class T>
const char* adaln_norm(const AdalnParams& p, cudaStream_t stream) {
  p.wide_modulation ? adaln_norm_of<T, Accumulator<T>>(p, stream) : adaln_norm_of<T, T>(p, stream);
  return launch_error();
}
template <class T>
const char* adaln_norm_backward(const AdalnBackwardParams& p, cudaStream_t stream) {
  p.forward.wide_modulation ? adaln_norm_backward_of<T, Accumulator<T>>(p, stream)
                            : adaln_norm_backward_of<T, T>(p, stream);
  return launch_error();
}
template <class T>
const char* gated_residual(const GatedResidualParams& p, cudaStream_t stream) {
  p.wide_modulation ? gated_residual_of<T, Accumulator<T>>(p, stream) : gated_residual_of<T, T>(p, stream);
  return launch_error();
}
template <class T>
const char* gated_residual_backward(const GatedResidualBackwardParams& p, cudaStream_t stream) {
  p.wide_modulation ? gated_residual_backward_of<T, Accumulator<T>>(p, stream)
                    : gated_residual_backward_of<T, T>(p, stream);
  return launch_error();
}

}  // namespace

const char* launch_adaln_norm(const AdalnParams& p, void* stream) {
  if (p.size.batch * p.size.length * p.size.width == 0) return nullptr;
  VIDEOAR_CUDA_DISPATCH(p.dtype, adaln_norm, p, cudaStream_t(stream));
}
const char* launch_adaln_norm_backward(const AdalnBackwardParams& p, void* stream) {
  VIDEOAR_CUDA_DISPATCH(p.forward.dtype, adaln_norm_backward, p, cudaStream_t(stream));
}
const char* launch_gated_residual(const GatedResidualParams& p, void* stream) {
  if (p.size.batch * p.size.length * p.size.width == 0) return nullptr;
  VIDEOAR_CUDA_DISPATCH(p.dtype, gated_residual, p, cudaStream_t(stream));
}
const char* launch_gated_residual_backward(const GatedResidualBackwardParams& p, void* stream) {
  VIDEOAR_CUDA_DISPATCH(p.dtype, gated_residual_backward, p, cudaStream_t(stream));
}

}  // namespace cuda
}  // namespace videoar
