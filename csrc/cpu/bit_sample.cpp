// Guidance, Bernoulli sampling, packing and the code in one pass.
//
// uniform < sigmoid(x) is 2^24 uniform (1 + e^-x) < 2^24: no division. float32 arithmetic decides wherever its error
// cannot matter; the rest (about two elements in a hundred thousand) are decided in float64, as the definition does. So
// every instruction set and device draws the bits of the definition.
#include "bit_sample.h"

#include <cmath>

#include "bit_blocks.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

constexpr float kUniforms = 0x1p24f;

// The definition: everything in float64.
bool sample_exactly(double logit, double uncond, double guidance, bool guided, double temperature, uint32_t word) {
  const double x = guided ? uncond + guidance * (logit - uncond) : logit;
  return temperature == 0 ? x > 0 : double(philox_uniform(word)) < 1 / (1 + std::exp(-(x / temperature)));
}

template <class T>
inline Vec<float> load_float(const T* p) {
  if constexpr (sizeof(T) == 8) {
    float narrow[kLanes<float>];
    for (int i = 0; i < kLanes<float>; ++i) narrow[i] = float(p[i]);
    return load(narrow);
  } else {
    return load(p);
  }
}

inline Vec<float> magnitude(Vec<float> x) { return (Vec<float>)((Mask<float>)x & 0x7fffffff); }

// One token's logits, or several tokens' that lie densely and share their guidance.
template <class T>
struct Run {
  const T* logits;
  const T* uncond;
  const uint32_t* words;
  double guidance, temperature;
  float rate;  // -log2(e) / temperature

  bool exactly(int64_t i) const {
    const double u = uncond ? double(to_float(uncond[i])) : 0;
    return sample_exactly(double(to_float(logits[i])), u, guidance, uncond != nullptr, temperature,
                          words ? words[i] : 0);
  }

  // The bits of kVectors vectors from element i on. `distance` is negative where the bit is one.
  template <int kVectors, bool kGuided, bool kGreedy>
  BlockBits sample(int64_t i) const {
    BlockBits bits = 0, sure = 0;
    for (int u = 0; u < kVectors; ++u) {
      const int64_t j = i + kLanes<float> * u;
      Vec<float> x = load_float(logits + j), size{};
      if (kGuided) {
        const Vec<float> base = load_float(uncond + j), g = broadcast(float(guidance));
        size = magnitude(base) + magnitude(g) * (magnitude(x) + magnitude(base));
        x = base + g * (x - base);
      }
      Vec<float> distance;
      Mask<float> decided;
      if (kGreedy) {
        distance = -x;
        decided = magnitude(x) > size * 0x1p-21f;
      } else {
        VecU32 word;
        std::memcpy(&word, words + j, sizeof word);
        const Mask<float> draw = (Mask<float>)(word >> 8);
        const Vec<float> uniform = __builtin_convertvector(draw, Vec<float>);
        distance = uniform * coarse_exp2(x * rate) + uniform - kUniforms;
        // Twice the error of the exponential and of guidance; a uniform of zero asks whether the sigmoid underflows.
        const Vec<float> doubt =
            kGuided ? size * (magnitude(broadcast(rate)) * (0x1p-21f * kUniforms)) + kUniforms * 0x1p-16f
                    : broadcast(kUniforms * 0x1p-16f);
        decided = Mask<float>(magnitude(distance) > doubt) & Mask<float>(draw > 0);
        if (kGuided) decided &= Mask<float>(doubt < kUniforms);
      }
      bits |= BlockBits(BlockBits(lanes_to_bits((Mask<float>)distance)) << kLanes<float> * u);
      sure |= BlockBits(BlockBits(lanes_to_bits(decided)) << kLanes<float> * u);
    }
    constexpr BlockBits kAll = BlockBits(~BlockBits(0)) >> (kBlock - kVectors * kLanes<float>);
    if (__builtin_expect(sure != kAll, 0)) {
      for (BlockBits unsure = sure ^ kAll; unsure != 0; unsure &= BlockBits(unsure - 1)) {
        const int lane = __builtin_ctzll(unsure);
        bits = BlockBits((bits & ~(BlockBits(1) << lane)) | BlockBits(exactly(i + lane)) << lane);
      }
    }
    return bits;
  }
};

// Where a vector has fewer lanes than a byte has bits, two make a byte.
constexpr int kUnitVectors = kLanes<float> < 8 ? 8 / kLanes<float> : 1;
constexpr int kUnit = kUnitVectors * kLanes<float>;

template <class T, int kVectors, bool kGuided, bool kGreedy>
inline void sample_unit(const Run<T>& run, int64_t i, uint8_t* bits, T* code, Lane<T> minus) {
  constexpr int kElements = kVectors * kLanes<float>;
  const BlockBits drawn = run.template sample<kVectors, kGuided, kGreedy>(i);
  std::memcpy(bits, &drawn, kElements / 8);
  if constexpr (kElements >= kLaneCount<Lane<T>>) {
    store_codes<T, kElements / kLaneCount<Lane<T>>>(code, drawn, minus);
  } else {
    T out[kLaneCount<Lane<T>>];
    store_codes<T, 1>(out, drawn, minus);
    std::memcpy(code, out, kElements * sizeof(T));
  }
}

template <class T, bool kGuided, bool kGreedy>
void sample_run(const Run<T>& run, int64_t n, uint8_t* bits, T* code, Lane<T> minus) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) sample_unit<T, 4, kGuided, kGreedy>(run, i, bits + i / 8, code + i, minus);
  for (; i + kUnit <= n; i += kUnit) {
    sample_unit<T, kUnitVectors, kGuided, kGreedy>(run, i, bits + i / 8, code + i, minus);
  }
  if (i == n) return;
  const size_t rest = size_t(n - i);
  T logits[kUnit] = {}, uncond[kUnit] = {}, out[kUnit];
  uint32_t words[kUnit];
  for (uint32_t& word : words) word = 1u << 30;  // not near the edge
  uint8_t packed[kUnit / 8];
  std::memcpy(logits, run.logits + i, rest * sizeof(T));
  if (kGuided) std::memcpy(uncond, run.uncond + i, rest * sizeof(T));
  if (!kGreedy) std::memcpy(words, run.words + i, rest * sizeof(uint32_t));
  const Run<T> tail{logits, kGuided ? uncond : nullptr, words, run.guidance, run.temperature, run.rate};
  sample_unit<T, kUnitVectors, kGuided, kGreedy>(tail, 0, packed, out, minus);
  packed[(rest - 1) / 8] &= uint8_t(0xff >> (7 - (rest - 1) % 8));
  std::memcpy(bits + i / 8, packed, (rest + 7) / 8);
  std::memcpy(code + i, out, rest * sizeof(T));
}

template <class T>
void sample(const SampleParams& p) {
  const Lane<T> minus = minus_code<T>(p.dim);
  const int64_t bytes = packed_bytes(p.dim);
  const bool greedy = p.temperature == 0, guided = p.uncond != nullptr;
  const bool dense = p.dim % 8 == 0 && p.logits_stride == p.dim && (!guided || p.uncond_stride == p.dim);
  const auto run_of = guided ? (greedy ? sample_run<T, true, true> : sample_run<T, true, false>)
                             : (greedy ? sample_run<T, false, true> : sample_run<T, false, false>);
  each_draw(
      p.rows, p.dim,
      [&](const Draw& d, PhiloxWords& words) {
        const uint32_t* drawn = nullptr;
        if (!greedy) drawn = words.draw(uint64_t(d.row * p.dim + d.first), d.rows * d.count);
        const int64_t step = dense && p.row_guidance == nullptr ? d.rows : 1;
        for (int64_t row = d.row; row < d.row + d.rows; row += step) {
          const T* uncond = guided ? (const T*)p.uncond + row * p.uncond_stride + d.first : nullptr;
          const Run<T> run{(const T*)p.logits + row * p.logits_stride + d.first,
                           uncond,
                           drawn,
                           p.row_guidance == nullptr ? p.guidance : p.row_guidance[row],
                           p.temperature,
                           float(-1.4426950408889634 / p.temperature)};
          run_of(run, step * d.count, p.bits + row * bytes + d.first / 8, (T*)p.code + row * p.dim + d.first, minus);
          if (!greedy) drawn += step * d.count;
        }
      },
      p.offset, p.seed);
}

template <class T>
void sample_batch(const SampleParams& p) {
  if (p.seeds == nullptr) return sample<T>(p);
  for (int64_t row = 0; row < p.rows; row += p.sample_rows) {
    SampleParams one = p;
    one.logits = (const T*)p.logits + row * p.logits_stride;
    if (p.uncond != nullptr) one.uncond = (const T*)p.uncond + row * p.uncond_stride;
    if (p.row_guidance != nullptr) one.row_guidance += row;
    one.bits += row * packed_bytes(p.dim);
    one.code = (T*)p.code + row * p.dim;
    one.seed = uint64_t(p.seeds[row / p.sample_rows]);
    one.rows = p.sample_rows;
    sample<T>(one);
  }
}

}  // namespace

void sample_bits(const SampleParams& p) { VIDEOAR_DISPATCH(p.dtype, sample_batch, p) }

}  // namespace VIDEOAR_ISA
}  // namespace videoar
