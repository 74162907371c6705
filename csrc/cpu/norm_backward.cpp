#include <cmath>
#include <cstring>

#include "norm_kernels.h"
#include "norm_modulation.h"
#include "norm_rows.h"
#include "parallel.h"
#include "partial_rows.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

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

// grads = the sums of partial rows in the order of steps.
template <class T, class M>
void add_rows(const Accumulator<T>* partial, int64_t stride, int64_t groups, int64_t tasks, int64_t width, M* grads) {
  using A = Accumulator<T>;
  add_partials(partial, stride, groups, tasks, padded_width(width),
               [&](const A* sums, int64_t count, int64_t group, int64_t column) {
                 const int64_t left = width - column;
                 from_steps<T>(sums, left < count ? left : count, grads + group * width + column);
               });
}

// What grad_x needs of a row, with h = grad_out * gain.
template <class A>
struct RowSlopes {
  A mean, rstd, product, slope;  // product = mean(h * xhat), slope = mean(h)
};

template <class T, bool kLayer>
inline RowSlopes<Accumulator<T>> slopes_of(const T* x, const T* grad, const Accumulator<T>* gain, int64_t width,
                                           Accumulator<T> eps) {
  using A = Accumulator<T>;
  constexpr int kV = kVectors<T>;
  A guess = kLayer ? mean_of_first_step(x, width) : A(0);
  for (bool again = false;; again = true) {
    Vec<A> sums[kV] = {}, squares[kV] = {}, products[kV] = {}, slopes[kV] = {};
    each_step<T>(width, [&](int64_t i, int n) {
      Wide<T> c = load_wide(x + i, n);
      const Wide<T> g = load_wide(grad + i, n);
      if constexpr (kLayer) {
        for (int u = 0; u < kV; ++u) c.v[u] -= guess;
        c = first_elements<T>(c, n);
      }
      for (int u = 0; u < kV; ++u) {
        const Vec<A> h = g.v[u] * load(gain + i + u * kLanes<A>);
        squares[u] += c.v[u] * c.v[u];
        products[u] += h * c.v[u];
        if constexpr (kLayer) sums[u] += c.v[u], slopes[u] += h;
      }
    });
    for (int u = 1; u < kV; ++u) {
      sums[0] += sums[u], squares[0] += squares[u], products[0] += products[u], slopes[0] += slopes[u];
    }
    const auto mean = [&](Vec<A> sum) { return reduce_add<A>(sum) / A(width); };
    const A mean_square = mean(squares[0]), product = mean(products[0]);
    if constexpr (!kLayer) {
      const A rstd = 1 / std::sqrt(mean_square + eps);
      return {A(0), rstd, product * rstd, A(0)};
    }
    const A off = mean(sums[0]), slope = mean(slopes[0]);
    const Moments<A> moments = moments_about(guess, off, mean_square);
    const A rstd = 1 / std::sqrt(moments.variance + eps);
    if (again || !guess_was_far(off, moments.variance)) {
      return {moments.mean, rstd, (product - off * slope) * rstd, slope};
    }
    guess = moments.mean;
  }
}

// With xhat = (x - mean) * rstd and h = grad_out * weight * (1 + scale):
//   grad_x = rstd * (h - xhat * mean(h * xhat) - mean(h) [layer norm])
//   grad_weight = sum grad_out * (1 + scale) * xhat,  grad_scale = sum grad_out * weight * xhat,  grad_shift = sum
//   grad_out
template <class T, class M, bool kLayer>
void adaln_norm_backward_of(const AdalnBackwardParams& p) {
  using A = Accumulator<T>;
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
        modulation.use(row_of<M>(f.scale, row, length), nullptr);
        const A* gain = modulation.gain();
        const RowSlopes<A> s = slopes_of<T, kLayer>(x, grad, gain, width, A(f.eps));
        write_row(writer, (T*)p.grad_x + row * width, width, [&](int64_t i, int n) {
          const Wide<T> g = load_wide(grad + i, n);
          Wide<T> w = load_wide(x + i, n);
          for (int u = 0; u < kVectors<T>; ++u) {
            const int64_t at = i + u * kLanes<A>;
            const Vec<A> xhat = (kLayer ? w.v[u] - s.mean : w.v[u]) * s.rstd, h = g.v[u] * load(gain + at);
            w.v[u] = s.rstd * (h - xhat * s.product - s.slope);
            if (product_sums != nullptr) store(product_sums + at, load(product_sums + at) + g.v[u] * xhat);
            if (grad_sums != nullptr) store(grad_sums + at, load(grad_sums + at) + g.v[u]);
          }
          return w;
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
void adaln_norm_backward_with(const AdalnBackwardParams& p) {
  p.forward.layer ? adaln_norm_backward_of<T, M, true>(p) : adaln_norm_backward_of<T, M, false>(p);
}

template <class T>
void adaln_norm_backward_as(const AdalnBackwardParams& p) {
  p.forward.wide_modulation ? adaln_norm_backward_with<T, Accumulator<T>>(p) : adaln_norm_backward_with<T, T>(p);
}

}  // namespace

void adaln_norm_backward(const AdalnBackwardParams& p) { VIDEOAR_DISPATCH(p.forward.dtype, adaln_norm_backward_as, p) }

}  // namespace VIDEOAR_ISA
}  // namespace videoar
