// Philox 4x32-10, the one random generator: element i of a tensor (row-major over its logical shape) takes word
// `i mod 4` of Philox(counter = (i div 4, offset), key = seed), each a 64-bit pair, low word first.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once

#include <cstdint>

#include "host_device.h"

// Everything is static: an inline function of external linkage could be kept from an object file that was compiled
// for a wider instruction set than the machine has.
namespace videoar {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct PhiloxBlock {
  uint32_t word[4];
};

VIDEOAR_HOST_DEVICE static inline PhiloxBlock philox(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t(kPhiloxMultiplier0) * counter.word[0];
    const uint64_t product1 = uint64_t(kPhiloxMultiplier1) * counter.word[2];
    counter = PhiloxBlock{{uint32_t(product1 >> 32) ^ counter.word[1] ^ key0, uint32_t(product1),
                           uint32_t(product0 >> 32) ^ counter.word[3] ^ key1, uint32_t(product0)}};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return counter;
}

// Words of elements 4 * block to 4 * block + 3.
VIDEOAR_HOST_DEVICE static inline PhiloxBlock philox_block(uint64_t block, uint64_t offset, uint64_t seed) {
  const PhiloxBlock counter{{uint32_t(block), uint32_t(block >> 32), uint32_t(offset), uint32_t(offset >> 32)}};
  return philox(counter, uint32_t(seed), uint32_t(seed >> 32));
}

VIDEOAR_HOST_DEVICE static inline uint32_t philox_word(uint64_t element, uint64_t offset, uint64_t seed) {
  return philox_block(element / 4, offset, seed).word[element % 4];
}

// A multiple of 2^-24 in [0, 1), exact in float32.
VIDEOAR_HOST_DEVICE static inline float philox_uniform(uint32_t word) { return float(word >> 8) * 0x1p-24f; }

// uniform < p exactly when word >> 8 is below the threshold; NaN counts as 0.
VIDEOAR_HOST_DEVICE static inline uint32_t philox_threshold(double p) {
  if (!(p > 0)) return 0;
  if (p >= 1) return 1u << 24;
  const double scaled = p * 0x1p24;
  const uint32_t whole = uint32_t(scaled);
  return whole + (double(whole) < scaled ? 1u : 0u);
}

VIDEOAR_HOST_DEVICE static inline bool philox_event(uint32_t word, uint32_t threshold) {
  return (word >> 8) < threshold;
}

}  // namespace videoar
