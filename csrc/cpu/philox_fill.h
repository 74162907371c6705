// Many Philox blocks side by side: one counter per 64-bit lane.
#pragma once

#include "../philox.h"
#include "bit_lanes.h"
#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {

typedef uint64_t VecU64 __attribute__((vector_size(kVectorBytes)));
constexpr int kPhiloxLanes = kVectorBytes / 8;

// The 64-bit products of the lanes' low halves.
static inline VecU64 multiply_low_halves(VecU64 a, VecU64 b) {
#if defined(__AVX512F__)
  return (VecU64)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(VIDEOAR_WIDE)
  return (VecU64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__) && !defined(VIDEOAR_WIDE)
  return (VecU64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Lane i of the even lanes, then lane i of the odd ones, counts up: interleaving the lanes' words pairwise (one
// instruction) then puts the blocks in order.
static inline VecU64 philox_lane_blocks() {
  uint64_t block[kPhiloxLanes];
  for (int i = 0; i < kPhiloxLanes; ++i) block[i] = uint64_t(i / 2 + i % 2 * (kPhiloxLanes / 2));
  VecU64 lanes;
  std::memcpy(&lanes, block, sizeof lanes);
  return lanes;
}

// The even lanes of a and b, pairwise, or the odd ones.
static inline VecU64 interleave(VecU64 a, VecU64 b, int odd) {
  uint64_t number[kPhiloxLanes];
  for (int i = 0; i < kPhiloxLanes; ++i) number[i] = uint64_t(i / 2 * 2 + odd + i % 2 * kPhiloxLanes);
  VecU64 order;
  std::memcpy(&order, number, sizeof order);
  return __builtin_shuffle(a, b, order);
}

// Each 64-bit lane's halves exchanged.
static inline VecU64 exchange_halves(VecU64 v) {
  uint32_t number[2 * kPhiloxLanes];
  for (uint32_t i = 0; i < 2 * kPhiloxLanes; ++i) number[i] = i ^ 1;
  VecU32 order;
  std::memcpy(&order, number, sizeof order);
  return (VecU64)__builtin_shuffle((VecU32)v, order);
}

// What the blocks of one call share: the keys of every round, and the words of the first rounds that do not depend on
// the low half of the block's number. That saves an eighth of the arithmetic.
struct PhiloxShared {
  VecU64 key0[kPhiloxRounds], key1[kPhiloxRounds];
  VecU64 c1, second, third;

  PhiloxShared(uint32_t block_high, uint64_t offset, uint64_t seed) {
    uint32_t k0[kPhiloxRounds], k1[kPhiloxRounds];
    for (int i = 0; i < kPhiloxRounds; ++i) {
      k0[i] = uint32_t(seed) + uint32_t(i) * kPhiloxWeyl0;
      k1[i] = uint32_t(seed >> 32) + uint32_t(i) * kPhiloxWeyl1;
      key0[i] = VecU64{} + k0[i];
      key1[i] = VecU64{} + k1[i];
    }
    // Round 0: words 0 and 1 of its result are the same for all blocks, and so is the product of word 0 in round 1.
    const uint64_t product1 = uint64_t(kPhiloxMultiplier1) * uint32_t(offset);
    const uint32_t c0 = uint32_t(product1 >> 32) ^ block_high ^ k0[0];
    const uint64_t product0 = uint64_t(kPhiloxMultiplier0) * c0;
    key1[0] = VecU64{} + (uint32_t(offset >> 32) ^ k1[0]);
    key0[1] = VecU64{} + (uint32_t(product1) ^ k0[1]);
    key1[1] = VecU64{} + (uint32_t(product0 >> 32) ^ k1[1]);
    key1[2] = VecU64{} + (uint32_t(product0) ^ k1[2]);
  }
};

// Upper halves of c0 and c2 hold garbage that multiply_low_halves ignores, so no round needs a mask.
struct PhiloxLanes {
  VecU64 c0, c1, c2, c3;

  // Rounds 0 and 1 of the blocks whose low halves are `index`.
  static PhiloxLanes begin(VecU64 index, const PhiloxShared& shared) {
    const VecU64 product0 = multiply_low_halves(index, VecU64{} + kPhiloxMultiplier0);
    const VecU64 c2 = (product0 >> 32) ^ shared.key1[0];
    const VecU64 product1 = multiply_low_halves(c2, VecU64{} + kPhiloxMultiplier1);
    return {(product1 >> 32) ^ shared.key0[1], product1, product0 ^ shared.key1[1], VecU64{}};
  }
  void round(VecU64 key0, VecU64 key1) {
    const VecU64 product0 = multiply_low_halves(c0, VecU64{} + kPhiloxMultiplier0);
    const VecU64 product1 = multiply_low_halves(c2, VecU64{} + kPhiloxMultiplier1);
    c0 = (product1 >> 32) ^ (c1 ^ key0);
    c2 = (product0 >> 32) ^ (c3 ^ key1);
    c1 = product1;
    c3 = product0;
  }
  // The last round, which leaves words 0 and 1 of every block in c0, words 2 and 3 in c2.
  void finish(VecU64 key0, VecU64 key1) {
    const VecU64 product0 = multiply_low_halves(c0, VecU64{} + kPhiloxMultiplier0);
    const VecU64 product1 = multiply_low_halves(c2, VecU64{} + kPhiloxMultiplier1);
    c0 = exchange_halves(product1 ^ (c1 ^ key0) << 32);
    c2 = exchange_halves(product0 ^ (c3 ^ key1) << 32);
  }
  void write(uint32_t* words) const {
    const VecU64 first = interleave(c0, c2, 0), second = interleave(c0, c2, 1);
    std::memcpy(words, &first, sizeof first);
    std::memcpy(words + 2 * kPhiloxLanes, &second, sizeof second);
  }
};

// So many groups of lanes are in flight together, to hide the multiplier's latency.
constexpr int kPhiloxGroups = 4;
constexpr int64_t kPhiloxStride = kPhiloxGroups * kPhiloxLanes;

// The words of blocks [block, block + stride), where all of them have the same upper half.
static inline void philox_stride(uint32_t* words, uint64_t block, const PhiloxShared& shared) {
  PhiloxLanes group[kPhiloxGroups];
  VecU64 index = philox_lane_blocks() + block;
#pragma GCC unroll 8
  for (int g = 0; g < kPhiloxGroups; ++g, index += kPhiloxLanes) group[g] = PhiloxLanes::begin(index, shared);
#pragma GCC unroll 16
  for (int i = 2; i < kPhiloxRounds - 1; ++i) {
#pragma GCC unroll 8
    for (int g = 0; g < kPhiloxGroups; ++g) group[g].round(shared.key0[i], shared.key1[i]);
  }
#pragma GCC unroll 8
  for (int g = 0; g < kPhiloxGroups; ++g) {
    group[g].finish(shared.key0[kPhiloxRounds - 1], shared.key1[kPhiloxRounds - 1]);
    group[g].write(words + 4 * kPhiloxLanes * g);
  }
}

// The most elements one draw may ask for: their words stay in the first cache.
constexpr int64_t kDrawElements = 1024;

// The words of a generator's elements, a draw at a time.
class PhiloxWords {
 public:
  PhiloxWords(uint64_t offset, uint64_t seed) : offset_(offset), seed_(seed), high_(0), shared_(0, offset, seed) {}

  // The words of elements [begin, begin + count), count <= kDrawElements. The next draw overwrites them; as many as
  // fill a vector may be read past them.
  const uint32_t* draw(uint64_t begin, int64_t count) {
    const uint64_t end = (begin + uint64_t(count) + 3) / 4;
    uint32_t* words = buffer_;
    for (uint64_t block = begin / 4; block < end;) {
      if (uint32_t(block >> 32) != high_) {
        high_ = uint32_t(block >> 32);
        shared_ = PhiloxShared(high_, offset_, seed_);
      }
      // The upper half of the block's number changes once in 2^32 blocks.
      const uint64_t turn = ((block >> 32) + 1) << 32, stop = end < turn ? end : turn;
      for (; block < stop && block + kPhiloxStride <= turn; block += kPhiloxStride, words += 4 * kPhiloxStride) {
        philox_stride(words, block, shared_);
      }
      for (; block < stop; ++block, words += 4) {
        const PhiloxBlock one = philox_block(block, offset_, seed_);
        std::memcpy(words, one.word, sizeof one.word);
      }
    }
    return buffer_ + begin % 4;
  }

 private:
  uint64_t offset_, seed_;
  uint32_t high_;
  PhiloxShared shared_;
  uint32_t buffer_[kDrawElements + 4 + 4 * kPhiloxStride + kLanes<float>];
};

// Whether the uniform of each lane's word is below the probability of `threshold`.
static inline Mask<float> philox_events(const uint32_t* words, uint32_t threshold) {
  VecU32 word;
  std::memcpy(&word, words, sizeof word);
  return Mask<float>((Mask<float>)(word >> 8) < int32_t(threshold));
}

// One bit per lane of A.
template <class A>
static inline uint32_t philox_event_bits(const uint32_t* words, uint32_t threshold) {
  const uint32_t bits = lanes_to_bits(philox_events(words, threshold));
  return bits & ((1u << kLanes<A>)-1);
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
