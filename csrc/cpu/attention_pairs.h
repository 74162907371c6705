// Attention's products of bfloat16 pairs, where the CPU has them: a 32-bit word holds two elements that meet in one
// instruction, the lower half first. Two neighbours of head_dim for scores, two rows (keys or queries) for sums over
// rows. Two products at once, accumulated in float32; subnormals count as zero.
#pragma once

#include "attention_tile.h"

#if defined(VIDEOAR_BF16_DOT)

namespace videoar {
namespace VIDEOAR_ISA {

void attention_forward_pairs(const AttentionParams& p);  // bfloat16 only

namespace {

// Rows of a register block beside kVectors vectors: 16 accumulators hide the latency of two dots a cycle.
template <int kVectors>
constexpr int kPairRows = kVectors >= 3   ? 4
                          : kVectors == 2 ? 8
                                          : 16;

constexpr int kPairTile = 4 * kLanes<float>;  // rows of a tile
static_assert(kPairTile <= kMaxTile);

inline VecU32 load_pairs(const uint32_t* p) {
  VecU32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store_pairs(uint32_t* p, VecU32 v) { std::memcpy(p, &v, sizeof v); }

// Both elements at p, in every lane.
inline VecU32 splat_pair(const bf16* p) {
  uint32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return pair - VecU32{};
}
inline VecU32 splat_pair(const uint32_t* p) { return *p - VecU32{}; }

// Rounds to bfloat16 and pairs lane by lane; ties go away from zero, which no sum notices.
inline VecU32 to_pairs(Vec<float> low, Vec<float> high) {
  const VecU32 first = (VecU32)low + 0x8000, second = (VecU32)high + 0x8000;
  return first >> 16 | (second & 0xffff0000u);
}

// 2^x for x <= 127 to 3e-6, a hundredth of the rounding to bfloat16 that follows; exact at 0, 0 below -126.5.
inline Vec<float> exp2_coarse(Vec<float> x) {
  x = vmax<float>(splat(-127.0f), x);
  const Vec<float> magic = splat(12583039.0f);  // see exp2_weight
  const Vec<float> shifted = x + magic;
  const Vec<float> r = x - (shifted - magic);
  Vec<float> y = r * 9.582853168908417e-3f + 5.590642503645771e-2f;
  y = y * r + 0.24024098611259498f;
  y = y * r + 0.6931241933678396f;
  y = y * r + 1.0f;
  return y * (Vec<float>)((Mask<float>)shifted << 23);
}

constexpr uint32_t kPairOfOnes = 0x3f803f80;

// c[m][:] += sum over t of a[m * row + t * step] . b[t * b_step + :]. Pairs of a are read at two elements (`P` is bf16,
// strides in elements) or at a word (uint32_t, strides in words).
template <int kVectors, int kRows, class P>
inline void dot_add(Vec<float> (&c)[kRows][kVectors], const P* a, int64_t row, int64_t step, const uint32_t* b,
                    int64_t b_step, int64_t steps) {
  for (int64_t t = 0; t < steps; ++t, a += step, b += b_step) {
    VecU32 right[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) right[j] = load_pairs(b + j * kLanes<float>);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const VecU32 left = splat_pair(a + m * row);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) c[m][j] = dot_pairs(c[m][j], left, right[j]);
    }
  }
}

// f.template operator()<n>() with n = the vectors that hold `lanes` lanes, 1 to 4.
template <class F>
inline void with_pair_vectors(int lanes, const F& f) {
  const int vectors = (lanes + kLanes<float> - 1) / kLanes<float>;
  if (vectors <= 1) return f.template operator()<1>();
  if (vectors == 2) return f.template operator()<2>();
  if (vectors == 3) return f.template operator()<3>();
  return f.template operator()<4>();
}

// Words of a row of `width` elements; an odd width's last word has zero above.
inline int64_t pair_width(int64_t width) { return (width + 1) / 2; }

// A copy with a zero after an odd width, or rows where they lie if that is as good.
inline void copy_keys(bf16* to, const bf16* rows, int64_t row_stride, int64_t count, int64_t width) {
  const int64_t stride = 2 * pair_width(width);
  for (int64_t i = 0; i < count; ++i, to += stride) {
    std::memcpy(to, rows + i * row_stride, size_t(width) * sizeof(bf16));
    if (width % 2) to[width] = bf16{0};
  }
}

// Transposes rows into lanes: packed[t][lane] = (rows[lane][2t], rows[lane][2t + 1]), zero in lanes past `count`.
__attribute__((noinline)) inline void pack_pairs(uint32_t* packed, int lanes, const bf16* rows, int64_t stride,
                                                 int64_t count, int64_t width) {
  for (int64_t first = 0; first < lanes; first += kLanes<float>) {
    int64_t t = 0;
    for (; 2 * (t + kLanes<float>) <= width; t += kLanes<float>) {
      Vec<float> square[kLanes<float>];
      for (int i = 0; i < kLanes<float>; ++i) {
        square[i] = Vec<float>{};
        if (first + i < count) std::memcpy(&square[i], rows + (first + i) * stride + 2 * t, sizeof square[i]);
      }
      transpose<float>(square);
      for (int i = 0; i < kLanes<float>; ++i) store_pairs(packed + (t + i) * lanes + first, (VecU32)square[i]);
    }
    for (; 2 * t < width; ++t)
      for (int64_t i = first; i < first + kLanes<float>; ++i) {
        const bf16* row = rows + i * stride + 2 * t;
        const uint32_t low = i < count ? row[0].bits : 0, high = i < count && 2 * t + 1 < width ? row[1].bits : 0;
        packed[t * lanes + i] = low | high << 16;
      }
  }
}

// Interleaves two rows: packed[d] = (low[d], high[d]); a null row counts as zeros.
inline void pair_rows(uint32_t* packed, const bf16* low, const bf16* high, int64_t width) {
  int64_t d = 0;
  for (; d + kLanes<float> <= width; d += kLanes<float>) {
    const VecU32 zero{}, a = low ? (VecU32)load(low + d) : zero, b = high ? (VecU32)load(high + d) : zero;
    store_pairs(packed + d, a >> 16 | b);
  }
  for (; d < width; ++d) packed[d] = (low ? low[d].bits : 0u) | (high ? uint32_t(high[d].bits) << 16 : 0u);
}

}  // namespace
}  // namespace VIDEOAR_ISA
}  // namespace videoar

#endif
