// The products of attention_decode.cpp: a few rows of queries against a block of keys that lies in the nearest cache.
#pragma once

#include "attention_pairs.h"
#include "attention_tile.h"
#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// Head elements come two vectors at a time, in the order that costs least to load; queries are packed in that order
// and results put back from it.
template <class A>
constexpr int kPair = 2 * kLanes<A>;

template <class A>
struct VectorPair {
  Vec<A> first, second;
};
template <class S>
inline VectorPair<Accumulator<S>> load_pair(const S* p) {
  return {load(p), load(p + kLanes<Accumulator<S>>)};
}
// Even elements, then odd ones: a shift and a mask instead of two shuffles and two shifts.
inline VectorPair<float> load_pair(const bf16* p) {
  VecU32 both;
  std::memcpy(&both, p, sizeof both);
  return {(Vec<float>)(both << 16), (Vec<float>)(both & 0xffff0000u)};
}

// Rows that will be met soon: asked for while there is arithmetic to do, so that it need not wait for them. Too many at
// once would wait for one another.
struct Ahead {
  uintptr_t at = 0;
  int64_t stride = 0;
  int rows = 0, lines = 0;

  template <class S>
  Ahead(const S* first, int64_t stride, int64_t width, int rows)
      : at(uintptr_t(first)),
        stride(stride * int64_t(sizeof(S))),
        rows(rows),
        lines(int((width * int64_t(sizeof(S)) + 63) / 64)) {}
  Ahead() = default;
  void ask(int row) const {
    for (int i = 0; i < lines; ++i) __builtin_prefetch((const void*)(at + uintptr_t(row * stride + 64 * i)));
  }
  // Shares [first, last) of n.
  Ahead share(int first, int last, int n) const {
    Ahead part = *this;
    part.at += uintptr_t(rows * first / n * stride);
    part.rows = rows * last / n - rows * first / n;
    return part;
  }
  // The first `count` rows, which are then no longer ahead.
  void ask_first(int count) {
    for (; count > 0 && rows > 0; --count, --rows, at += uintptr_t(stride)) ask(0);
  }
};

// Lane i of the result: the sum of x[i].
template <class A, int kHalf = kLanes<A> / 2>
inline Vec<A> sums_of(Vec<A> (&x)[kLanes<A>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kHalf; ++i) {
    swap_halves<A, kHalf>(x[i], x[i + kHalf], std::make_index_sequence<kLanes<A>>());
    x[i] += x[i + kHalf];
  }
  if constexpr (kHalf > 1) return sums_of<A, kHalf / 2>(x);
  return x[0];
}

// scores[r * score_row + key] = q[r] . k[key], lanes along the head. Keys are taken a few at a time, so up to kLanes
// scores past the last are written.
template <class S, int kRows>
inline void score_along_head(const Accumulator<S>* q, const S* k, int64_t stride, int count, int64_t width,
                             Accumulator<S>* scores, int score_row, Ahead ahead) {
  using A = Accumulator<S>;
  constexpr int kKeys = kLanes<A> / kRows;
  for (int key = 0; key < count; key += kKeys) {
    Vec<A> sum[kLanes<A>];
    const S* x[kKeys];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<A>; ++i) sum[i] = Vec<A>{};
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) x[i] = k + (key + i < count ? key + i : count - 1) * stride;
    for (int i = 0; i < kKeys; ++i) ahead.ask(key + i);
    for (int64_t d = 0; d < width; d += kPair<A>) {
#pragma GCC unroll 16
      for (int i = 0; i < kKeys; ++i) {
        const VectorPair<A> pair = load_pair(x[i] + d);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          sum[r * kKeys + i] += pair.first * load(q + r * width + d);
          sum[r * kKeys + i] += pair.second * load(q + r * width + d + kLanes<A>);
        }
      }
    }
    const Vec<A> all = sums_of<A>(sum);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      std::memcpy(scores + r * score_row + key, (const A*)&all + r * kKeys, kKeys * sizeof(A));
  }
}

// scores[key * score_key + row] for kVectors vectors of rows, lanes along the rows; q is [width][q_stride].
template <class A, int kVectors>
struct ScoreAlongRows {
  const A* q;
  int64_t q_stride;
  const A* k;
  int64_t stride, width;
  A* scores;
  int score_key;
  Ahead ahead;

  template <int kKeys>
  void block(int64_t key) {
    for (int i = 0; i < kKeys; ++i) ahead.ask(int(key) + i);
    Vec<A> s[kKeys][kVectors];
    clear<A, kVectors, kKeys>(s);
    multiply_add<A, kVectors, kKeys>(s, k + key * stride, stride, 1, q, q_stride, width);
    store_block<A, kVectors, kKeys>(scores + key * score_key, score_key, s);
  }
};

// sums[r][d...] += sum over keys of weights[r * kWeightRow + key * kWeightKey] * v[key][d...].
template <class S, int kRows, int kPairs, int kWeightRow, int kWeightKey>
inline void add_values_at(Accumulator<S>* sums, int64_t sum_row, const Accumulator<S>* weights, const S* v,
                          int64_t stride, int count, Ahead ahead) {
  using A = Accumulator<S>;
  constexpr int kAtOnce = kRows < 4 ? 1 : 8;  // keys between one asking and the next: few rows leave little time
  const int asked = (ahead.rows * kAtOnce + count - 1) / count;
  Vec<A> c[kRows][2 * kPairs];
  load_block<A, 2 * kPairs, kRows>(c, sums, sum_row);
  for (int key = 0; key < count;) {
    const int end = count - key < kAtOnce ? count : key + kAtOnce;
    ahead.ask_first(asked);
    for (; key < end; ++key, v += stride, weights += kWeightKey) {
      VectorPair<A> x[kPairs];
#pragma GCC unroll 4
      for (int j = 0; j < kPairs; ++j) x[j] = load_pair(v + j * kPair<A>);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec<A> w = splat(weights[r * kWeightRow]);
#pragma GCC unroll 4
        for (int j = 0; j < kPairs; ++j) {
          c[r][2 * j] += w * x[j].first;
          c[r][2 * j + 1] += w * x[j].second;
        }
      }
    }
  }
  store_block<A, 2 * kPairs, kRows>(sums, sum_row, c);
}

template <class S, int kRows, int kWeightRow, int kWeightKey>
__attribute__((noinline)) void add_values(Accumulator<S>* sums, int64_t width, const Accumulator<S>* weights,
                                          const S* v, int64_t stride, int count, Ahead ahead) {
  using A = Accumulator<S>;
  // Eight accumulators hide the latency of an FMA; more rows leave fewer registers for columns.
  constexpr int kPairs = kRows == 1 ? 4 : kRows <= 3 || kManyRegisters ? 2 : 1;
  const int steps = int(width / kPair<A>);
  int64_t d = 0;
  const auto take = [&]<int kTaken>() {
    const int step = int(d / kPair<A>);
    add_values_at<S, kRows, kTaken, kWeightRow, kWeightKey>(sums + d, width, weights, v + d, stride, count,
                                                            ahead.share(step, step + kTaken, steps));
    d += kTaken * kPair<A>;
  };
  while (d + kPairs * kPair<A> <= width) take.template operator()<kPairs>();
  if constexpr (kPairs > 1)
    while (d < width) take.template operator()<1>();
}

// Whether bfloat16 pairs meet in one instruction where lanes are rows.
template <class S>
constexpr bool kDots = false;
#if defined(VIDEOAR_BF16_DOT)
template <>
constexpr bool kDots<bf16> = true;

// As ScoreAlongRows; q is pairs [width / 2][q_stride], and scores are scaled here: neither side is rounded again.
template <int kVectors>
struct ScorePairs {
  const uint32_t* q;
  int64_t q_stride;
  const bf16* k;
  int64_t stride, width;
  float* scores;
  int score_key;
  float scale;
  Ahead ahead;

  template <int kKeys>
  void block(int64_t key) {
    for (int i = 0; i < kKeys; ++i) ahead.ask(int(key) + i);
    Vec<float> s[kKeys][kVectors];
    clear<float, kVectors, kKeys>(s);
    dot_add<kVectors, kKeys>(s, k + key * stride, stride, 2, q, q_stride, width / 2);
#pragma GCC unroll 16
    for (int m = 0; m < kKeys; ++m)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) s[m][j] *= scale;
    store_block<float, kVectors, kKeys>(scores + key * score_key, score_key, s);
  }
};

// Two rows of values as pairs, in load_pair's order; a null row counts as zeros.
inline void pair_values(uint32_t* pairs, const bf16* low, const bf16* high, int64_t width) {
  for (int64_t d = 0; d < width; d += kPair<float>) {
    VecU32 a, b{};
    std::memcpy(&a, low + d, sizeof a);
    if (high) std::memcpy(&b, high + d, sizeof b);
    store_pairs(pairs + d, (a & 0xffffu) | b << 16);
    store_pairs(pairs + d + kLanes<float>, a >> 16 | (b & 0xffff0000u));
  }
}

// sums[r][:] += sum over pairs of keys of weights[t * weight_step + r] . values[t][:]
template <int kRows>
__attribute__((noinline)) void add_value_pairs(float* sums, int64_t width, const uint32_t* weights, int weight_step,
                                               const uint32_t* values, int count) {
  const auto take = [&]<int kVectors>(int64_t d) {
    Vec<float> c[kRows][kVectors];
    load_block<float, kVectors, kRows>(c, sums + d, width);
    dot_add<kVectors, kRows>(c, weights, 1, weight_step, values + d, width, count);
    store_block<float, kVectors, kRows>(sums + d, width, c);
  };
  int64_t d = 0;
  for (; d + 2 * kPair<float> <= width; d += 2 * kPair<float>) take.template operator()<4>(d);
  if (d < width) take.template operator()<2>(d);
}
#endif

// Rows whose sums of values are kept in registers together.
constexpr int kValueRows = 6;

template <class F>
inline void with_rows(int rows, const F& f) {
  switch (rows) {
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    case 5: return f.template operator()<5>();
    default: return f.template operator()<6>();
  }
}

constexpr int kMostRows = 32;  // rows that meet a block together

// f(first, rows) for the rows of every run of set bits, at most kMostRows at a time and whole vectors where possible.
template <class A, class F>
void for_rows(uint64_t lanes, int64_t group, const F& f) {
  while (lanes) {
    const int begin = __builtin_ctzll(lanes);
    const uint64_t above = ~(lanes >> begin);
    const int n = above ? __builtin_ctzll(above) : 64;
    const int64_t rows = n * group, parts = (rows + kMostRows - 1) / kMostRows;
    const int64_t most = ((rows + parts - 1) / parts + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
    for (int64_t r = 0; r < rows; r += most) f(begin * group + r, int(rows - r < most ? rows - r : most));
    lanes = begin + n >= 64 ? 0 : lanes >> (begin + n) << (begin + n);
  }
}

// A row in the order of load_pair<S>, times `factor`, zero from head_dim to `width`.
template <class T, class S>
inline void pack_row(Accumulator<T>* packed, const T* row, int64_t head_dim, int64_t width, Accumulator<T> factor) {
  using A = Accumulator<T>;
  int64_t d = 0;
  if constexpr (sizeof(S) == sizeof(T)) {
    for (; d + kPair<A> <= head_dim; d += kPair<A>) {
      const VectorPair<A> x = load_pair(row + d);
      store(packed + d, x.first * factor);
      store(packed + d + kLanes<A>, x.second * factor);
    }
  }
  for (; d + kLanes<A> <= head_dim; d += kLanes<A>) store(packed + d, load(row + d) * factor);
  for (; d < width; ++d) packed[d] = d < head_dim ? to_float(row[d]) * factor : A(0);
}

inline void store_pair(bf16* p, const VectorPair<float>& x) {
  const auto rounded = [](Vec<float> v) {
    const VecU32 bits = (VecU32)v;
    return (VecU32)((v != v) ? (bits | 0x400000) : bits + 0x7fff + (bits >> 16 & 1));
  };
  const VecU32 both = rounded(x.first) >> 16 | (rounded(x.second) & 0xffff0000u);
  std::memcpy(p, &both, sizeof both);
}
template <class T>
inline void store_pair(T* p, const VectorPair<Accumulator<T>>& x) {
  store(p, x.first);
  store(p + kLanes<Accumulator<T>>, x.second);
}

// The way back, rounding once.
template <class T, class S>
inline void unpack_row(T* row, const Accumulator<T>* packed, int64_t head_dim, Accumulator<T> factor) {
  using A = Accumulator<T>;
  int64_t d = 0;
  if constexpr (sizeof(S) == sizeof(T)) {
    for (; d + kPair<A> <= head_dim; d += kPair<A>)
      store_pair(row + d, {load(packed + d) * factor, load(packed + d + kLanes<A>) * factor});
  }
  for (; d + kLanes<A> <= head_dim; d += kLanes<A>) store(row + d, load(packed + d) * factor);
  for (; d < head_dim; ++d) row[d] = from_float<T>(packed[d] * factor);
}

}  // namespace
}  // namespace VIDEOAR_ISA
}  // namespace videoar
