#include "norm.h"

#include "parallel.h"
#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

template <class T>
void swiglu(const SwigluParams& p) {
  using A = Accumulator<T>;
  constexpr int kN = kLanes<A>;
  parallel_ranges(p.rows, p.rows * p.width * 3 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* gate = (const T*)p.gate + row * p.gate_stride;
      const T* up = (const T*)p.up + row * p.up_stride;
      T* out = (T*)p.out + row * p.width;
      int64_t i = 0;
      for (; i + kN <= p.width; i += kN) {
        const Vec<A> g = load(gate + i);
        store(out + i, g * vsigmoid(g) * load(up + i));
      }
      if (const int rest = int(p.width - i)) {
        const Vec<A> g = load_partial(gate + i, rest);
        store_partial(out + i, g * vsigmoid(g) * load_partial(up + i, rest), rest);
      }
    }
  });
}

template <class A>
struct SwigluGrads {
  Vec<A> gate, up;
};

template <class A>
inline SwigluGrads<A> swiglu_grads(Vec<A> g, Vec<A> up, Vec<A> grad) {
  const Vec<A> s = vsigmoid(g);
  return {grad * up * s * (1 + g * (1 - s)), grad * g * s};
}

template <class T>
void swiglu_backward(const SwigluBackwardParams& p) {
  using A = Accumulator<T>;
  constexpr int kN = kLanes<A>;
  parallel_ranges(p.rows, p.rows * p.width * 5 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* grad = (const T*)p.grad_out + row * p.grad_out_stride;
      const T* gate = (const T*)p.gate + row * p.gate_stride;
      const T* up = (const T*)p.up + row * p.up_stride;
      T* grad_gate = (T*)p.grad_gate + row * p.width;
      T* grad_up = (T*)p.grad_up + row * p.width;
      int64_t i = 0;
      for (; i + kN <= p.width; i += kN) {
        const SwigluGrads<A> d = swiglu_grads<A>(load(gate + i), load(up + i), load(grad + i));
        store(grad_gate + i, d.gate);
        store(grad_up + i, d.up);
      }
      if (const int rest = int(p.width - i)) {
        const SwigluGrads<A> d =
            swiglu_grads<A>(load_partial(gate + i, rest), load_partial(up + i, rest), load_partial(grad + i, rest));
        store_partial(grad_gate + i, d.gate, rest);
        store_partial(grad_up + i, d.up, rest);
      }
    }
  });
}

void swiglu_any(const SwigluParams& p) { VIDEOAR_DISPATCH(p.dtype, swiglu, p) }
void swiglu_backward_any(const SwigluBackwardParams& p) { VIDEOAR_DISPATCH(p.dtype, swiglu_backward, p) }

}  // namespace

const NormKernels norm_kernels = {swiglu_any, swiglu_backward_any};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
