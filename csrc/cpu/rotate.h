// Rotating and norming one head at a time, and the order in which blocks of tokens are visited.
#pragma once

#include <cstring>
#include <type_traits>

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

// bfloat16 neighbours are rotated as the two halves of a word, with one cosine for both; other types swap them, which
// takes a table with every value twice.
template <class T, bool kInterleaved>
constexpr bool kInPairs = kInterleaved && std::is_same_v<T, bf16>;

// Cosines and sines of the tokens of one block, each row padded to whole vectors.
template <class A>
class BlockAngles {
 public:
  // `spread`: the table holds a value for every element, not for every pair. No block has more tokens than `length`.
  BlockAngles(const RopeTableView& table, int64_t dim, bool spread, int64_t length = kRopeTokens)
      : table_(table),
        width_(spread ? dim : dim / 2),
        row_(padded<A>(width_)),
        buffer_((length < kRopeTokens ? length : kRopeTokens) * 2 * row_ + kLanes<A>) {}

  void fill(int64_t sample, int64_t first, int64_t count) const {
    for (int64_t t = 0; t < count; ++t) {
      const int32_t* index = table_.index + 3 * (sample * table_.batch_stride + first + t);
      A* cosines = (A*)this->cosines(t);
      copy(index, 0, cosines);
      copy(index, 1, cosines + row_);
      // The padding enters sums as 0 * padding, so it must be finite.
      for (int64_t i = width_; i < row_; ++i) cosines[i] = cosines[row_ + i] = 0;
    }
  }

  const A* cosines(int64_t t) const { return buffer_.data() + t * 2 * row_; }
  const A* sines(int64_t t) const { return cosines(t) + row_; }

 private:
  // Whole vectors, axis after axis: each overwrites what the one before it wrote too far.
  void copy(const int32_t* index, int64_t half, A* out) const {
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t width = table_.width[axis];
      const A* row = (const A*)table_.rows[axis] + (2 * index[axis] + half) * width;
      for (int64_t i = 0; i < width; i += kLanes<A>) store(out + i, load(row + i));
      out += width;
    }
  }

  const RopeTableView& table_;
  int64_t width_, row_;
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

// The factors of a normed row: weight * rstd, the weights of a row in pairs as those of the even elements, padded to
// whole vectors, and then those of the odd ones.
template <class A>
struct RowScale {
  const A* weight;
  A rstd;
  int64_t odd;

  Vec<A> operator()(Vec<A> v, int64_t i, int n) const { return v * rstd * load_upto(weight + i, n); }
  Pairs operator()(Pairs v, int64_t i) const {
    return {v.even * (rstd * load(weight + i)), v.odd * (rstd * load(weight + odd + i))};
  }
};
struct Unscaled {
  template <class A>
  A operator()(A v, int64_t, int = 0) const {
    return v;
  }
};

// out = R scale(x) for one head; out may be x.
template <class T, bool kInterleaved, class Scale>
static inline void rotate_row(const Accumulator<T>* cosines, const Accumulator<T>* sines, int64_t dim, const T* x,
                              T* out, const Scale& scale) {
  using A = Accumulator<T>;
  if constexpr (kInPairs<T, kInterleaved>) {
    const int64_t half = dim / 2;
    const auto turned = [&](Pairs v, int64_t i) -> Pairs {
      v = scale(v, i);
      const Vec<A> c = load(cosines + i), s = load(sines + i);
      return {v.even * c - v.odd * s, v.odd * c + v.even * s};
    };
    int64_t i = 0;
    for (; i + kLanes<A> <= half; i += kLanes<A>) store_pairs(out + 2 * i, turned(load_pairs(x + 2 * i), i));
    if (i < half) {
      T rest[2 * kLanes<A>] = {};
      std::memcpy(rest, x + 2 * i, size_t(dim - 2 * i) * sizeof(T));
      store_pairs(rest, turned(load_pairs(rest), i));
      std::memcpy(out + 2 * i, rest, size_t(dim - 2 * i) * sizeof(T));
    }
  } else {
    rotate<A, kInterleaved>(
        cosines, sines, dim, [&](int64_t i, int n) { return scale(load_upto(x + i, n), i, n); },
        [&](int64_t i, Vec<A> v, int n) { store_upto(out + i, v, n); });
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

// f(block's first token, its tokens, sample, first head, last head) for items [begin, end) of blocks x heads.
template <class F>
static inline void each_head_block(int64_t begin, int64_t end, const RopeSizes& size, const F& f) {
  while (begin < end) {
    const int64_t block = begin / size.heads, head = begin % size.heads, rest = head + end - begin;
    const int64_t last = rest < size.heads ? rest : size.heads;
    each_block(block, block + 1, size.length,
               [&](int64_t first, int64_t tokens, int64_t sample) { f(first, tokens, sample, head, last); });
    begin += last - head;
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

// Fetches the row that each_row visits `kAhead` rows after (h, t): a block's rows jump from head to head, where the
// hardware's own prefetching starts anew.
template <class T>
static inline void prefetch_ahead(const T* x0, int64_t h, int64_t t, int64_t heads, int64_t tokens, int64_t dim,
                                  const RopeStrides& stride) {
  constexpr int64_t kAhead = 16;
  if (stride.head > stride.token) {
    t += kAhead;
    if (t >= tokens) t -= tokens, ++h;
  } else {
    h += kAhead;
    if (h >= heads) h -= heads, ++t;
  }
  if (h >= heads || t >= tokens) return;
  const char* row = (const char*)(x0 + h * stride.head + t * stride.token);
  for (int64_t i = 0; i < dim * int64_t(sizeof(T)); i += 64) __builtin_prefetch(row + i);
}

template <class T>
static inline Accumulator<T> sum_of_squares(const T* x, int64_t n) {
  using A = Accumulator<T>;
  if constexpr (std::is_same_v<T, bf16>) {
    constexpr int64_t kStep = 2 * kLanes<A>;
    Vec<A> sums[4] = {};
    int64_t i = 0;
    const auto add = [&](const T* p, int at) {
      const Pairs v = load_pairs(p);
      sums[at] += v.even * v.even;
      sums[at + 1] += v.odd * v.odd;
    };
    for (; i + 2 * kStep <= n; i += 2 * kStep) add(x + i, 0), add(x + i + kStep, 2);
    for (; i < n; i += kStep) {
      T rest[kStep] = {};
      std::memcpy(rest, x + i, size_t(n - i < kStep ? n - i : kStep) * sizeof(T));
      add(rest, 0);
    }
    return reduce_add<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  } else {
    return sweep_sum<A>(n, [&](int64_t i, int lanes) {
      const Vec<A> v = load_upto(x + i, lanes);
      return v * v;
    });
  }
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
