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

constexpr int kMost = 1024;

void fill(float* logits) {
  for (int i = 0; i < kMost; ++i) logits[i] = float(i % 37 - 18) * 0.3f;
}

extern "C" float sum_softplus(int64_t count) {
  constexpr int kN = kLanes<float>;
  alignas(64) float logits[kMost];
  fill(logits);
  Vec<float> above[4] = {}, factors[4] = {};
  for (int64_t done = 0; done < count; done += kMost) {
    __asm__ volatile("" ::"r"(logits) : "memory");
    for (int i = 0; i < kMost; i += 4 * kN) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const Vec<float> x = load(logits + i + u * kN), y = exp_minus(magnitude<float>(x));
        above[u] += vmax<float>(x, Vec<float>{});
        factors[u] = factors[u] * y + (factors[u] + y);
      }
    }
    for (int u = 0; u < 4; ++u) {
      above[u] += factors[u];
      factors[u] = Vec<float>{};
    }
  }
  return reduce_add<float>(above[0] + above[1] + above[2] + above[3]);
}

// To the precision that a gradient of T asks for.
template <class T>
void share_sigmoid(int64_t count) {
  constexpr int kN = kLanes<float>;
  alignas(64) float logits[kMost], shares[kMost];
  fill(logits);
  for (int64_t done = 0; done < count; done += kMost) {
    __asm__ volatile("" ::"r"(logits), "r"(shares) : "memory");
    for (int i = 0; i < kMost; i += kN) store(shares + i, share<T>(load(logits + i), broadcast(0.5f)));
  }
  __asm__ volatile("" ::"r"(shares) : "memory");
}

extern "C" void share_sigmoid_f32(int64_t count) { share_sigmoid<float>(count); }
extern "C" void share_sigmoid_bf16(int64_t count) { share_sigmoid<videoar::bf16>(count); }
