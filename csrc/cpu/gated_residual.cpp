#include <cstring>

#include "norm_kernels.h"
#include "norm_rows.h"
#include "parallel.h"
#include "partial_rows.h"
#include "sweep.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// The sum over the rows that share one modulation row (or, for a weight, over all rows). Short groups end inside a
// task and go straight to `grads`; long ones leave one partial sum a task, which add_group_partials() adds up.
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

template <class A, class M>
void add_group_partials(const A* partial, int64_t stride, const NormSizes& size, const NormTasks& tasks, int64_t tokens,
                        M* grads) {
  if (tokens < kGroupInTask) return;
  const int64_t groups = size.batch * size.length / tokens;
  add_partials(partial, stride, groups, tasks.count / groups, size.width,
               [&](const A* sums, int64_t count, int64_t group, int64_t column) {
                 M* to = grads + group * size.width + column;
                 sweep<A>(count, [&](int64_t i, int n) { store_upto(to + i, load_upto(sums + i, n), n); });
               });
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
void gated_residual_as(const GatedResidualParams& p) {
  p.wide_modulation ? gated_residual_of<T, Accumulator<T>>(p) : gated_residual_of<T, T>(p);
}

template <class T>
void gated_residual_backward_as(const GatedResidualBackwardParams& p) {
  p.wide_modulation ? gated_residual_backward_of<T, Accumulator<T>>(p) : gated_residual_backward_of<T, T>(p);
}

}  // namespace

void gated_residual(const GatedResidualParams& p) { VIDEOAR_DISPATCH(p.dtype, gated_residual_as, p) }
void gated_residual_backward(const GatedResidualBackwardParams& p) {
  VIDEOAR_DISPATCH(p.dtype, gated_residual_backward_as, p)
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
