#include "norm.h"

#include <cmath>

#include "norm_kernels.h"
#include "norm_modulation.h"
#include "norm_rows.h"
#include "parallel.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// The moments of a row; without kLayer, 0 and the mean square. Its sums are taken about a guess at the mean, and again
// about what comes out where the guess was bad: differences between large numbers would leave nothing of a small
// spread.
template <class T, bool kLayer>
inline Moments<Accumulator<T>> moments_of(const T* x, int64_t width) {
  using A = Accumulator<T>;
  A guess = kLayer ? mean_of_first_step(x, width) : A(0);
  for (bool again = false;; again = true) {
    Vec<A> sums[kChains<T>][kVectors<T>] = {}, squares[kChains<T>][kVectors<T>] = {};
    each_step_in_chains<T>(width, [&](int64_t i, int n, int k) {
      Wide<T> w = load_wide(x + i, n);
      if constexpr (kLayer) {
        for (int u = 0; u < kVectors<T>; ++u) w.v[u] -= guess;
        w = first_elements<T>(w, n);
        for (int u = 0; u < kVectors<T>; ++u) sums[k][u] += w.v[u];
      }
      for (int u = 0; u < kVectors<T>; ++u) squares[k][u] += w.v[u] * w.v[u];
    });
    Vec<A> sum{}, square{};
    for (int k = 0; k < kChains<T>; ++k) {
      for (int u = 0; u < kVectors<T>; ++u) sum += sums[k][u], square += squares[k][u];
    }
    const A mean_square = reduce_add<A>(square) / A(width);
    if constexpr (!kLayer) return {A(0), mean_square};
    const A off = reduce_add<A>(sum) / A(width);
    const Moments<A> moments = moments_about(guess, off, mean_square);
    if (again || !guess_was_far(off, moments.variance)) return moments;
    guess = moments.mean;
  }
}

template <class T, class M, bool kLayer>
void adaln_norm_of(const AdalnParams& p) {
  using A = Accumulator<T>;
  const int64_t rows = p.size.batch * p.size.length, width = p.size.width, length = p.size.length;
  const bool streaming = streams<T>(p.out.data, p.x.data, nullptr, p.size);
  parallel_ranges(rows, rows * width * 2 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    StreamWriter<T> writer(streaming);
    ModulationRows<T, M> modulation((const A*)p.weight, width);
    const T* x = row_of<T>(p.x, begin, length);
    for (int64_t row = begin; row < end; ++row) {
      const T* next = row + 1 < end ? row_of<T>(p.x, row + 1, length) : x;
      T* out = row_of<T>(p.out, row, length);
      modulation.use(row_of<M>(p.scale, row, length), row_of<M>(p.shift, row, length));
      const A *gain = modulation.gain(), *shift = modulation.shift();
      const Moments<A> moments = moments_of<T, kLayer>(x, width);
      const A mean = moments.mean, rstd = 1 / std::sqrt(moments.variance + A(p.eps));
      write_row(writer, out, width, [&](int64_t i, int n) {
        // The next row arrives while this one is computed.
        __builtin_prefetch(next + i);
        Wide<T> w = load_wide(x + i, n);
        for (int u = 0; u < kVectors<T>; ++u) {
          const int64_t at = i + u * kLanes<A>;
          if constexpr (kLayer) w.v[u] -= mean;
          w.v[u] = w.v[u] * rstd * load(gain + at) + load(shift + at);
        }
        return w;
      });
      x = next;
    }
  });
}

template <class T, class M>
void adaln_norm_with(const AdalnParams& p) {
  p.layer ? adaln_norm_of<T, M, true>(p) : adaln_norm_of<T, M, false>(p);
}

template <class T>
void adaln_norm_as(const AdalnParams& p) {
  p.wide_modulation ? adaln_norm_with<T, Accumulator<T>>(p) : adaln_norm_with<T, T>(p);
}

}  // namespace

void adaln_norm(const AdalnParams& p) { VIDEOAR_DISPATCH(p.dtype, adaln_norm_as, p) }

const NormKernels norm_kernels = {
    adaln_norm, adaln_norm_backward, gated_residual, gated_residual_backward, swiglu, swiglu_backward,
};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
