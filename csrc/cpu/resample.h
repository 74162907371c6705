// Area down- and bilinear up-sampling of channel-last planes, and their transposes: the one definition that encode,
// decode and the sampler share. A plane is (rows, columns, width) with `width` a multiple of the vector length, so no
// loop here has a tail.
#pragma once

#include "../resample_taps.h"
#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {

struct Size {
  int64_t h, w;
  bool operator==(const Size& other) const { return h == other.h && w == other.w; }
  int64_t area() const { return h * w; }
};

template <class A>
static inline void fill_zero(A* x, int64_t n) {
  std::memset(x, 0, size_t(n) * sizeof(A));
}

// out (small) = area mean of x (full) - y (full); y may be null.
template <class A>
static inline void area_down(const A* x, const A* y, Size full, Size small, int64_t width, A* out) {
  for (int64_t i = 0; i < small.h; ++i) {
    const Bin<int64_t> rows = area_bin(i, small.h, full.h);
    for (int64_t j = 0; j < small.w; ++j) {
      const Bin<int64_t> columns = area_bin(j, small.w, full.w);
      const bool single = rows.end - rows.begin == 1 && columns.end - columns.begin == 1;
      const A height = A(rows.end - rows.begin), length = A(columns.end - columns.begin);
      A* to = out + (i * small.w + j) * width;
      for (int64_t c = 0; c < width; c += kLanes<A>) {
        Vec<A> sum{};
        for (int64_t row = rows.begin; row < rows.end; ++row) {
          for (int64_t column = columns.begin; column < columns.end; ++column) {
            const int64_t at = (row * full.w + column) * width + c;
            sum += y == nullptr ? load(x + at) : load(x + at) - load(y + at);
          }
        }
        store(to + c, single ? sum : sum / height / length);
      }
    }
  }
}

// x (full) += the transpose of area_down applied to grad (small).
template <class A>
static inline void area_down_transposed(const A* grad, Size full, Size small, int64_t width, A* x) {
  for (int64_t i = 0; i < small.h; ++i) {
    const Bin<int64_t> rows = area_bin(i, small.h, full.h);
    for (int64_t j = 0; j < small.w; ++j) {
      const Bin<int64_t> columns = area_bin(j, small.w, full.w);
      const A share = 1 / A((rows.end - rows.begin) * (columns.end - columns.begin));
      const A* from = grad + (i * small.w + j) * width;
      for (int64_t c = 0; c < width; c += kLanes<A>) {
        const Vec<A> part = load(from + c) * share;
        for (int64_t row = rows.begin; row < rows.end; ++row) {
          for (int64_t column = columns.begin; column < columns.end; ++column) {
            A* at = x + (row * full.w + column) * width + c;
            store(at, load(at) + part);
          }
        }
      }
    }
  }
}

template <class A>
static inline Vec<A> between(const A* first, const A* second, A weight) {
  const Vec<A> start = load(first);
  return start + weight * (load(second) - start);
}

// x (full) += bilinear(code (small)); `strip` holds small.h * full.w * width.
template <class A>
static inline void bilinear_up_add(const A* code, Size small, Size full, int64_t width, A* strip, A* x) {
  if (small == full) {
    for (int64_t i = 0; i < full.area() * width; i += kLanes<A>) store(x + i, load(x + i) + load(code + i));
    return;
  }
  for (int64_t column = 0; column < full.w; ++column) {
    const Tap<A, int64_t> tap = bilinear_tap<A>(column, small.w, full.w);
    for (int64_t i = 0; i < small.h; ++i) {
      const A* row = code + i * small.w * width;
      A* to = strip + (i * full.w + column) * width;
      for (int64_t c = 0; c < width; c += kLanes<A>) {
        store(to + c, between(row + tap.first * width + c, row + tap.second * width + c, tap.weight));
      }
    }
  }
  const int64_t line = full.w * width;
  for (int64_t row = 0; row < full.h; ++row) {
    const Tap<A, int64_t> tap = bilinear_tap<A>(row, small.h, full.h);
    const A* first = strip + tap.first * line;
    const A* second = strip + tap.second * line;
    A* to = x + row * line;
    for (int64_t c = 0; c < line; c += kLanes<A>) {
      store(to + c, load(to + c) + between(first + c, second + c, tap.weight));
    }
  }
}

// out (small) = the transpose of bilinear_up applied to grad (full).
template <class A>
static inline void bilinear_up_transposed(const A* grad, Size small, Size full, int64_t width, A* strip, A* out) {
  if (small == full) {
    std::memcpy(out, grad, size_t(full.area() * width) * sizeof(A));
    return;
  }
  const int64_t line = full.w * width;
  fill_zero(strip, small.h * line);
  fill_zero(out, small.area() * width);
  for (int64_t row = 0; row < full.h; ++row) {
    const Tap<A, int64_t> tap = bilinear_tap<A>(row, small.h, full.h);
    A* first = strip + tap.first * line;
    A* second = strip + tap.second * line;
    for (int64_t c = 0; c < line; c += kLanes<A>) {
      const Vec<A> g = load(grad + row * line + c);
      store(first + c, load(first + c) + (1 - tap.weight) * g);
      store(second + c, load(second + c) + tap.weight * g);
    }
  }
  for (int64_t column = 0; column < full.w; ++column) {
    const Tap<A, int64_t> tap = bilinear_tap<A>(column, small.w, full.w);
    for (int64_t i = 0; i < small.h; ++i) {
      const A* from = strip + (i * full.w + column) * width;
      A* first = out + (i * small.w + tap.first) * width;
      A* second = out + (i * small.w + tap.second) * width;
      for (int64_t c = 0; c < width; c += kLanes<A>) {
        const Vec<A> g = load(from + c);
        store(first + c, load(first + c) + (1 - tap.weight) * g);
        store(second + c, load(second + c) + tap.weight * g);
      }
    }
  }
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
