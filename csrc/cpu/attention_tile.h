// The parts that attention's forward and backward share. Lanes are the rows of a tile (queries forward, keys backward):
// no horizontal sums, ranges may start anywhere, and head_dim may be any number.
#pragma once

#include <cstdlib>
#include <utility>

#include "attention.h"
#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

template <class A>
constexpr int kTileRows = (sizeof(A) == 8 ? 1 : 3) * kLanes<A>;
#if defined(VIDEOAR_WIDE)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

// Rows of a register block beside kVectors vectors: accumulators fill the register file, less the operands.
template <int kVectors>
constexpr int kBlockRows = kManyRegisters ? (kVectors == 1   ? 16
                                             : kVectors == 2 ? 12
                                                             : 8)
                                          : (kVectors == 1   ? 8
                                             : kVectors == 2 ? 6
                                                             : 4);

template <class A>
inline Vec<A> splat(A x) {
  return x - Vec<A>{};
}

inline bool any(Mask<float> m) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)m) != 0;
#elif defined(VIDEOAR_WIDE)
  __m256 halves[2];
  std::memcpy(halves, &m, sizeof m);
  const __m256 both = _mm256_or_ps(halves[0], halves[1]);
  return !_mm256_testz_ps(both, both);
#elif defined(__AVX__)
  return !_mm256_testz_ps((__m256)m, (__m256)m);
#else
  return (m[0] | m[1] | m[2] | m[3]) != 0;
#endif
}
inline bool any(Mask<double> m) {
  int64_t bits = 0;
  for (int i = 0; i < kLanes<double>; ++i) bits |= m[i];
  return bits != 0;
}

// 2^x for x <= 127 to 2.7 units of rounding, exact at 0; 0 below -126.5, and NaN where x is.
inline Vec<float> exp2_weight(Vec<float> x) {
  x = vmax<float>(splat(-127.0f), x);
  // Adding 1.5 * 2^23 + 127 rounds to the nearest integer n and leaves n + 127, 2^n's exponent, in the low bits.
  const Vec<float> magic = splat(12583039.0f);
  const Vec<float> shifted = x + magic;
  const Vec<float> r = x - (shifted - magic);
  const Vec<float> r2 = r * r;
  const Vec<float> high = r * 1.3264727247187594e-3f + 9.671512688154485e-3f;
  const Vec<float> middle = r * 5.5507337435741044e-2f + 0.2402224208463509f;
  const Vec<float> low = r * 0.6931469775987168f + 1.0f;
  const Vec<float> y = (high * r2 + middle) * r2 + low;
  return y * (Vec<float>)((Mask<float>)shifted << 23);
}
__attribute__((noinline)) inline Vec<double> exp2_weight(Vec<double> x) {
  Vec<double> y{};
  for (int i = 0; i < kLanes<double>; ++i) y[i] = __builtin_exp2(x[i]);
  return y;
}

// Registers only: an initialiser or a rolled loop would put the block in memory.
template <class A, int kVectors, int kRows>
inline void clear(Vec<A> (&c)[kRows][kVectors]) {
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) c[m][j] = Vec<A>{};
}
template <class A, int kVectors, int kRows>
inline void load_block(Vec<A> (&c)[kRows][kVectors], const A* from, int64_t stride) {
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) c[m][j] = load(from + m * stride + j * kLanes<A>);
}
template <class A, int kVectors, int kRows>
inline void store_block(A* to, int64_t stride, const Vec<A> (&c)[kRows][kVectors]) {
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) store(to + m * stride + j * kLanes<A>, c[m][j]);
}

// Sums of parts err less than one long sum.
template <class A, int kVectors, int kRows>
inline void add_block(A* to, int64_t stride, const Vec<A> (&c)[kRows][kVectors]) {
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      A* at = to + m * stride + j * kLanes<A>;
      store(at, load(at) + c[m][j]);
    }
}

// c[m][:] += sum over t of a[m * row + t * step] * b[t * b_step + :], for kRows values of m and kVectors vectors.
template <class A, int kVectors, int kRows>
inline void multiply_add(Vec<A> (&c)[kRows][kVectors], const A* a, int64_t row, int64_t step, const A* b,
                         int64_t b_step, int64_t steps) {
  for (int64_t t = 0; t < steps; ++t, a += step, b += b_step) {
    Vec<A> right[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) right[j] = load(b + j * kLanes<A>);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const Vec<A> left = splat(a[m * row]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) c[m][j] += left * right[j];
    }
  }
}

// Calls f.template block<n>(start) for blocks that cover [start, count), the largest first. Not inlined: it holds the
// micro-kernels, which don't depend on the storage type, and would be compiled again for each.
template <int kRows, class F>
__attribute__((noinline)) void for_blocks(int64_t start, int64_t count, F& f) {
  for (; start + kRows <= count; start += kRows) f.template block<kRows>(start);
  if constexpr (kRows > 1) {
    if (start < count) for_blocks<(kRows > 4 ? 4 : 1)>(start, count, f);
  }
}

// The same for an f that does not change, with a block of their own for two or three that are left.
template <int kRows, class F>
__attribute__((noinline)) void for_tight_blocks(int count, const F& f) {
  int start = 0;
  for (; start + kRows <= count; start += kRows) f.template block<kRows>(start);
  if constexpr (kRows > 4) {
    for (; start + 4 <= count; start += 4) f.template block<4>(start);
  }
  switch (count - start) {
    case 3: return f.template block<3>(start);
    case 2: return f.template block<2>(start);
    case 1: return f.template block<1>(start);
  }
}

template <class A, int kVectors>
struct LaneMasks {
  Mask<A> m[kVectors];

  explicit LaneMasks(uint64_t lanes) {
    Mask<A> bit;
    for (int i = 0; i < kLanes<A>; ++i) bit[i] = 1 << i;
    for (int j = 0; j < kVectors; ++j) m[j] = ((Mask<A>{} + int(lanes >> (j * kLanes<A>)&0xffff)) & bit) != 0;
  }
};

template <class A>
__attribute__((noinline)) bool all_finite(const A* data, int64_t stride, int64_t count, int64_t width) {
  Vec<A> sum{};
  A rest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const A* x = data + i * stride;
    int64_t d = 0;
    for (; d + kLanes<A> <= width; d += kLanes<A>) sum += load(x + d) * A(0);
    for (; d < width; ++d) rest += x[d] * A(0);
  }
  return reduce_add<A>(sum) + rest == 0;
}

// `count` rows as the accumulator's type: the rows themselves where they are, else a copy in `buffer`.
template <class T>
inline const Accumulator<T>* widen(const T* rows, int64_t& stride, int64_t count, int64_t width,
                                   Accumulator<T>* buffer) {
  using A = Accumulator<T>;
  if constexpr (sizeof(T) == sizeof(A)) {
    return rows;
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const T* from = rows + i * stride;
      A* to = buffer + i * width;
      int64_t d = 0;
      for (; d + kLanes<A> <= width; d += kLanes<A>) store(to + d, load(from + d));
      for (; d < width; ++d) to[d] = to_float(from[d]);
    }
    stride = width;
    return buffer;
  }
}

// All bits in the first `count` lanes.
template <class A>
inline Mask<A> first_lanes(int64_t count) {
  Mask<A> lanes;
  for (int i = 0; i < kLanes<A>; ++i) lanes[i] = i < count ? -1 : 0;
  return lanes;
}

// Swaps the upper halves of each 2 * kHalf lanes of the top with the lower ones of the bottom. The masks are literals:
// GCC makes real shuffles of those only.
template <class A, int kHalf, size_t... kLane>
inline void swap_halves(Vec<A>& top, Vec<A>& bottom, std::index_sequence<kLane...>) {
  constexpr size_t n = kLanes<A>;
  const Vec<A> a = top, b = bottom;
  top = __builtin_shuffle(a, b, Mask<A>{(kLane & kHalf ? n + kLane - kHalf : kLane)...});
  bottom = __builtin_shuffle(a, b, Mask<A>{(kLane & kHalf ? n + kLane : kLane + kHalf)...});
}

// Transposes a square of vectors in place: halves are swapped across the diagonal, then quarters, and so on.
template <class A, int kHalf = kLanes<A> / 2>
inline void transpose(Vec<A> (&square)[kLanes<A>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<A>; ++i)
    if (!(i & kHalf)) swap_halves<A, kHalf>(square[i], square[i + kHalf], std::make_index_sequence<kLanes<A>>());
  if constexpr (kHalf > 1) transpose<A, kHalf / 2>(square);
}

// Transposes `count` rows into lanes: packed[d][lane] = factor * rows[lane][d], zero in lanes past `count`.
template <class T>
__attribute__((noinline)) void pack(Accumulator<T>* packed, int lanes, const T* rows, int64_t stride, int64_t count,
                                    int64_t width, Accumulator<T> factor) {
  using A = Accumulator<T>;
  for (int64_t first = 0; first < lanes; first += kLanes<A>) {
    const T* from[kLanes<A>];  // lanes past `count` repeat the last row, and are cleared
    for (int i = 0; i < kLanes<A>; ++i) from[i] = rows + (first + i < count ? first + i : count - 1) * stride;
    const Vec<A> factors = splat(factor);
    const Mask<A> live = first_lanes<A>(count - first);
    int64_t d = 0;
    for (; d + kLanes<A> <= width; d += kLanes<A>) {
      Vec<A> square[kLanes<A>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<A>; ++i) square[i] = load(from[i] + d);
      transpose<A>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<A>; ++i)
        store(packed + (d + i) * lanes + first, (Vec<A>)(live & (Mask<A>)(square[i] * factors)));
    }
    for (; d < width; ++d)
      for (int64_t i = first; i < first + kLanes<A>; ++i)
        packed[d * lanes + i] = i < count ? to_float(rows[i * stride + d]) * factor : A(0);
  }
}

// The way back, rounding once: rows[lane][d] = factors[lane] * packed[d][lane].
template <class T>
__attribute__((noinline)) void unpack(T* rows, int64_t stride, const Accumulator<T>* packed, int lanes, int64_t count,
                                      int64_t width, const Accumulator<T>* factors) {
  using A = Accumulator<T>;
  for (int64_t first = 0; first < count; first += kLanes<A>) {
    const int64_t last = first + kLanes<A> < count ? first + kLanes<A> : count;
    const Vec<A> factor = load(factors + first);
    int64_t d = 0;
    for (; d + kLanes<A> <= width; d += kLanes<A>) {
      Vec<A> square[kLanes<A>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<A>; ++i) square[i] = load(packed + (d + i) * lanes + first) * factor;
      transpose<A>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<A>; ++i)
        if (first + i < last) store(rows + (first + i) * stride + d, square[i]);
    }
    for (; d < width; ++d)
      for (int64_t i = first; i < last; ++i) rows[i * stride + d] = from_float<T>(packed[d * lanes + i] * factors[i]);
  }
}

// Scratch memory that a thread keeps from call to call, unless it is large.
struct Workspace {
  static constexpr size_t kKeep = size_t(8) << 20;
  void* data = nullptr;
  size_t size = 0;

  void* reserve(size_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = (bytes + 63) / 64 * 64;
      data = std::aligned_alloc(64, size);
    }
    return data;
  }
  void trim() {
    if (size <= kKeep) return;
    std::free(data);
    data = nullptr;
    size = 0;
  }
  ~Workspace() { std::free(data); }
};

// Hands out parts of a workspace, each a whole number of cache lines.
template <class A>
struct Carver {
  A* next;
  static constexpr int64_t rounded(int64_t count) {
    constexpr int64_t line = 64 / int64_t(sizeof(A));
    return (count + line - 1) / line * line;
  }
  A* take(int64_t count) {
    A* part = next;
    next += rounded(count);
    return part;
  }
};

template <class T>
inline const T* rows_of(const HeadRows<const void*>& x, int64_t b, int64_t h) {
  return (const T*)x.data + b * x.batch + h * x.head;
}
template <class T>
inline T* rows_of(const HeadRows<void*>& x, int64_t b, int64_t h) {
  return (T*)x.data + b * x.batch + h * x.head;
}

// The tile's rows as lane bits.
inline uint64_t live_lanes(const Tile& tile) {
  const int count = tile.end - tile.begin;
  return count == 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
}

// f.template operator()<n>() with n = the vectors that hold `lanes` lanes; float64 serves checks and keeps to one.
template <class A, class F>
inline void with_vectors(int lanes, const F& f) {
  if constexpr (sizeof(A) == 8) return f.template operator()<1>();
  const int vectors = (lanes + kLanes<A> - 1) / kLanes<A>;
  if (vectors <= 1) return f.template operator()<1>();
  if (vectors == 2) return f.template operator()<2>();
  return f.template operator()<3>();
}

}  // namespace
}  // namespace VIDEOAR_ISA
}  // namespace videoar
