// Rows in steps of whole vectors, bfloat16 in pairs of them: even elements in the first vector, odd ones in the second.
// Float rows that go with them (weights, sums) are kept in the same order, padded to whole steps.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {

template <class T>
constexpr int kVectors = std::is_same_v<T, bf16> ? 2 : 1;
template <class T>
constexpr int kStep = kVectors<T> * kLanes<Accumulator<T>>;
static_assert(kStep<bf16> <= 32 && kStep<float> <= 32, "norm_row() pads to 32");

template <class T>
struct Wide {
  Vec<Accumulator<T>> v[kVectors<T>];
};

// n elements; the rest of the step is zero.
template <class T>
static inline Wide<T> load_wide(const T* p, int n) {
  T rest[kStep<T>] = {};
  if (n != kStep<T>) {
    std::memcpy(rest, p, size_t(n) * sizeof(T));
    p = rest;
  }
  if constexpr (kVectors<T> == 2) {
    const Pairs pairs = load_pairs(p);
    return {{pairs.even, pairs.odd}};
  } else {
    return {{load(p)}};
  }
}

// As in store_pairs, the lower half of a NaN must be 0.
template <class T>
static inline void store_wide(T* p, const Wide<T>& w, int n) {
  T rest[kStep<T>];
  T* to = n == kStep<T> ? p : rest;
  if constexpr (kVectors<T> == 2) {
    store_pairs(to, {w.v[0], w.v[1]});
  } else {
    store(to, w.v[0]);
  }
  if (n != kStep<T>) std::memcpy(p, rest, size_t(n) * sizeof(T));
}

// w with zeros from element n on.
template <class T>
static inline Wide<T> first_elements(Wide<T> w, int n) {
  using A = Accumulator<T>;
  if (n == kStep<T>) return w;
  for (int u = 0; u < kVectors<T>; ++u) {
    for (int i = 0; i < kLanes<A>; ++i) w.v[u][i] = kVectors<T> * i + u < n ? w.v[u][i] : A(0);
  }
  return w;
}

// f(i, n) for every step of [0, width); only the last may have fewer than kStep elements.
template <class T, class F>
static inline void each_step(int64_t width, const F& f) {
  int64_t i = 0;
  for (; i + kStep<T> <= width; i += kStep<T>) f(i, kStep<T>);
  if (i < width) f(i, int(width - i));
}

// The place of element i in a row in the order of steps.
template <class T>
static inline int64_t step_place(int64_t i) {
  if constexpr (kVectors<T> == 1) return i;
  const int64_t in = i % kStep<T>;
  return i - in + in % 2 * kLanes<float> + in / 2;
}

// row[step_place(i)] = f(value i of `from`) for every i; padding is zero, and NaNs lose their payload (store_pairs).
template <class T, class M, class F>
static inline void to_steps(const M* from, int64_t width, Accumulator<T>* row, const F& f) {
  using A = Accumulator<T>;
  each_step<T>(width, [&](int64_t i, int n) {
    if constexpr (std::is_same_v<T, M>) {
      const Wide<T> w = first_elements<T>(load_wide(from + i, n), n);
      for (int u = 0; u < kVectors<T>; ++u) {
        const Vec<A> v = f(w.v[u]);
        store(row + i + u * kLanes<A>, (Vec<A>)(v == v ? v : broadcast(std::numeric_limits<A>::quiet_NaN())));
      }
    } else {
      A values[kStep<T>] = {};
      for (int j = 0; j < n; ++j) values[step_place<T>(j)] = to_float(from[i + j]);
      for (int u = 0; u < kVectors<T>; ++u) {
        const Vec<A> v = f(load(values + u * kLanes<A>));
        store(row + i + u * kLanes<A>, (Vec<A>)(v == v ? v : broadcast(std::numeric_limits<A>::quiet_NaN())));
      }
    }
  });
}

// The other way, rounded to M.
template <class T, class M>
static inline void from_steps(const Accumulator<T>* row, int64_t width, M* to) {
  using A = Accumulator<T>;
  each_step<T>(width, [&](int64_t i, int n) {
    if constexpr (std::is_same_v<T, M> && kVectors<T> == 1) {
      store_wide<T>(to + i, {{load(row + i)}}, n);
    } else {
      for (int j = 0; j < n; ++j) to[i + j] = from_float<M>(A(row[i + step_place<T>(j)]));
    }
  });
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
