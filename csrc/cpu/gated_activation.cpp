#include "norm_kernels.h"
#include "norm_rows.h"
#include "parallel.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

template <class T>
void swiglu_of(const SwigluParams& p) {
  const bool streaming = streams<T>(p.out, p.gate, p.up, {1, p.rows, p.width});
  parallel_ranges(p.rows, p.rows * p.width * 3 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    StreamWriter<T> writer(streaming);
    for (int64_t row = begin; row < end; ++row) {
      const T* gate = (const T*)p.gate + row * p.gate_stride;
      const T* up = (const T*)p.up + row * p.up_stride;
      T* out = (T*)p.out + row * p.out_stride;
      write_row(writer, out, p.width, [&](int64_t i, int n) {
        Wide<T> g = load_wide(gate + i, n);
        const Wide<T> u = load_wide(up + i, n);
        for (int k = 0; k < kVectors<T>; ++k) g.v[k] = g.v[k] / inverse_sigmoid(g.v[k]) * u.v[k];
        return g;
      });
    }
  });
}

template <class T>
void swiglu_backward_of(const SwigluBackwardParams& p) {
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
        each_step<T>(count, [&](int64_t j, int n) {
          const int64_t i = first + j;
          Wide<T> g = load_wide(gate + i, n), d = load_wide(grad + i, n);
          const Wide<T> u = load_wide(up + i, n);
          for (int k = 0; k < kVectors<T>; ++k) {
            const Vec<A> s = 1 / inverse_sigmoid(g.v[k]), ds = d.v[k] * s;
            d.v[k] = ds * g.v[k];
            g.v[k] = ds * u.v[k] * (1 + g.v[k] * (1 - s));
          }
          store_wide(to_gate + j, g, n);
          store_wide(to_up + j, d, n);
        });
        gate_writer.done(grad_gate + first, count);
        up_writer.done(grad_up + first, count);
      });
    }
  });
}

}  // namespace

void swiglu(const SwigluParams& p) { VIDEOAR_DISPATCH(p.dtype, swiglu_of, p) }
void swiglu_backward(const SwigluBackwardParams& p) { VIDEOAR_DISPATCH(p.dtype, swiglu_backward_of, p) }

}  // namespace VIDEOAR_ISA
}  // namespace videoar
