// Rotating and norming one head at a time, and the order in which blocks of tokens are visited.
#pragma once

#include <cstring>

#include "rope.h"
#include "sweep.h"

namespace videoar {
namespace VIDEOAR_ISA {

template <class A>
static inline Vec<A> swap_pairs(Vec<A> v) {
  if constexpr (kLanes<A> == 2) {
    return __builtin_shufflevector(v, v, 1, 0);
  } else if constexpr (kLanes<A> == 4) {
    return __builtin_shufflevector(v, v, 1, 0, 3, 2);
  } else if constexpr (kLanes<A> == 8) {
    return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
  } else {
    return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  }
}

// Cosines and sines of the tokens of one block, each row padded to whole vectors.
template <class A>
class BlockAngles {
 public:
  BlockAngles(const RopeTableView& table, int64_t dim, bool interleaved)
      : table_(table), row_(padded<A>(interleaved ? dim : dim / 2)), buffer_(kRopeTokens * 2 * row_) {
    // The padding enters sums as 0 * padding, so it must be finite.
    std::memset(buffer_.data(), 0, size_t(kRopeTokens * 2 * row_) * sizeof(A));
  }

  void fill(int64_t sample, int64_t first, int64_t count) const {
    for (int64_t t = 0; t < count; ++t) {
      const int32_t* index = table_.index + 3 * (sample * table_.batch_stride + first + t);
      A* cosines = (A*)this->cosines(t);
      A* sines = cosines + row_;
      for (int axis = 0; axis < 3; ++axis) {
        const int64_t width = table_.width[axis];
        const A* row = (const A*)table_.rows[axis] + index[axis] * 2 * width;
        std::memcpy(cosines, row, size_t(width) * sizeof(A));
        std::memcpy(sines, row + width, size_t(width) * sizeof(A));
        cosines += width;
        sines += width;
      }
    }
  }

  const A* cosines(int64_t t) const { return buffer_.data() + t * 2 * row_; }
  const A* sines(int64_t t) const { return cosines(t) + row_; }

 private:
  const RopeTableView& table_;
  int64_t row_;
  Scratch<A> buffer_;
};

// get(i, lanes) delivers a vector of the input, put(i, vector, lanes) takes one of the rotated output.
template <class A, bool kInterleaved, class Get, class Put>
static inline void rotate(const A* cosines, const A* sines, int64_t dim, const Get& get, const Put& put) {
  if constexpr (kInterleaved) {
    sweep<A>(dim, [&](int64_t i, int n) {
      const Vec<A> v = get(i, n);
      put(i, v * load(cosines + i) + swap_pairs<A>(v) * load(sines + i), n);
    });
  } else {
    const int64_t half = dim / 2;
    sweep<A>(half, [&](int64_t i, int n) {
      const Vec<A> a = get(i, n), b = get(half + i, n), c = load(cosines + i), s = load(sines + i);
      put(i, a * c - b * s, n);
      put(half + i, b * c + a * s, n);
    });
  }
}

// f(block's first token, its tokens, sample) for the blocks [begin, end) of rope_blocks().
template <class F>
static inline void each_block(int64_t begin, int64_t end, int64_t length, const F& f) {
  const int64_t per_sample = (length + kRopeTokens - 1) / kRopeTokens;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t sample = block / per_sample, first = block % per_sample * kRopeTokens;
    f(first, length - first < kRopeTokens ? length - first : kRopeTokens, sample);
  }
}

// f(head, token) over a block, in the order in which memory is laid out.
template <class F>
static inline void each_row(int64_t heads, int64_t tokens, const RopeStrides& stride, const F& f) {
  if (stride.head > stride.token) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < tokens; ++t) f(h, t);
    }
  } else {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) f(h, t);
    }
  }
}

template <class T>
static inline Accumulator<T> sum_of_squares(const T* x, int64_t n) {
  using A = Accumulator<T>;
  return sweep_sum<A>(n, [&](int64_t i, int lanes) {
    const Vec<A> v = load_upto(x + i, lanes);
    return v * v;
  });
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
