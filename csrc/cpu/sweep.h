// Loops over a row of any length in whole vectors, the last one partial, and the scratch rows they use.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {

template <class T>
static inline Vec<Accumulator<T>> load_upto(const T* p, int n) {
  return n == kLanes<Accumulator<T>> ? load(p) : load_partial(p, n);
}

template <class T>
static inline void store_upto(T* p, Vec<Accumulator<T>> v, int n) {
  n == kLanes<Accumulator<T>> ? store(p, v) : store_partial(p, v, n);
}

// v with zeros from lane n on.
template <class A>
static inline Vec<A> first_lanes(Vec<A> v, int n) {
  for (int i = n; i < kLanes<A>; ++i) v[i] = 0;
  return v;
}

// f(i, lanes) for every vector of [0, n); only the last may have fewer than kLanes.
template <class A, class F>
static inline void sweep(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) f(i, kLanes<A>);
  if (i < n) f(i, int(n - i));
}

// The sum of f(i, lanes) over the same vectors; four sums at a time hide the latency of addition.
template <class A, class F>
static inline A sweep_sum(int64_t n, const F& f) {
  constexpr int kN = kLanes<A>;
  Vec<A> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kN <= n; i += 4 * kN) {
    for (int u = 0; u < 4; ++u) sums[u] += f(i + u * kN, kN);
  }
  for (; i + kN <= n; i += kN) sums[0] += f(i, kN);
  if (i < n) sums[1] += f(i, int(n - i));
  return reduce_add<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class A>
static inline int64_t padded(int64_t n) {
  return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// `count` elements, aligned to a cache line, uninitialised. (Aligned by hand: aligned_alloc cuts up a larger block,
// which takes longer than a small operator.)
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : block_(std::malloc(size_t(count) * sizeof(A) + 128)), data_((A*)((uintptr_t(block_) + 63) / 64 * 64)) {}
  ~Scratch() { std::free(block_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* data() const { return data_; }

 private:
  void* block_;
  A* data_;
};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
