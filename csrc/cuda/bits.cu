// Elements to bits and bits to codes, and bits drawn from logits.
#include <cmath>

#include "bits.h"
#include "octet.cuh"

namespace videoar {
namespace cuda {
namespace {

// |code|, made once on the host: its root and quotient in float64 would take longer than a thread's eight elements.
template <class T>
Accumulator<T> code_size(int64_t dim) {
  return Accumulator<T>(1 / sqrt(double(dim)));
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kBitThreads)
    quantize_kernel(const __grid_constant__ QuantizeParams p, Accumulator<T> magnitude) {
  using A = Accumulator<T>;
  const T plus = narrow<T, A>(magnitude), minus = narrow<T, A>(-magnitude);
  each_octet(p.rows, p.dim, [&](int64_t row, int64_t byte, int count) {
    A x[8];
    load_octet<kAligned>(x, (const T*)p.x + row * p.stride + 8 * byte, count);
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) bits |= unsigned(x[i] > 0) << i;
    p.bits[row * ((p.dim + 7) / 8) + byte] = uint8_t(bits);
    store_octet<kAligned>((T*)p.code + row * p.dim + 8 * byte, count,
                          [&](int i) { return bits >> i & 1 ? plus : minus; });
  });
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kBitThreads)
    code_kernel(const __grid_constant__ CodeParams p, Accumulator<T> magnitude) {
  using A = Accumulator<T>;
  const T plus = narrow<T, A>(magnitude), minus = narrow<T, A>(-magnitude);
  each_octet(p.rows, p.dim, [&](int64_t row, int64_t byte, int count) {
    const unsigned bits = p.bits[row * p.stride + byte];
    store_octet<kAligned>((T*)p.code + row * p.dim + 8 * byte, count,
                          [&](int i) { return bits >> i & 1 ? plus : minus; });
  });
}

// The definition, in float64: see cpu/bit_sample.cpp.
__device__ inline bool sample_exactly(double logit, double uncond, double guidance, bool guided, double temperature,
                                      uint32_t word) {
  // No fused multiply-add, which would round otherwise than the definition.
  const double x = guided ? __dadd_rn(uncond, __dmul_rn(guidance, logit - uncond)) : logit;
  return temperature == 0 ? x > 0 : double(philox_uniform(word)) < 1 / (1 + exp(-(x / temperature)));
}

constexpr float kUniforms = 0x1p24f;

struct Draw {
  bool one, sure;
};

// The same in float32, and whether its error cannot matter: uniform < sigmoid(x) is n (1 + e^-x) < 2^24,
// n = 2^24 uniform.
__device__ inline Draw sample_quickly(float x, float uncond, float guidance, bool guided, bool greedy, float rate,
                                      uint32_t word) {
  float size = 0;
  if (guided) {
    size = fabsf(uncond) + fabsf(guidance) * (fabsf(x) + fabsf(uncond));
    x = uncond + guidance * (x - uncond);
  }
  if (greedy) return {x > 0, fabsf(x) > size * 0x1p-21f};
  const uint32_t draw = word >> 8;
  const float uniform = float(draw), power = fminf(fmaxf(x * rate, -126.0f), 126.0f);
  const float distance = uniform * exp2f(power) + uniform - kUniforms;
  // Twice the error of the exponential and of guidance; a draw of zero asks whether the sigmoid underflows.
  const float doubt = size * fabsf(rate) * (0x1p-21f * kUniforms) + kUniforms * 0x1p-16f;
  return {distance<0, fabsf(distance)> doubt && doubt < kUniforms && draw > 0 && x == x};
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kBitThreads, 2)
    sample_kernel(const __grid_constant__ SampleParams p, Accumulator<T> magnitude) {
  using A = Accumulator<T>;
  const T plus = narrow<T, A>(magnitude), minus = narrow<T, A>(-magnitude);
  const bool guided = p.uncond != nullptr, greedy = p.temperature == 0;
  const float rate = greedy ? 0.0f : float(-1.4426950408889634 / p.temperature);
  each_octet(p.rows, p.dim, [&](int64_t row, int64_t byte, int count) {
    const T* logits = (const T*)p.logits + row * p.logits_stride + 8 * byte;
    const T* uncond = guided ? (const T*)p.uncond + row * p.uncond_stride + 8 * byte : nullptr;
    const int64_t numbered = p.seeds ? row % p.sample_rows : row;
    const uint64_t first = uint64_t(numbered * p.dim + 8 * byte);
    const uint64_t seed = p.seeds ? uint64_t(p.seeds[row / p.sample_rows]) : p.seed;
    const double guidance = p.row_guidance ? p.row_guidance[row] : p.guidance;
    float x[8], base[8] = {};
    load_octet<kAligned>(x, logits, count);
    if (guided) load_octet<kAligned>(base, uncond, count);
    uint32_t word[8] = {};
    if (!greedy) draw_octet(word, first, p.offset, seed);
    unsigned bits = 0, unsure = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const Draw draw = sample_quickly(x[i], base[i], float(guidance), guided, greedy, rate, word[i]);
      bits |= unsigned(draw.one) << i;
      unsure |= unsigned(!draw.sure) << i;
    }
    const unsigned inside = (1u << count) - 1;
    // Rare, so everything is read and drawn again.
    for (unsure &= inside; unsure != 0; unsure &= unsure - 1) {
      const int i = __ffs(int(unsure)) - 1;
      const bool one = sample_exactly(double(widen<A>(logits[i])), guided ? double(widen<A>(uncond[i])) : 0, guidance,
                                      guided, p.temperature, philox_word(first + unsigned(i), p.offset, seed));
      bits = (bits & ~(1u << i)) | unsigned(one) << i;
    }
    bits &= inside;
    p.bits[row * ((p.dim + 7) / 8) + byte] = uint8_t(bits);
    store_octet<kAligned>((T*)p.code + row * p.dim + 8 * byte, count,
                          [&](int i) { return bits >> i & 1 ? plus : minus; });
  });
}

template <class T>
const char* quantize(const QuantizeParams& p, cudaStream_t stream) {
  const unsigned grid = octet_grid(p.rows, p.dim);
  if (octets_aligned<T>(p.x, p.stride, p.dim) && aligned_to_16(p.code)) {
    VIDEOAR_LAUNCH(grid, kBitThreads, stream, quantize_kernel<T, true>)(p, code_size<T>(p.dim));
  } else {
    VIDEOAR_LAUNCH(grid, kBitThreads, stream, quantize_kernel<T, false>)(p, code_size<T>(p.dim));
  }
  return launch_error();
}

template <class T>
const char* code(const CodeParams& p, cudaStream_t stream) {
  const unsigned grid = octet_grid(p.rows, p.dim);
  if (octets_aligned<T>(p.code, p.dim, p.dim)) {
    VIDEOAR_LAUNCH(grid, kBitThreads, stream, code_kernel<T, true>)(p, code_size<T>(p.dim));
  } else {
    VIDEOAR_LAUNCH(grid, kBitThreads, stream, code_kernel<T, false>)(p, code_size<T>(p.dim));
  }
  return launch_error();
}

template <class T>
const char* sample(const SampleParams& p, cudaStream_t stream) {
  const unsigned grid = octet_grid(p.rows, p.dim);
  const bool aligned = octets_aligned<T>(p.logits, p.logits_stride, p.dim) && aligned_to_16(p.code) &&
                       (p.uncond == nullptr || octets_aligned<T>(p.uncond, p.uncond_stride, p.dim));
  if (aligned) {
    VIDEOAR_LAUNCH(grid, kBitThreads, stream, sample_kernel<T, true>)(p, code_size<T>(p.dim));
  } else {
    VIDEOAR_LAUNCH(grid, kBitThreads, stream, sample_kernel<T, false>)(p, code_size<T>(p.dim));
  }
  return launch_error();
}

}  // namespace

const char* launch_quantize(const QuantizeParams& p, void* stream) {
  if (p.rows * p.dim == 0) return nullptr;
  VIDEOAR_CUDA_DISPATCH(p.dtype, quantize, p, cudaStream_t(stream));
}

const char* launch_code(const CodeParams& p, void* stream) {
  if (p.rows * p.dim == 0) return nullptr;
  VIDEOAR_CUDA_DISPATCH(p.dtype, code, p, cudaStream_t(stream));
}

const char* launch_sample(const SampleParams& p, void* stream) {
  if (p.rows * p.dim == 0) return nullptr;
  VIDEOAR_CUDA_DISPATCH(p.dtype, sample, p, cudaStream_t(stream));
}

}  // namespace cuda
}  // namespace videoar
