// The arithmetic alone that binds operators on bits: Philox draws and softplus over numbers in the first cache.
#include "../csrc/cpu/bit_entropy.cpp"
#include "../csrc/cpu/philox_fill.h"

using namespace videoar::VIDEOAR_ISA;

extern "C" void draw_words(int64_t count) {
  PhiloxWords words(3, 5);
  for (int64_t i = 0; i < count; i += kDrawElements) {
    const uint32_t* drawn = words.draw(uint64_t(i), kDrawElements);
    __asm__ volatile("" ::"r"(drawn) : "memory");
  }
}

extern "C" float sum_softplus(int64_t count) {
  constexpr int kN = kLanes<float>, kMost = 1024;
  alignas(64) float logits[kMost];
  for (int i = 0; i < kMost; ++i) logits[i] = float(i % 37 - 18) * 0.3f;
  Vec<float> above{}, factors[8] = {};
  for (int64_t done = 0; done < count; done += kMost) {
    __asm__ volatile("" ::"r"(logits) : "memory");
    for (int i = 0; i < kMost; i += 8 * kN) {
#pragma GCC unroll 8
      for (int u = 0; u < 8; ++u) {
        const Vec<float> x = load(logits + i + u * kN), y = exp_minus(magnitude<float>(x));
        above += vmax<float>(x, Vec<float>{});
        factors[u] = factors[u] * y + (factors[u] + y);
      }
    }
    for (Vec<float>& s : factors) {
      above += s;
      s = Vec<float>{};
    }
  }
  return reduce_add<float>(above);
}

extern "C" void share_sigmoid(int64_t count) {
  constexpr int kN = kLanes<float>, kMost = 1024;
  alignas(64) float logits[kMost], shares[kMost];
  for (int i = 0; i < kMost; ++i) logits[i] = float(i % 37 - 18) * 0.3f;
  for (int64_t done = 0; done < count; done += kMost) {
    __asm__ volatile("" ::"r"(logits), "r"(shares) : "memory");
    for (int i = 0; i < kMost; i += kN) {
      const Vec<float> x = load(logits + i);
      store(shares + i, Vec<float>(0.5f / (1 + exp_minus(vmax<float>(broadcast(-87.0f), x)))));
    }
  }
  __asm__ volatile("" ::"r"(shares) : "memory");
}
