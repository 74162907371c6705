// What adaln_norm and its backward pass share: the moments of a row and the rows that modulate it.
#pragma once

#include <cstring>

#include "norm.h"
#include "sweep.h"
#include "wide.h"

namespace videoar {
namespace VIDEOAR_ISA {

// f(i, n, k) for every step of a row; neighbouring steps differ in k < kChains, so that sums of their own hide the
// latency of addition.
template <class T>
constexpr int kChains = 4 / kVectors<T>;
template <class T, class F>
static inline void each_step_in_chains(int64_t width, const F& f) {
  int64_t i = 0;
  for (; i + kChains<T> * kStep<T> <= width; i += kChains<T> * kStep<T>) {
    for (int k = 0; k < kChains<T>; ++k) f(i + k * kStep<T>, kStep<T>, k);
  }
  each_step<T>(width - i, [&](int64_t j, int n) { f(i + j, n, 0); });
}

// A first guess at the mean of a row.
template <class T>
static inline Accumulator<T> mean_of_first_step(const T* x, int64_t width) {
  using A = Accumulator<T>;
  const int n = width < kStep<T> ? int(width) : kStep<T>;
  const Wide<T> w = load_wide(x, n);
  Vec<A> sum = w.v[0];
  for (int u = 1; u < kVectors<T>; ++u) sum += w.v[u];
  return reduce_add<A>(sum) / A(n);
}

// The mean of a row and the variance about it.
template <class A>
struct Moments {
  A mean, variance;
};

// The moments from the means of x - guess and of its square. They are exact enough where the guess lies within the
// row's spread; it did not where guess_was_far().
template <class A>
static inline Moments<A> moments_about(A guess, A off, A mean_square) {
  const A variance = mean_square - off * off;
  return {guess + off, variance < 0 ? A(0) : variance};
}
template <class A>
static inline bool guess_was_far(A off, A variance) {
  return off * off > variance;
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

}  // namespace VIDEOAR_ISA
}  // namespace videoar
