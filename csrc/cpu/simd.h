// SIMD as GCC vector types, so that one source serves every instruction set: Vec<float> and Vec<double> of the
// ISA's width, loads and stores that convert bfloat16 and float16, and the few functions kernels need.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// VIDEOAR_WIDE: 64-byte vectors and 32 registers. VIDEOAR_BF16_DOT: dot_pairs exists. Both hold in emulating builds
// too (VIDEOAR_EMULATE_AVX512), where AVX2 runs the same source in halves, so that it can be tested on any machine.
#if defined(__AVX512F__) || defined(VIDEOAR_EMULATE_AVX512)
#define VIDEOAR_WIDE 1
#endif
#if defined(__AVX512BF16__) || defined(VIDEOAR_EMULATE_AVX512_BF16)
#define VIDEOAR_BF16_DOT 1
#endif

#include "dtype.h"

namespace videoar {
namespace VIDEOAR_ISA {

#if defined(VIDEOAR_WIDE)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A>
struct VecType;
template <>
struct VecType<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecType<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vec = typename VecType<A>::type;
template <class A>
using Mask = typename VecType<A>::mask;
template <class A>
constexpr int kLanes = kVectorBytes / int(sizeof(A));

typedef uint32_t VecU32 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t VecU16 __attribute__((vector_size(kVectorBytes / 2)));

template <class A>
static inline Vec<A> broadcast(A value) {
  return Vec<A>{} + value;
}

// Halves are added to each other, so that the additions of all lanes take a few steps and not one each.
template <class A>
static inline A reduce_add(Vec<A> v) {
  typedef A Half __attribute__((vector_size(kVectorBytes / 2)));
  Half halves[2];
  std::memcpy(halves, &v, sizeof v);
  const Half sum = halves[0] + halves[1];
  A lanes[kLanes<A> / 2];
  if constexpr (kLanes<A> > 4) {
    typedef A Quarter __attribute__((vector_size(kVectorBytes / 4)));
    Quarter quarters[2];
    std::memcpy(quarters, &sum, sizeof sum);
    const Quarter quarter = quarters[0] + quarters[1];
    A total = 0;
    if constexpr (kLanes<A> == 16) {
      total = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
    } else {
      total = quarter[0] + quarter[1];
    }
    return total;
  }
  std::memcpy(lanes, &sum, sizeof sum);
  A total = lanes[0];
  for (int i = 1; i < kLanes<A> / 2; ++i) total += lanes[i];
  return total;
}

template <class A>
static inline A reduce_max(Vec<A> v) {
  A best = v[0];
  for (int i = 1; i < kLanes<A>; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// b where either is NaN.
template <class A>
static inline Vec<A> vmax(Vec<A> a, Vec<A> b) {
  return a > b ? a : b;
}
template <class A>
static inline Vec<A> vmin(Vec<A> a, Vec<A> b) {
  return a < b ? a : b;
}
#if defined(__AVX512F__) || (defined(__AVX__) && !defined(VIDEOAR_WIDE))
// GCC makes a compare and a blend of the above where one side is a constant.
template <>
inline Vec<float> vmax<float>(Vec<float> a, Vec<float> b) {
#if defined(VIDEOAR_WIDE)
  return (Vec<float>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#else
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
#endif
}
template <>
inline Vec<float> vmin<float>(Vec<float> a, Vec<float> b) {
#if defined(VIDEOAR_WIDE)
  return (Vec<float>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#else
  return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b);
#endif
}
#endif

// Scalar conversions; the rounding is to nearest, ties to even, in both.
static inline float to_float(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
static inline float to_float(f16 x) {
#if defined(__F16C__) || defined(__AVX512F__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  uint32_t bits;
  if (rest >= 0x7c00) {
    bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
  } else if (rest >= 0x400) {
    bits = sign | ((rest << 13) + 0x38000000);
  } else {
    const float tiny = float(rest) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &tiny, 4);
    bits |= sign;
  }
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
#endif
}
static inline float to_float(float x) { return x; }
static inline double to_float(double x) { return x; }

template <class T>
static inline T from_float(Accumulator<T> x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline double from_float<double>(double x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return bf16{uint16_t(bits >> 16 | 0x40)};
  return bf16{uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline f16 from_float<f16>(float x) {
#if defined(__F16C__) || defined(__AVX512F__)
  return f16{uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return f16{uint16_t(sign | 0x7e00)};
  if (bits >= 0x477ff000) return f16{uint16_t(sign | 0x7c00)};
  if (bits < 0x38800000) {
    // Adding 0.5 lines the subnormal up with the float's last bits, rounding on the way.
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    uint32_t shifted;
    std::memcpy(&shifted, &magnitude, 4);
    return f16{uint16_t(sign | (shifted - 0x3f000000))};
  }
  return f16{uint16_t(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13))};
#endif
}

// Unaligned loads of kLanes elements, widened to the accumulator type.
static inline Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline Vec<float> load(const bf16* p) {
#if defined(__AVX512F__)
  const __m512i raw = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256((const __m256i*)p));
  return (Vec<float>)_mm512_maskz_slli_epi32(0xffff, raw, 16);
#elif defined(__AVX2__) && !defined(VIDEOAR_WIDE)
  return (Vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  VecU16 raw;
  std::memcpy(&raw, p, sizeof raw);
  return (Vec<float>)(__builtin_convertvector(raw, VecU32) << 16);
#endif
}
static inline Vec<float> load(const f16* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
#elif defined(VIDEOAR_WIDE)
  const __m256 halves[2] = {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
                            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
  Vec<float> v;
  std::memcpy(&v, halves, sizeof v);
  return v;
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

static inline void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }
static inline void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }
// Rounded to bfloat16 in the upper half of each lane; the lower half is garbage. Adding to a NaN would carry into its
// exponent; one whose upper half holds no payload bit becomes a quiet one.
static inline VecU32 round_to_upper_half(Vec<float> v) {
  const VecU32 bits = (VecU32)v, ordered = (VecU32)(v == v);
  return (bits + ((0x7fff + (bits >> 16 & 1)) & ordered)) | (0x400000 & ~ordered);
}
static inline void store(bf16* p, Vec<float> v) {
  const VecU32 wide = round_to_upper_half(v) >> 16;
#if defined(__AVX2__) && !defined(VIDEOAR_WIDE)
  const __m128i low = _mm256_castsi256_si128((__m256i)wide), high = _mm256_extracti128_si256((__m256i)wide, 1);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(low, high));
#else
  const VecU16 raw = __builtin_convertvector(wide, VecU16);
  std::memcpy(p, &raw, sizeof raw);
#endif
}
static inline void store(f16* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p,
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(VIDEOAR_WIDE)
  __m256 halves[2];
  std::memcpy(halves, &v, sizeof v);
  for (int i = 0; i < 2; ++i)
    _mm_storeu_si128((__m128i*)(p + 8 * i), _mm256_cvtps_ph(halves[i], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) p[i] = from_float<f16>(v[i]);
#endif
}

// 2 * kLanes<float> bfloat16 as the vectors of the even and of the odd ones: neighbours share a 32-bit word, so it
// takes no shuffle to part or to join them.
struct Pairs {
  Vec<float> even, odd;
};
static inline Pairs load_pairs(const bf16* p) {
  VecU32 words;
  std::memcpy(&words, p, sizeof words);
  return {(Vec<float>)(words << 16), (Vec<float>)(words & 0xffff0000u)};
}
// The lower half of a NaN must be 0, as it is where bfloat16 made it: rounding then cannot carry into the exponent.
static inline void store_pairs(bf16* p, Pairs v) {
  const VecU32 even = (VecU32)v.even, odd = (VecU32)v.odd;
  const VecU32 low = (even + (0x7fff + (even >> 16 & 1))) >> 16;
  const VecU32 high = odd + (0x7fff + (odd >> 16 & 1));
#if defined(__AVX2__) && !defined(VIDEOAR_WIDE)
  const VecU32 words = (VecU32)_mm256_blend_epi16((__m256i)low, (__m256i)high, 0xaa);
#else
  const VecU32 words = low | (high & 0xffff0000u);
#endif
  std::memcpy(p, &words, sizeof words);
}

#if defined(VIDEOAR_BF16_DOT)
// sum + a.low * b.low + a.high * b.high in every lane, of bfloat16 pairs; subnormals count as zero in hardware.
static inline Vec<float> dot_pairs(Vec<float> sum, VecU32 a, VecU32 b) {
#if defined(__AVX512BF16__)
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum += (Vec<float>)(a & 0xffff0000u) * (Vec<float>)(b & 0xffff0000u);
  return sum + (Vec<float>)(a << 16) * (Vec<float>)(b << 16);
#endif
}
#endif

// The first n < kLanes elements; the rest of the vector is zero, and nothing past p + n is touched.
template <class T>
static inline Vec<Accumulator<T>> load_partial(const T* p, int n) {
  T buffer[kLanes<Accumulator<T>>] = {};
  std::memcpy(buffer, p, size_t(n) * sizeof(T));
  return load(buffer);
}
template <class T>
static inline void store_partial(T* p, Vec<Accumulator<T>> v, int n) {
  T buffer[kLanes<Accumulator<T>>];
  store(buffer, v);
  std::memcpy(p, buffer, size_t(n) * sizeof(T));
}

// e^-x as a factor of about 1 and a power of two in the place of its exponent. x is clamped at 87, where e^-x is 1e-38.
struct ExpParts {
  Vec<float> factor;
  Mask<float> exponent;
};
static inline ExpParts exp_minus_parts(Vec<float> x) {
  const Vec<float> magic = broadcast(12582912.0f);
  x = vmin<float>(broadcast(87.0f), x);
  // e^-x = 2^n 2^f with |f| <= 1/2; adding 1.5 * 2^23 rounds to the nearest integer.
  const Vec<float> shifted = x * -1.44269504f + magic, f = x * -1.44269504f - (shifted - magic);
  Vec<float> y = f * 0.001327647245f + 0.009675540961f;
  y = y * f + 0.05550713092f;
  y = y * f + 0.2402212024f;
  y = y * f + 0.693146944f;
  y = y * f + 1.000000119f;
  return {y, (Mask<float>)shifted << 23};
}

// e^-x for x >= -87, within 2e-7 where x >= 0, else within 5e-6 of itself; NaN stays.
static inline Vec<float> exp_minus(Vec<float> x) {
  const ExpParts parts = exp_minus_parts(x);
  return (Vec<float>)((Mask<float>)parts.factor + parts.exponent);
}
static inline Vec<double> exp_minus(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(-x[i]);
  return x;
}

// 1 / sigmoid(x). In float32 infinite below -88.37, where the power of two is; x / inverse_sigmoid(x) is then 0, and
// NaN for infinite x, as in float64.
static inline Vec<float> inverse_sigmoid(Vec<float> x) {
  const ExpParts parts = exp_minus_parts(vmax<float>(broadcast(-88.5f), x));
  return 1 + parts.factor * (Vec<float>)(parts.exponent + 0x3f800000);
}
static inline Vec<double> inverse_sigmoid(Vec<double> x) { return 1 + exp_minus(x); }

}  // namespace VIDEOAR_ISA
}  // namespace videoar
