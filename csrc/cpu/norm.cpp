#include "norm.h"

#include <cmath>
#include <cstring>

#include "parallel.h"
#include "stream.h"
#include "sweep.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// Row `row` of all samples' tokens.
template <class T>
inline const T* row_of(const TokenRows& rows, int64_t row, int64_t length) {
  return (const T*)rows.data + row / length * rows.batch_stride + row % length * rows.token_stride;
}

template <class T>
inline T* row_of(const OutputRows& rows, int64_t row, int64_t length) {
  return (T*)rows.data + row / length * rows.batch_stride + row % length * rows.token_stride;
}

// An output over its own input is in the cache already.
template <class T>
bool streams(const void* out, const void* a, const void* b, const NormSizes& size) {
  return out != a && out != b && outgrows_cache(size.batch * size.length * size.width * int64_t(sizeof(T)));
}

// The modulation row of a token, null where there is no modulation.
template <class M>
inline const M* row_of(const Modulation& m, int64_t row, int64_t length) {
  if (m.data == nullptr) return nullptr;
  return (const M*)m.data + row / length * m.batch_stride + row % length / m.tokens * m.frame_stride;
}

template <class T>
inline Accumulator<T> mean_of(const T* x, int64_t n) {
  using A = Accumulator<T>;
  return sweep_sum<A>(n, [&](int64_t i, int lanes) { return load_upto(x + i, lanes); }) / A(n);
}

// weight * (1 + scale) at one vector.
template <class M>
inline Vec<Accumulator<M>> gain(const Accumulator<M>* weight, const M* scale, int64_t i, int n) {
  using A = Accumulator<M>;
  Vec<A> value = broadcast(A(1));
  if (weight != nullptr) value = load_upto(weight + i, n);
  if (scale != nullptr) value *= 1 + load_upto(scale + i, n);
  return value;
}

// sum (x - mean)^2.
template <class T>
inline Accumulator<T> squares_of(const T* x, Accumulator<T> mean, int64_t n) {
  using A = Accumulator<T>;
  return sweep_sum<A>(n, [&](int64_t i, int lanes) {
    const Vec<A> centred = first_lanes<A>(load_upto(x + i, lanes) - mean, lanes);
    return centred * centred;
  });
}

template <class T, class M>
void adaln_norm_of(const AdalnParams& p) {
  using A = Accumulator<T>;
  const int64_t rows = p.size.batch * p.size.length, width = p.size.width;
  const A* weight = (const A*)p.weight;
  const bool streaming = streams<T>(p.out.data, p.x.data, nullptr, p.size);
  parallel_ranges(rows, rows * width * 2 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    StreamWriter<T> writer(streaming);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = row_of<T>(p.x, row, p.size.length);
      const M* scale = row_of<M>(p.scale, row, p.size.length);
      const M* shift = row_of<M>(p.shift, row, p.size.length);
      T* out = row_of<T>(p.out, row, p.size.length);
      const A mean = p.layer ? mean_of(x, width) : A(0);
      const A rstd = 1 / std::sqrt(squares_of(x, mean, width) / A(width) + A(p.eps));
      each_piece<T>(width, [&](int64_t first, int64_t count) {
        T* to = writer.at(out + first);
        sweep<A>(count, [&](int64_t j, int n) {
          const int64_t i = first + j;
          Vec<A> y = (load_upto(x + i, n) - mean) * rstd * gain<M>(weight, scale, i, n);
          if (shift != nullptr) y += load_upto(shift + i, n);
          store_upto(to + j, y, n);
        });
        writer.done(out + first, count);
      });
    }
  });
}

// The sum over the rows that share one modulation row (or, for a weight, over all rows). Short groups end inside a
// task and go straight to `grads`; long ones leave one partial sum a task, which add_partials() adds up.
template <class A, class M>
class GroupSum {
 public:
  GroupSum(A* sum, M* grads, int64_t tokens, int64_t width)
      : sum_(sum), grads_(tokens < kGroupInTask ? grads : nullptr), tokens_(tokens), width_(width) {
    if (sum_ != nullptr) std::memset(sum_, 0, size_t(width_) * sizeof(A));
  }

  bool present() const { return sum_ != nullptr; }

  void add(int64_t i, Vec<A> v, int n) {
    if (sum_ != nullptr) store_upto(sum_ + i, load_upto(sum_ + i, n) + v, n);
  }

  void row_done(int64_t row) {
    if (sum_ == nullptr || grads_ == nullptr || (row + 1) % tokens_ != 0) return;
    M* out = grads_ + row / tokens_ * width_;
    sweep<A>(width_, [&](int64_t i, int n) { store_upto(out + i, load_upto(sum_ + i, n), n); });
    std::memset(sum_, 0, size_t(width_) * sizeof(A));
  }

 private:
  A* sum_;
  M* grads_;
  int64_t tokens_, width_;
};

// grads[g] = the sum of the partial rows of group g's tasks, in order; `stride` elements from task to task.
template <class A, class M>
void add_partials(const A* partial, int64_t stride, int64_t groups, int64_t tasks, int64_t width, M* grads) {
  constexpr int64_t kColumns = 256;
  const int64_t blocks = (width + kColumns - 1) / kColumns;
  parallel_ranges(groups * blocks, groups * tasks * width * int64_t(sizeof(A)), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / blocks, column = item % blocks * kColumns;
      const A* first = partial + group * tasks * stride + column;
      M* out = grads + group * width + column;
      sweep<A>(width - column < kColumns ? width - column : kColumns, [&](int64_t i, int n) {
        Vec<A> sum{};
        for (int64_t task = 0; task < tasks; ++task) sum += load_upto(first + task * stride + i, n);
        store_upto(out + i, sum, n);
      });
    }
  });
}

template <class A, class M>
void add_group_partials(const A* partial, int64_t stride, const NormSizes& size, const NormTasks& tasks, int64_t tokens,
                        M* grads) {
  if (tokens < kGroupInTask) return;
  const int64_t groups = size.batch * size.length / tokens;
  add_partials(partial, stride, groups, tasks.count / groups, size.width, grads);
}

// With xhat = (x - mean) * rstd and h = grad_out * weight * (1 + scale):
//   grad_x = rstd * (h - xhat * mean(h * xhat) - mean(h) [layer norm])
//   grad_weight = sum grad_out * (1 + scale) * xhat,  grad_scale = sum grad_out * weight * xhat,  grad_shift = sum
//   grad_out
template <class T, class M>
void adaln_norm_backward_of(const AdalnBackwardParams& p) {
  using A = Accumulator<T>;
  const AdalnParams& f = p.forward;
  const int64_t width = f.size.width, length = f.size.length;
  const A* weight = (const A*)f.weight;
  const NormTasks tasks = norm_tasks(f.size, f.scale.tokens, f.shift.tokens);
  const int64_t bytes = f.size.batch * length * width * 3 * int64_t(sizeof(T));
  const bool streaming = streams<T>(p.grad_x, nullptr, nullptr, f.size);
  parallel_ranges(tasks.count, bytes, [&](int64_t first_task, int64_t last_task) {
    StreamWriter<T> writer(streaming);
    for (int64_t task = first_task; task < last_task; ++task) {
      A* sums = (A*)p.partial + task * 3 * width;
      GroupSum<A, A> weight_sum(weight ? sums : nullptr, nullptr, kGroupInTask, width);
      GroupSum<A, M> scale_sum(f.scale.data ? sums + width : nullptr, (M*)p.grad_scale, f.scale.tokens, width);
      GroupSum<A, M> shift_sum(f.shift.data ? sums + 2 * width : nullptr, (M*)p.grad_shift, f.shift.tokens, width);
      for (int64_t row = task_begin(tasks, task); row < task_end(tasks, task); ++row) {
        const T* x = row_of<T>(f.x, row, length);
        const T* grad = row_of<T>(p.grad_out, row, length);
        const M* scale = row_of<M>(f.scale, row, length);
        T* grad_x = (T*)p.grad_x + row * width;
        const A mean = f.layer ? mean_of(x, width) : A(0);
        Vec<A> squares{}, products{}, slopes{};
        sweep<A>(width, [&](int64_t i, int n) {
          const Vec<A> centred = first_lanes<A>(load_upto(x + i, n) - mean, n);
          const Vec<A> h = load_upto(grad + i, n) * gain<M>(weight, scale, i, n);
          squares += centred * centred;
          products += h * centred;
          slopes += h;
        });
        const A rstd = 1 / std::sqrt(reduce_add<A>(squares) / A(width) + A(f.eps));
        const A product = reduce_add<A>(products) * rstd / A(width);
        const A slope = f.layer ? reduce_add<A>(slopes) / A(width) : A(0);
        each_piece<T>(width, [&](int64_t first, int64_t count) {
          T* to = writer.at(grad_x + first);
          sweep<A>(count, [&](int64_t j, int n) {
            const int64_t i = first + j;
            const Vec<A> g = load_upto(grad + i, n), xhat = (load_upto(x + i, n) - mean) * rstd;
            store_upto(to + j, rstd * (g * gain<M>(weight, scale, i, n) - xhat * product - slope), n);
            if (weight_sum.present()) weight_sum.add(i, g * xhat * gain<M>(nullptr, scale, i, n), n);
            if (scale_sum.present()) scale_sum.add(i, g * xhat * gain<M>(weight, nullptr, i, n), n);
            shift_sum.add(i, g, n);
          });
          writer.done(grad_x + first, count);
        });
        scale_sum.row_done(row);
        shift_sum.row_done(row);
      }
    }
  });
  const A* partial = (const A*)p.partial;
  if (weight != nullptr) add_partials(partial, 3 * width, 1, tasks.count, width, (A*)p.grad_weight);
  if (f.scale.data) add_group_partials(partial + width, 3 * width, f.size, tasks, f.scale.tokens, (M*)p.grad_scale);
  if (f.shift.data) add_group_partials(partial + 2 * width, 3 * width, f.size, tasks, f.shift.tokens, (M*)p.grad_shift);
}

template <class T, class M>
void gated_residual_of(const GatedResidualParams& p) {
  using A = Accumulator<T>;
  const int64_t rows = p.size.batch * p.size.length, width = p.size.width;
  const bool streaming = streams<T>(p.out.data, p.x.data, p.y.data, p.size);
  parallel_ranges(rows, rows * width * 3 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    StreamWriter<T> writer(streaming);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = row_of<T>(p.x, row, p.size.length);
      const T* y = row_of<T>(p.y, row, p.size.length);
      const M* gate = row_of<M>(p.gate, row, p.size.length);
      T* out = row_of<T>(p.out, row, p.size.length);
      each_piece<T>(width, [&](int64_t first, int64_t count) {
        T* to = writer.at(out + first);
        sweep<A>(count, [&](int64_t j, int n) {
          const int64_t i = first + j;
          store_upto(to + j, load_upto(x + i, n) + load_upto(gate + i, n) * load_upto(y + i, n), n);
        });
        writer.done(out + first, count);
      });
    }
  });
}

template <class T, class M>
void gated_residual_backward_of(const GatedResidualBackwardParams& p) {
  using A = Accumulator<T>;
  const int64_t width = p.size.width, length = p.size.length;
  const NormTasks tasks = norm_tasks(p.size, p.gate.tokens, p.gate.tokens);
  const int64_t bytes = p.size.batch * length * width * 3 * int64_t(sizeof(T));
  const bool streaming = streams<T>(p.grad_y, nullptr, nullptr, p.size);
  parallel_ranges(tasks.count, bytes, [&](int64_t first_task, int64_t last_task) {
    StreamWriter<T> writer(streaming);
    for (int64_t task = first_task; task < last_task; ++task) {
      GroupSum<A, M> gate_sum((A*)p.partial + task * width, (M*)p.grad_gate, p.gate.tokens, width);
      for (int64_t row = task_begin(tasks, task); row < task_end(tasks, task); ++row) {
        const T* y = row_of<T>(p.y, row, length);
        const T* grad = row_of<T>(p.grad_out, row, length);
        const M* gate = row_of<M>(p.gate, row, length);
        T* grad_y = (T*)p.grad_y + row * width;
        each_piece<T>(width, [&](int64_t first, int64_t count) {
          T* to = writer.at(grad_y + first);
          sweep<A>(count, [&](int64_t j, int n) {
            const int64_t i = first + j;
            const Vec<A> g = load_upto(grad + i, n);
            store_upto(to + j, g * load_upto(gate + i, n), n);
            gate_sum.add(i, g * load_upto(y + i, n), n);
          });
          writer.done(grad_y + first, count);
        });
        gate_sum.row_done(row);
      }
    }
  });
  add_group_partials((const A*)p.partial, width, p.size, tasks, p.gate.tokens, (M*)p.grad_gate);
}

template <class T>
void swiglu(const SwigluParams& p) {
  using A = Accumulator<T>;
  const bool streaming = streams<T>(p.out, p.gate, p.up, {1, p.rows, p.width});
  parallel_ranges(p.rows, p.rows * p.width * 3 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    StreamWriter<T> writer(streaming);
    for (int64_t row = begin; row < end; ++row) {
      const T* gate = (const T*)p.gate + row * p.gate_stride;
      const T* up = (const T*)p.up + row * p.up_stride;
      T* out = (T*)p.out + row * p.out_stride;
      each_piece<T>(p.width, [&](int64_t first, int64_t count) {
        T* to = writer.at(out + first);
        sweep<A>(count, [&](int64_t j, int n) {
          const Vec<A> g = load_upto(gate + first + j, n);
          store_upto(to + j, g * vsigmoid(g) * load_upto(up + first + j, n), n);
        });
        writer.done(out + first, count);
      });
    }
  });
}

template <class T>
void swiglu_backward(const SwigluBackwardParams& p) {
  using A = Accumulator<T>;
  const bool streaming = streams<T>(p.grad_gate, nullptr, nullptr, {1, p.rows, p.width});
  parallel_ranges(p.rows, p.rows * p.width * 5 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    StreamWriter<T> gate_writer(streaming), up_writer(streaming);
    for (int64_t row = begin; row < end; ++row) {
      const T* grad = (const T*)p.grad_out + row * p.grad_out_stride;
      const T* gate = (const T*)p.gate + row * p.gate_stride;
      const T* up = (const T*)p.up + row * p.up_stride;
      T* grad_gate = (T*)p.grad_gate + row * p.width;
      T* grad_up = (T*)p.grad_up + row * p.width;
      each_piece<T>(p.width, [&](int64_t first, int64_t count) {
        T* to_gate = gate_writer.at(grad_gate + first);
        T* to_up = up_writer.at(grad_up + first);
        sweep<A>(count, [&](int64_t j, int n) {
          const int64_t i = first + j;
          const Vec<A> g = load_upto(gate + i, n), d = load_upto(grad + i, n), s = vsigmoid(g);
          store_upto(to_gate + j, d * load_upto(up + i, n) * s * (1 + g * (1 - s)), n);
          store_upto(to_up + j, d * g * s, n);
        });
        gate_writer.done(grad_gate + first, count);
        up_writer.done(grad_up + first, count);
      });
    }
  });
}

template <class T>
void adaln_norm(const AdalnParams& p) {
  p.wide_modulation ? adaln_norm_of<T, Accumulator<T>>(p) : adaln_norm_of<T, T>(p);
}
template <class T>
void adaln_norm_backward(const AdalnBackwardParams& p) {
  p.forward.wide_modulation ? adaln_norm_backward_of<T, Accumulator<T>>(p) : adaln_norm_backward_of<T, T>(p);
}
template <class T>
void gated_residual(const GatedResidualParams& p) {
  p.wide_modulation ? gated_residual_of<T, Accumulator<T>>(p) : gated_residual_of<T, T>(p);
}
template <class T>
void gated_residual_backward(const GatedResidualBackwardParams& p) {
  p.wide_modulation ? gated_residual_backward_of<T, Accumulator<T>>(p) : gated_residual_backward_of<T, T>(p);
}

void adaln_norm_any(const AdalnParams& p) { VIDEOAR_DISPATCH(p.dtype, adaln_norm, p) }
void adaln_norm_backward_any(const AdalnBackwardParams& p) { VIDEOAR_DISPATCH(p.forward.dtype, adaln_norm_backward, p) }
void gated_residual_any(const GatedResidualParams& p) { VIDEOAR_DISPATCH(p.dtype, gated_residual, p) }
void gated_residual_backward_any(const GatedResidualBackwardParams& p) {
  VIDEOAR_DISPATCH(p.dtype, gated_residual_backward, p)
}
void swiglu_any(const SwigluParams& p) { VIDEOAR_DISPATCH(p.dtype, swiglu, p) }
void swiglu_backward_any(const SwigluBackwardParams& p) { VIDEOAR_DISPATCH(p.dtype, swiglu_backward, p) }

}  // namespace

const NormKernels norm_kernels = {
    adaln_norm_any, adaln_norm_backward_any, gated_residual_any, gated_residual_backward_any,
    swiglu_any,     swiglu_backward_any,
};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
