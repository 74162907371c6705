// Between packed bits and vector lanes: eight elements a byte, little-endian.
#pragma once

#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace videoar {
namespace VIDEOAR_ISA {

static inline int64_t packed_bytes(int64_t dim) { return (dim + 7) / 8; }

// One bit per lane: its sign, so that all ones count as one and all zeros as zero.
static inline uint32_t lanes_to_bits(Mask<float> m) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)m);
#elif defined(__AVX2__) && !defined(VIDEOAR_WIDE)
  return uint32_t(_mm256_movemask_ps((__m256)m));
#elif defined(__x86_64__) && !defined(VIDEOAR_WIDE)
  return uint32_t(_mm_movemask_ps((__m128)m));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= (uint32_t(m[i]) >> 31) << i;
  return bits;
#endif
}
static inline uint32_t lanes_to_bits(Mask<double> m) {
#if defined(__AVX512F__)
  return _mm512_movepi64_mask((__m512i)m);
#elif defined(__AVX2__) && !defined(VIDEOAR_WIDE)
  return uint32_t(_mm256_movemask_pd((__m256d)m));
#elif defined(__x86_64__) && !defined(VIDEOAR_WIDE)
  return uint32_t(_mm_movemask_pd((__m128d)m));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<double>; ++i) bits |= uint32_t(uint64_t(m[i]) >> 63) << i;
  return bits;
#endif
}

template <class A>
static inline Mask<A> lane_numbers() {
  constexpr int kN = kLanes<A>;
  decltype(Mask<A>{}[0] + 0) number[kN];
  for (int i = 0; i < kN; ++i) number[i] = i;
  Mask<A> lanes;
  std::memcpy(&lanes, number, sizeof lanes);
  return lanes;
}

// All ones in lane i where bit i is set.
template <class A>
static inline Mask<A> bits_to_lanes(uint32_t bits) {
  const Mask<A> lane_bit = Mask<A>(Mask<A>{} + 1) << lane_numbers<A>();
  return (Mask<A>(Mask<A>{} + int32_t(bits)) & lane_bit) == lane_bit;
}

template <class A>
static inline Mask<A> first_lanes(int n) {
  return lane_numbers<A>() < n;
}

// Ones for the lanes that lie inside a token that has `rest` elements left.
template <class A>
static inline uint32_t inside_bits(int64_t rest) {
  return rest >= kLanes<A> ? (1u << kLanes<A>)-1 : (1u << rest) - 1;
}

// The bits of elements [j, j + lanes), j a multiple of lanes, of a token of `dim` bits.
template <class A>
static inline uint32_t read_bits(const uint8_t* bits, int64_t j, int64_t dim) {
  if (kLanes<A> <= 8) return uint32_t(bits[j >> 3]) >> (j & 7);
  const int64_t last = packed_bytes(dim) - 1, byte = j >> 3;
  return uint32_t(bits[byte]) | (byte < last ? uint32_t(bits[byte + 1]) << 8 : 0u);
}

// Same place; calls go up from j = 0, so the first write to a byte sets it. `value` has no bit at or past `dim`.
template <class A>
static inline void write_bits(uint8_t* bits, int64_t j, int64_t dim, uint32_t value) {
  const int64_t byte = j >> 3;
  if (kLanes<A> < 8) {
    const uint32_t shifted = value << (j & 7);
    bits[byte] = uint8_t((j & 7) == 0 ? shifted : bits[byte] | shifted);
    return;
  }
  bits[byte] = uint8_t(value);
  if (kLanes<A> > 8 && byte + 1 < packed_bytes(dim)) bits[byte + 1] = uint8_t(value >> 8);
}

template <class A>
static inline Vec<A> code_lanes(uint32_t bits, A amplitude) {
  return bits_to_lanes<A>(bits) ? broadcast(amplitude) : broadcast(-amplitude);
}

template <class T>
static inline Vec<Accumulator<T>> load_upto(const T* p, int64_t n) {
  return n >= kLanes<Accumulator<T>> ? load(p) : load_partial(p, int(n));
}
template <class T>
static inline void store_upto(T* p, Vec<Accumulator<T>> v, int64_t n) {
  if (n >= kLanes<Accumulator<T>>) {
    store(p, v);
  } else {
    store_partial(p, v, int(n));
  }
}

// 2^x within 2^-18, x clamped to +-126; NaN stays.
static inline Vec<float> coarse_exp2(Vec<float> x) {
  const Vec<float> magic = broadcast(12582912.0f);
  x = vmin<float>(broadcast(126.0f), vmax<float>(broadcast(-126.0f), x));
  const Vec<float> shifted = x + magic, f = x - (shifted - magic);
  Vec<float> y = f * 0.00957010191f + 0.0559178603f;
  y = y * f + 0.240247448f;
  y = y * f + 0.693121815f;
  y = y * f + 0.999999261f;
  return (Vec<float>)((Mask<float>)y + ((Mask<float>)shifted << 23));
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
