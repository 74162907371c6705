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

// bfloat16 neighbours are taken apart and joined as the two halves of a word, without a shuffle. In interleaved pairs
// they share a cosine; else the angles are parted as they are. Interleaved elements of other types are swapped, which
// takes a table with every value twice.
template <class T>
constexpr bool kInWords = std::is_same_v<T, bf16>;
template <class T, bool kInterleaved>
constexpr bool kSpread = kInterleaved && !kInWords<T>;
template <class T, bool kInterleaved>
constexpr bool kParted = !kInterleaved && kInWords<T>;

// Every 2 * kLanes elements of [p, p + n) sorted into those of even and those of odd index, as load_pairs has them.
template <class A>
static inline void part(A* p, int64_t n) {
  constexpr int64_t kN = kLanes<A>;
  for (int64_t i = 0; i < n; i += 2 * kN) {
    A sorted[2 * kN];
    for (int64_t j = 0; j < kN; ++j) sorted[j] = p[i + 2 * j], sorted[kN + j] = p[i + 2 * j + 1];
    std::memcpy(p + i, sorted, sizeof sorted);
  }
}

// Elements between the cosines and the sines of a row of words, and between the weights of even and of odd elements
// (not interleaved: of the halves).
template <bool kInterleaved>
static constexpr int64_t words_part(int64_t dim) {
  constexpr int64_t kStep = (kInterleaved ? 1 : 2) * kLanes<float>;
  return (dim / 2 + kStep - 1) / kStep * kStep;
}

// Cosines and sines of the tokens of one block, each row padded to whole vectors; `kPart`: to twice that, and parted.
template <class A, bool kPart = false>
class BlockAngles {
 public:
  // `spread`: the table holds a value for every element, not for every pair. No block has more tokens than `length`.
  BlockAngles(const RopeTableView& table, int64_t dim, bool spread, int64_t length = kRopeTokens)
      : table_(table),
        width_(spread ? dim : dim / 2),
        row_(kPart ? words_part<false>(dim) : padded<A>(width_)),
        buffer_((length < kRopeTokens ? length : kRopeTokens) * 2 * row_ + kLanes<A>) {}

  void fill(int64_t sample, int64_t first, int64_t count) const {
    for (int64_t t = 0; t < count; ++t) {
      const int32_t* index = table_.index + 3 * (sample * table_.batch_stride + first + t);
      A* cosines = (A*)this->cosines(t);
      copy(index, 0, cosines);
      copy(index, 1, cosines + row_);
      // The padding enters sums as 0 * padding, so it must be finite.
      for (int64_t i = width_; i < row_; ++i) cosines[i] = cosines[row_ + i] = 0;
      if constexpr (kPart) part(cosines, 2 * row_);
    }
  }

  const A* cosines(int64_t t) const { return buffer_.data() + t * 2 * row_; }
  const A* sines(int64_t t) const { return cosines(t) + row_; }
  int64_t row() const { return row_; }

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

// f(dim), the usual sizes of a head as constants: a row is so short that its loops' overhead counts.
template <class T, class F>
static inline void with_constant(int64_t dim, const F& f) {
  if constexpr (kInWords<T>) {
    if (dim == 64) return f(std::integral_constant<int64_t, 64>{});
    if (dim == 128) return f(std::integral_constant<int64_t, 128>{});
  }
  f(dim);
}

// The factors of a normed row: weight * rstd. Words take their weights from two places, of even and of odd elements.
template <class A>
struct RowScale {
  const A* weight;
  A rstd;

  Vec<A> operator()(Vec<A> v, int64_t i, int n) const { return v * rstd * load_upto(weight + i, n); }
  Pairs words(Pairs v, int64_t even, int64_t odd) const {
    return {v.even * (rstd * load(weight + even)), v.odd * (rstd * load(weight + odd))};
  }
};
struct Unscaled {
  template <class V>
  V operator()(V v, int64_t, int) const {
    return v;
  }
  Pairs words(Pairs v, int64_t, int64_t) const { return v; }
};

template <bool kInterleaved, class Scale>
[[gnu::always_inline]] static inline void rotate_words(const float* cosines, int64_t dim, const bf16* x, bf16* out,
                                                       const Scale& scale) {
  constexpr int64_t kN = kLanes<float>;
  const int64_t half = dim / 2, part = words_part<kInterleaved>(dim);
  const float* sines = cosines + part;
  if constexpr (kInterleaved) {
    const auto turn = [&](const bf16* from, bf16* to, int64_t i) {
      const Pairs v = scale.words(load_pairs(from), i, part + i);
      const Vec<float> c = load(cosines + i), s = load(sines + i);
      store_pairs(to, {v.even * c - v.odd * s, v.odd * c + v.even * s});
    };
    int64_t i = 0;
    for (; i + kN <= half; i += kN) turn(x + 2 * i, out + 2 * i, i);
    if (i < half) {
      bf16 rest[2 * kN] = {};
      std::memcpy(rest, x + 2 * i, size_t(dim - 2 * i) * sizeof(bf16));
      turn(rest, rest, i);
      std::memcpy(out + 2 * i, rest, size_t(dim - 2 * i) * sizeof(bf16));
    }
  } else {
    const auto turn = [&](const bf16* from_a, const bf16* from_b, bf16* to_a, bf16* to_b, int64_t i) {
      const Pairs a = scale.words(load_pairs(from_a), i, i + kN);
      const Pairs b = scale.words(load_pairs(from_b), part + i, part + i + kN);
      const Pairs c = {load(cosines + i), load(cosines + i + kN)}, s = {load(sines + i), load(sines + i + kN)};
      store_pairs(to_a, {a.even * c.even - b.even * s.even, a.odd * c.odd - b.odd * s.odd});
      store_pairs(to_b, {b.even * c.even + a.even * s.even, b.odd * c.odd + a.odd * s.odd});
    };
    int64_t i = 0;
    for (; i + 2 * kN <= half; i += 2 * kN) turn(x + i, x + half + i, out + i, out + half + i, i);
    if (i < half) {
      const size_t bytes = size_t(half - i) * sizeof(bf16);
      bf16 rest[2][2 * kN] = {};
      std::memcpy(rest[0], x + i, bytes), std::memcpy(rest[1], x + half + i, bytes);
      turn(rest[0], rest[1], rest[0], rest[1], i);
      std::memcpy(out + i, rest[0], bytes), std::memcpy(out + half + i, rest[1], bytes);
    }
  }
}

// out = R scale(x) for one head; out may be x.
template <class T, bool kInterleaved, class Scale>
[[gnu::always_inline]] static inline void rotate_row(const Accumulator<T>* cosines, const Accumulator<T>* sines,
                                                     int64_t dim, const T* x, T* out, const Scale& scale) {
  if constexpr (kInWords<T>) {
    rotate_words<kInterleaved>(cosines, dim, x, out, scale);
  } else {
    rotate<Accumulator<T>, kInterleaved>(
        cosines, sines, dim, [&](int64_t i, int n) { return scale(load_upto(x + i, n), i, n); },
        [&](int64_t i, Vec<Accumulator<T>> v, int n) { store_upto(out + i, v, n); });
  }
}

// The rows of a block in the order in which memory is laid out: `inner` of them `step` apart, `outer` times.
struct BlockOrder {
  bool heads_inside;
  int64_t outer, inner;

  BlockOrder(int64_t heads, int64_t tokens, const RopeStrides& x)
      : heads_inside(x.head <= x.token), outer(heads_inside ? tokens : heads), inner(heads_inside ? heads : tokens) {}
  int64_t step(const RopeStrides& s) const { return heads_inside ? s.head : s.token; }
  int64_t at(const RopeStrides& s, int64_t o, int64_t i) const {
    return o * (heads_inside ? s.token : s.head) + i * step(s);
  }
};

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

template <class T>
[[gnu::always_inline]] static inline void prefetch_row(const T* row, int64_t dim) {
  for (int64_t i = 0; i < dim * int64_t(sizeof(T)); i += 64) __builtin_prefetch((const char*)row + i);
}

template <class T>
[[gnu::always_inline]] static inline Accumulator<T> sum_of_squares(const T* x, int64_t n) {
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
