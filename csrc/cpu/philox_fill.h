// Many Philox blocks side by side: one counter per 64-bit lane.
#pragma once

#include "../philox.h"
#include "bit_lanes.h"
#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace videoar {
namespace VIDEOAR_ISA {

typedef uint64_t VecU64 __attribute__((vector_size(kVectorBytes)));
constexpr int kPhiloxLanes = kVectorBytes / 8;

// The 64-bit products of the lanes' low halves.
static inline VecU64 multiply_low_halves(VecU64 a, VecU64 b) {
#if defined(__AVX512F__)
  return (VecU64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(VIDEOAR_WIDE)
  return (VecU64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__) && !defined(VIDEOAR_WIDE)
  return (VecU64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

static inline VecU64 lane_numbers() {
  uint64_t number[kPhiloxLanes];
  for (int i = 0; i < kPhiloxLanes; ++i) number[i] = uint64_t(i);
  VecU64 lanes;
  std::memcpy(&lanes, number, sizeof lanes);
  return lanes;
}

// Upper halves of c0 and c2 hold garbage that multiply_low_halves ignores, so no round needs a mask.
struct PhiloxLanes {
  VecU64 c0, c1, c2, c3;

  PhiloxLanes(uint64_t block, uint64_t offset) {
    const VecU64 index = lane_numbers() + block;
    c0 = index;
    c1 = index >> 32;
    c2 = VecU64{} + uint32_t(offset);
    c3 = VecU64{} + (offset >> 32);
  }
  void round(uint32_t key0, uint32_t key1) {
    const VecU64 product0 = multiply_low_halves(c0, VecU64{} + kPhiloxMultiplier0);
    const VecU64 product1 = multiply_low_halves(c2, VecU64{} + kPhiloxMultiplier1);
    c0 = (product1 >> 32) ^ c1 ^ (VecU64{} + key0);
    c2 = (product0 >> 32) ^ c3 ^ (VecU64{} + key1);
    c1 = product1;
    c3 = product0;
  }
  void write(uint32_t* words) const {
    const VecU64 low = (c0 & 0xffffffffu) | (c1 << 32), high = (c2 & 0xffffffffu) | (c3 << 32);
    const VecU64 i = lane_numbers(), order0 = i / 2 + i % 2 * kPhiloxLanes, order1 = order0 + kPhiloxLanes / 2;
    const VecU64 first = __builtin_shuffle(low, high, order0), second = __builtin_shuffle(low, high, order1);
    std::memcpy(words, &first, sizeof first);
    std::memcpy(words + 2 * kPhiloxLanes, &second, sizeof second);
  }
};

// Two groups of lanes are in flight together, to hide the multiplier's latency.
constexpr int64_t kPhiloxStride = 2 * kPhiloxLanes;

// A buffer of this many words holds the words of `elements` elements wherever they start.
constexpr int64_t philox_buffer_size(int64_t elements) { return elements + 4 * kPhiloxStride + 4; }

// Writes the words of elements [begin, begin + count) and returns where the first of them stands in `buffer`.
static inline const uint32_t* philox_fill(uint32_t* buffer, uint64_t begin, int64_t count, uint64_t offset,
                                          uint64_t seed) {
  const uint64_t block = begin / 4;
  const int64_t blocks = int64_t((begin + uint64_t(count) + 3) / 4 - block);
  for (int64_t done = 0; done < blocks; done += kPhiloxStride) {
    PhiloxLanes a(block + uint64_t(done), offset), b(block + uint64_t(done + kPhiloxLanes), offset);
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
    for (int i = 0; i < kPhiloxRounds; ++i) {
      a.round(key0, key1);
      b.round(key0, key1);
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
    a.write(buffer + 4 * done);
    b.write(buffer + 4 * (done + kPhiloxLanes));
  }
  return buffer + begin % 4;
}

// One bit per lane of A: whether its word's uniform is below the probability of `threshold`.
template <class A>
static inline uint32_t philox_event_bits(const uint32_t* words, uint32_t threshold) {
  uint32_t bits = 0;
  if (kLanes<A> == kLanes<float>) {
    VecU32 word;
    std::memcpy(&word, words, sizeof word);
    bits = lanes_to_bits(Mask<float>((Mask<float>)(word >> 8) < int32_t(threshold)));
  } else {
    for (int i = 0; i < kLanes<A>; ++i) bits |= uint32_t(philox_event(words[i], threshold)) << i;
  }
  return bits;
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
