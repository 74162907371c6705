#include "norm.h"

#include <cmath>
#include <cstring>

#include "parallel.h"
#include "stream.h"
#include "sweep.h"
#include "wide.h"

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
inline Accumulator<T> mean_of(const T* x, int64_t width) {
  using A = Accumulator<T>;
  Vec<A> sums[kVectors<T>] = {};
  each_step<T>(width, [&](int64_t i, int n) {
    const Wide<T> w = load_wide(x + i, n);
    for (int u = 0; u < kVectors<T>; ++u) sums[u] += w.v[u];
  });
  for (int u = 1; u < kVectors<T>; ++u) sums[0] += sums[u];
  return reduce_add<A>(sums[0]) / A(width);
}

// sum (x - mean)^2; four sums hide the latency of addition.
template <class T>
inline Accumulator<T> squares_of(const T* x, Accumulator<T> mean, int64_t width) {
  using A = Accumulator<T>;
  constexpr int kSums = 4 / kVectors<T>;
  Vec<A> sums[kSums][kVectors<T>] = {};
  const auto add = [&](int64_t i, int n, Vec<A>* sum) {
    Wide<T> w = load_wide(x + i, n);
    for (int u = 0; u < kVectors<T>; ++u) w.v[u] -= mean;
    w = first_elements<T>(w, n);
    for (int u = 0; u < kVectors<T>; ++u) sum[u] += w.v[u] * w.v[u];
  };
  int64_t i = 0;
  for (; i + kSums * kStep<T> <= width; i += kSums * kStep<T>) {
    for (int k = 0; k < kSums; ++k) add(i + k * kStep<T>, kStep<T>, sums[k]);
  }
  each_step<T>(width - i, [&](int64_t j, int n) { add(i + j, n, sums[0]); });
  Vec<A> total{};
  for (int k = 0; k < kSums; ++k) {
    for (int u = 0; u < kVectors<T>; ++u) total += sums[k][u];
  }
  return reduce_add<A>(total);
}

// The rows that modulate a token, in the accumulator type and the order of steps, made anew only where another
// modulation row begins.
template <class T, class M>
class ModulationRows {
  using A = Accumulator<T>;

 public:
  ModulationRows(const A* weight, int64_t width)
      : width_(width), row_(padded_width(width)), buffer_(4 * row_), weighted_(weight != nullptr) {
    for (int64_t i = 0; i < row_; ++i) {
      buffer_.data()[i] = buffer_.data()[row_ + i] = buffer_.data()[2 * row_ + i] = 1;
      buffer_.data()[3 * row_ + i] = 0;
    }
    if (weighted_) {
      to_steps<T>(weight, width, buffer_.data(), [](Vec<A> v) { return v; });
      std::memcpy((A*)gain(), buffer_.data(), size_t(row_) * sizeof(A));
    }
  }

  void use(const M* scale, const M* shift) {
    if (scale != nullptr && scale != scale_) {
      A* scaling = buffer_.data() + row_;
      to_steps<T>(scale, width_, scaling, [](Vec<A> v) { return 1 + v; });
      A* gain = scaling + row_;
      for (int64_t i = 0; i < row_; i += kLanes<A>) store(gain + i, load(weight() + i) * load(scaling + i));
      scale_ = scale;
    }
    if (shift != nullptr && shift != shift_) {
      to_steps<T>(shift, width_, buffer_.data() + 3 * row_, [](Vec<A> v) { return v; });
      shift_ = shift;
    }
  }

  const A* weight() const { return buffer_.data(); }
  const A* scaling() const { return buffer_.data() + row_; }   // 1 + scale
  const A* gain() const { return buffer_.data() + 2 * row_; }  // weight * (1 + scale)
  const A* shift() const { return buffer_.data() + 3 * row_; }

 private:
  int64_t width_, row_;
  Scratch<A> buffer_;
  bool weighted_;
  const M* scale_ = nullptr;
  const M* shift_ = nullptr;
};

template <class T, class M>
void adaln_norm_of(const AdalnParams& p) {
  using A = Accumulator<T>;
  const int64_t rows = p.size.batch * p.size.length, width = p.size.width;
  const bool streaming = streams<T>(p.out.data, p.x.data, nullptr, p.size);
  parallel_ranges(rows, rows * width * 2 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    StreamWriter<T> writer(streaming);
    ModulationRows<T, M> modulation((const A*)p.weight, width);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = row_of<T>(p.x, row, p.size.length);
      T* out = row_of<T>(p.out, row, p.size.length);
      modulation.use(row_of<M>(p.scale, row, p.size.length), row_of<M>(p.shift, row, p.size.length));
      const A *gain = modulation.gain(), *shift = modulation.shift();
      const A mean = p.layer ? mean_of(x, width) : A(0);
      const A rstd = 1 / std::sqrt(squares_of(x, mean, width) / A(width) + A(p.eps));
      each_piece<T>(width, [&](int64_t first, int64_t count) {
        T* to = writer.at(out + first);
        each_step<T>(count, [&](int64_t j, int n) {
          const int64_t i = first + j;
          Wide<T> w = load_wide(x + i, n);
          for (int u = 0; u < kVectors<T>; ++u) {
            const int64_t at = i + u * kLanes<A>;
            w.v[u] = (w.v[u] - mean) * rstd * load(gain + at) + load(shift + at);
          }
          store_wide(to + j, w, n);
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

// What one task of a backward pass sums, in the order of steps: grad_out * xhat and grad_out over the rows that share a
// modulation row, and the weight's gradient over the task. A group that ends in a task leaves its gradient at once; a
// long one leaves a partial row a task.
template <class T, class M>
class AdalnSums {
  using A = Accumulator<T>;

 public:
  AdalnSums(const AdalnBackwardParams& p, A* sums)
      : width_(p.forward.size.width),
        row_(padded_width(width_)),
        scale_tokens_(p.forward.scale.data ? p.forward.scale.tokens : 0),
        shift_tokens_(p.forward.shift.data ? p.forward.shift.tokens : 0),
        weight_(p.forward.weight != nullptr),
        grad_scale_((M*)p.grad_scale),
        grad_shift_((M*)p.grad_shift),
        sums_(sums) {
    std::memset(sums_, 0, size_t(3 * row_) * sizeof(A));
  }

  A* products() const { return weight_ || scale_tokens_ > 0 ? sums_ + row_ : nullptr; }
  A* grads() const { return shift_tokens_ > 0 ? sums_ + 2 * row_ : nullptr; }

  void row_done(int64_t row, const ModulationRows<T, M>& modulation) {
    if (ends(row, scale_tokens_)) {
      close_products(modulation);
      from_steps<T>(products(), width_, grad_scale_ + row / scale_tokens_ * width_);
      std::memset(products(), 0, size_t(row_) * sizeof(A));
    }
    if (ends(row, shift_tokens_)) {
      from_steps<T>(grads(), width_, grad_shift_ + row / shift_tokens_ * width_);
      std::memset(grads(), 0, size_t(row_) * sizeof(A));
    }
  }

  void task_done(const ModulationRows<T, M>& modulation) {
    if (products() != nullptr && (scale_tokens_ == 0 || scale_tokens_ >= kGroupInTask)) close_products(modulation);
  }

 private:
  bool ends(int64_t row, int64_t tokens) const {
    return tokens > 0 && tokens < kGroupInTask && (row + 1) % tokens == 0;
  }

  // The products become the gradient of the scale, and that of the weight grows.
  void close_products(const ModulationRows<T, M>& modulation) {
    A* product = products();
    for (int64_t i = 0; i < row_; i += kLanes<A>) {
      const Vec<A> sum = load(product + i);
      if (weight_) store(sums_ + i, load(sums_ + i) + sum * load(modulation.scaling() + i));
      store(product + i, sum * load(modulation.weight() + i));
    }
  }

  int64_t width_, row_, scale_tokens_, shift_tokens_;
  bool weight_;
  M *grad_scale_, *grad_shift_;
  A* sums_;
};

// grads = the sum of `tasks` partial rows in the order of steps, one after `stride` elements.
template <class T, class M>
void add_rows(const Accumulator<T>* partial, int64_t stride, int64_t groups, int64_t tasks, int64_t width, M* grads) {
  using A = Accumulator<T>;
  constexpr int64_t kColumns = 256;
  const int64_t blocks = (width + kColumns - 1) / kColumns;
  parallel_ranges(groups * blocks, groups * tasks * width * int64_t(sizeof(A)), [&](int64_t begin, int64_t end) {
    alignas(64) A sums[kColumns];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / blocks, column = item % blocks * kColumns;
      const int64_t count = width - column < kColumns ? width - column : kColumns;
      const A* first = partial + group * tasks * stride + column;
      for (int64_t i = 0; i < padded_width(count); i += kLanes<A>) {
        Vec<A> sum{};
        for (int64_t task = 0; task < tasks; ++task) sum += load(first + task * stride + i);
        store(sums + i, sum);
      }
      from_steps<T>(sums, count, grads + group * width + column);
    }
  });
}

// With xhat = (x - mean) * rstd and h = grad_out * weight * (1 + scale):
//   grad_x = rstd * (h - xhat * mean(h * xhat) - mean(h) [layer norm])
//   grad_weight = sum grad_out * (1 + scale) * xhat,  grad_scale = sum grad_out * weight * xhat,  grad_shift = sum
//   grad_out
template <class T, class M>
void adaln_norm_backward_of(const AdalnBackwardParams& p) {
  using A = Accumulator<T>;
  constexpr int kV = kVectors<T>;
  const AdalnParams& f = p.forward;
  const int64_t width = f.size.width, length = f.size.length, row_size = padded_width(width);
  const NormTasks tasks = norm_tasks(f.size, f.scale.tokens, f.shift.tokens);
  const int64_t bytes = f.size.batch * length * width * 3 * int64_t(sizeof(T));
  const bool streaming = streams<T>(p.grad_x, nullptr, nullptr, f.size);
  parallel_ranges(tasks.count, bytes, [&](int64_t first_task, int64_t last_task) {
    StreamWriter<T> writer(streaming);
    ModulationRows<T, M> modulation((const A*)f.weight, width);
    for (int64_t task = first_task; task < last_task; ++task) {
      AdalnSums<T, M> sums(p, (A*)p.partial + task * 3 * row_size);
      A *product_sums = sums.products(), *grad_sums = sums.grads();
      for (int64_t row = task_begin(tasks, task); row < task_end(tasks, task); ++row) {
        const T* x = row_of<T>(f.x, row, length);
        const T* grad = row_of<T>(p.grad_out, row, length);
        T* grad_x = (T*)p.grad_x + row * width;
        modulation.use(row_of<M>(f.scale, row, length), nullptr);
        const A* gain = modulation.gain();
        const A mean = f.layer ? mean_of(x, width) : A(0);
        Vec<A> squares[kV] = {}, products[kV] = {}, slopes[kV] = {};
        each_step<T>(width, [&](int64_t i, int n) {
          Wide<T> c = load_wide(x + i, n);
          const Wide<T> g = load_wide(grad + i, n);
          for (int u = 0; u < kV; ++u) c.v[u] -= mean;
          c = first_elements<T>(c, n);
          for (int u = 0; u < kV; ++u) {
            const Vec<A> h = g.v[u] * load(gain + i + u * kLanes<A>);
            squares[u] += c.v[u] * c.v[u];
            products[u] += h * c.v[u];
            slopes[u] += h;
          }
        });
        for (int u = 1; u < kV; ++u) squares[0] += squares[u], products[0] += products[u], slopes[0] += slopes[u];
        const A rstd = 1 / std::sqrt(reduce_add<A>(squares[0]) / A(width) + A(f.eps));
        const A product = reduce_add<A>(products[0]) * rstd / A(width);
        const A slope = f.layer ? reduce_add<A>(slopes[0]) / A(width) : A(0);
        each_piece<T>(width, [&](int64_t first, int64_t count) {
          T* to = writer.at(grad_x + first);
          each_step<T>(count, [&](int64_t j, int n) {
            const int64_t i = first + j;
            const Wide<T> g = load_wide(grad + i, n);
            Wide<T> w = load_wide(x + i, n);
            for (int u = 0; u < kV; ++u) {
              const int64_t at = i + u * kLanes<A>;
              const Vec<A> xhat = (w.v[u] - mean) * rstd;
              w.v[u] = rstd * (g.v[u] * load(gain + at) - xhat * product - slope);
              if (product_sums != nullptr) store(product_sums + at, load(product_sums + at) + g.v[u] * xhat);
              if (grad_sums != nullptr) store(grad_sums + at, load(grad_sums + at) + g.v[u]);
            }
            store_wide(to + j, w, n);
          });
          writer.done(grad_x + first, count);
        });
        sums.row_done(row, modulation);
      }
      sums.task_done(modulation);
    }
  });
  const A* partial = (const A*)p.partial;
  const int64_t stride = 3 * row_size;
  if (f.weight != nullptr) add_rows<T>(partial, stride, 1, tasks.count, width, (A*)p.grad_weight);
  const auto add_groups = [&](const Modulation& m, const A* first, void* grads) {
    if (m.data == nullptr || m.tokens < kGroupInTask) return;
    const int64_t groups = f.size.batch * length / m.tokens;
    add_rows<T>(first, stride, groups, tasks.count / groups, width, (M*)grads);
  };
  add_groups(f.scale, partial + row_size, p.grad_scale);
  add_groups(f.shift, partial + 2 * row_size, p.grad_shift);
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
