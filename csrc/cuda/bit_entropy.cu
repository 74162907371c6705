// The bit-wise cross-entropy: sums over tokens in a fixed order, and its gradient.
#include "bits.h"
#include "octet.cuh"
#include "reduce.cuh"

namespace videoar {
namespace cuda {
namespace {

constexpr int kSharedSums = 1600;  // of 24 bytes, below 48 KB
constexpr int kFinishThreads = 512;
constexpr int kMostTurns = 4;  // bytes of a token that fall to one of its lanes, while there are lanes
// Bytes of bits, and their logits, that a thread has on their way; more of them spill.
template <class T>
constexpr int kAtOnce = sizeof(T) == 8 ? 1 : 2;

__device__ inline float log_one_plus(float x) { return log1pf(x); }
__device__ inline double log_one_plus(double x) { return log1p(x); }
__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float magnitude(float x) { return fabsf(x); }
__device__ inline double magnitude(double x) { return fabs(x); }

#if defined(VIDEOAR_CUDA_ON_CPU)
inline float quick_exp2(float x) { return exp2f(x); }
#else
__device__ inline float quick_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

constexpr float kLog2E = 1.4426950408889634f;

// e^-|x| for a logit of T; the error of a quick exponential drowns in the rounding of narrow ones.
template <class T>
__device__ inline Accumulator<T> decay(Accumulator<T> x) {
  if constexpr (sizeof(T) == 2) {
    return quick_exp2(magnitude(x) * -kLog2E);
  } else {
    return exponential(-magnitude(x));
  }
}

template <class T>
__device__ inline Accumulator<T> sigmoid(Accumulator<T> x) {
  if constexpr (sizeof(T) == 2) {
    return __fdividef(1.0f, 1.0f + quick_exp2(x * -kLog2E));
  } else {
    return 1 / (1 + exponential(-x));
  }
}

template <class V>
__device__ inline V lanes_sum(V value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Adds what a byte of bits costs in nats, and how many of them the signs of the logits agree with.
template <class T, class A>
__device__ inline void add_octet(const A (&logit)[8], unsigned bits, int count, A& nats, int& hits) {
  A sum = A(0), rest = A(0);  // the product of all 1 + e^-|x| is 1 + rest: one logarithm for eight bits
  unsigned above = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i >= count) continue;
    const A wrong = bits >> i & 1 ? -logit[i] : logit[i];  // evidence for the other bit
    sum += wrong > 0 ? wrong : A(0);
    const A share = decay<T>(logit[i]);
    rest += share + rest * share;
    above |= unsigned(logit[i] > 0) << i;
  }
  hits += count - __popc((above ^ bits) & ((1u << count) - 1));
  nats += sum + log_one_plus(rest);
}

// `lanes` threads share a token, a power of two. Every group of lanes adds up its own tokens, scale by scale; then the
// block adds up its groups, in order.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kBitThreads, 2)
    entropy_kernel(const __grid_constant__ EntropyParams p, int lanes, EntropySums* block_sums) {
  using A = Accumulator<T>;
  __shared__ double sums[3 * kSharedSums];
  const int lane = int(threadIdx.x) % lanes, group = int(threadIdx.x) / lanes, groups = int(blockDim.x) / lanes;
  const int scales = int(p.scales), cells = groups * scales;
  for (int i = int(threadIdx.x); i < 3 * cells; i += int(blockDim.x)) sums[i] = 0;
  __syncthreads();
  const int64_t bytes = (p.dim + 7) / 8;
  const auto inside = [&](int64_t byte) { return kAligned || p.dim - 8 * byte >= 8 ? 8 : int(p.dim - 8 * byte); };
  const int64_t begin = p.rows * blockIdx.x / gridDim.x, end = p.rows * (blockIdx.x + 1) / gridDim.x;
  for (int64_t base = begin; base < end; base += groups) {
    const int64_t row = base + group;
    const bool present = row < end;
    A nats = A(0);
    int hits = 0;
    for (int64_t first = lane; present && first < bytes; first += kAtOnce<T> * lanes) {
      A logit[kAtOnce<T>][8];
      unsigned bits[kAtOnce<T>];
#pragma unroll
      for (int n = 0; n < kAtOnce<T>; ++n) {
        const int64_t byte = first + n * lanes;
        if (byte >= bytes) continue;
        load_octet<kAligned>(logit[n], (const T*)p.logits + row * p.logits_stride + 8 * byte, inside(byte));
        bits[n] = p.bits[row * p.bits_stride + byte];
      }
#pragma unroll
      for (int n = 0; n < kAtOnce<T>; ++n) {
        const int64_t byte = first + n * lanes;
        if (byte < bytes) add_octet<T>(logit[n], bits[n], inside(byte), nats, hits);
      }
    }
    nats = lanes_sum(nats, lanes);
    hits = lanes_sum(hits, lanes);
    if (!present || lane != 0) continue;
    const int id = p.scale_ids == nullptr ? 0 : p.scale_ids[row];
    const bool known = id >= 0 && id < scales;
    const int scale = known ? id : 0;
    const double weight = !known ? nan("") : p.weight == nullptr ? 1 : p.weight[row];
    double* cell = sums + 3 * (group * scales + scale);
    cell[0] += weight * double(nats);
    cell[1] += weight * hits;
    cell[2] += weight;
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < 3 * scales; i += int(blockDim.x)) {
    double sum = 0;
    for (int g = 0; g < groups; ++g) sum += sums[3 * scales * g + i];
    ((double*)(block_sums + int64_t(blockIdx.x) * scales))[i] = sum;
  }
}

// One block; its warps take turns at the scales, whose sums their lanes add up over the blocks, always in one order.
template <class W>
__global__ void __launch_bounds__(kFinishThreads)
    entropy_finish_kernel(const __grid_constant__ EntropyLaunch p, int64_t blocks) {
  constexpr int kWarps = kFinishThreads / kWarp;
  __shared__ double of_warp[kWarps][3];
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const double dim = double(p.tokens.dim);
  double all[3] = {0, 0, 0};  // nats, hits, weight
  for (int64_t s = warp; s < p.tokens.scales; s += kWarps) {
    double one[3] = {0, 0, 0};
#pragma unroll 4
    for (int64_t block = lane; block < blocks; block += kWarp) {
      const EntropySums part = p.sums[block * p.tokens.scales + s];
      one[0] += part.nats, one[1] += part.hits, one[2] += part.weight;
    }
    for (int i = 0; i < 3; ++i) all[i] += one[i] = warp_sum(one[i]);
    if (lane != 0) continue;
    ((W*)p.per_scale)[s] = W(one[0] / (one[2] * dim));
    ((W*)p.scale_accuracy)[s] = W(one[1] / (one[2] * dim));
    p.totals[s] = one[2];
  }
  if (lane == 0)
    for (int i = 0; i < 3; ++i) of_warp[warp][i] = all[i];
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int other = 1; other < kWarps; ++other)
    for (int i = 0; i < 3; ++i) all[i] += of_warp[other][i];
  *(W*)p.loss = W(all[0] / (all[2] * dim));
  *(W*)p.accuracy = W(all[1] / (all[2] * dim));
}

// One block: every thread adds up all weights, and makes the coefficients of some scales.
template <class W>
__global__ void __launch_bounds__(kBitThreads) coefficient_kernel(const __grid_constant__ EntropyBackwardLaunch p) {
  double all = 0;
  for (int64_t s = 0; s < p.scales; ++s) all += p.totals[s];
  for (int64_t s = threadIdx.x; s < p.scales; s += blockDim.x) {
    const double total = p.totals[s], dim = double(p.tokens.dim);
    const double loss = double(*(const W*)p.grad_loss), scale = double(((const W*)p.grad_per_scale)[s]);
    p.coefficient[s] = ((all == 0 ? 0 : loss / all) + (total == 0 ? 0 : scale / total)) / dim;
  }
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kBitThreads, 2)
    entropy_backward_kernel(const __grid_constant__ EntropyBackwardParams p, const double* coefficients,
                            int64_t scales) {
  using A = Accumulator<T>;
  each_octet(p.rows, p.dim, [&](int64_t row, int64_t byte, int count) {
    A logit[8];
    load_octet<kAligned>(logit, (const T*)p.logits + row * p.logits_stride + 8 * byte, count);
    const unsigned bits = p.bits[row * p.bits_stride + byte];
    const int scale = p.scale_ids == nullptr ? 0 : p.scale_ids[row];
    const double weight = p.weight == nullptr ? 1 : p.weight[row];
    const A factor = scale >= 0 && scale < scales ? A(coefficients[scale] * weight) : A(nan(""));
    store_octet<kAligned>((T*)p.grad + row * p.dim + 8 * byte, count, [&](int i) {
      // sigmoid(x) - 1 is -sigmoid(-x), which keeps its digits.
      const bool one = bits >> i & 1;
      const A slope = sigmoid<T>(one ? -logit[i] : logit[i]);
      return narrow<T, A>(factor * (one ? -slope : slope));
    });
  });
}

template <class T>
const char* entropy(const EntropyLaunch& p, cudaStream_t stream) {
  using W = Accumulator<T>;
  const EntropyParams& t = p.tokens;
  const int64_t blocks = entropy_blocks(t.rows);
  // Two neighbours read whole sectors of memory; more lanes where a token has many bytes, or the sums of many scales
  // leave room for fewer groups.
  int lanes = t.dim > 8 ? 2 : 1, threads = kBitThreads;
  while (lanes < kWarp && (kMostTurns * lanes < (t.dim + 7) / 8 || threads / lanes * t.scales > kSharedSums))
    lanes *= 2;
  while (threads > kWarp && threads / lanes * t.scales > kSharedSums) threads /= 2;
  if (threads / lanes * t.scales > kSharedSums)
    return "bit_cross_entropy: expected num_scales of at most 1600 on a GPU";
  if (octets_aligned<T>(t.logits, t.logits_stride, t.dim)) {
    VIDEOAR_LAUNCH(unsigned(blocks), threads, stream, entropy_kernel<T, true>)(t, lanes, p.sums);
  } else {
    VIDEOAR_LAUNCH(unsigned(blocks), threads, stream, entropy_kernel<T, false>)(t, lanes, p.sums);
  }
  VIDEOAR_LAUNCH(1, kFinishThreads, stream, entropy_finish_kernel<W>)(p, blocks);
  return launch_error();
}

template <class T>
const char* entropy_backward(const EntropyBackwardLaunch& p, cudaStream_t stream) {
  using W = Accumulator<T>;
  const EntropyBackwardParams& t = p.tokens;
  VIDEOAR_LAUNCH(1, kBitThreads, stream, coefficient_kernel<W>)(p);
  if (t.rows * t.dim == 0) return launch_error();
  const unsigned grid = octet_grid(t.rows, t.dim);
  if (octets_aligned<T>(t.logits, t.logits_stride, t.dim) && aligned_to_16(t.grad)) {
    VIDEOAR_LAUNCH(grid, kBitThreads, stream, entropy_backward_kernel<T, true>)(t, p.coefficient, p.scales);
  } else {
    VIDEOAR_LAUNCH(grid, kBitThreads, stream, entropy_backward_kernel<T, false>)(t, p.coefficient, p.scales);
  }
  return launch_error();
}

}  // namespace

const char* launch_entropy(const EntropyLaunch& p, void* stream) {
  VIDEOAR_CUDA_DISPATCH(p.tokens.dtype, entropy, p, cudaStream_t(stream));
}

const char* launch_entropy_backward(const EntropyBackwardLaunch& p, void* stream) {
  VIDEOAR_CUDA_DISPATCH(p.tokens.dtype, entropy_backward, p, cudaStream_t(stream));
}

}  // namespace cuda
}  // namespace videoar
