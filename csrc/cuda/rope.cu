#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "rope.cuh"

namespace videoar {
namespace cuda {
namespace {

constexpr int kThreads = 256;
// Tokens whose cosines and sines a block keeps in shared memory: all heads read them there.
constexpr int kTokens = 4;

template <class A>
struct Angle {
  A cosine, sine;
};

__device__ inline double position_at(const RopeParams& p, int64_t index) {
  switch (p.position_type) {
    case PositionType::i64: return double(((const int64_t*)p.positions)[index]);
    case PositionType::i32: return double(((const int32_t*)p.positions)[index]);
    case PositionType::f32: return double(((const float*)p.positions)[index]);
    default: return ((const double*)p.positions)[index];
  }
}

template <class A, class T>
__device__ inline A widen(T value) {
  return A(value);
}
template <>
__device__ inline float widen<float, __half>(__half value) {
  return __half2float(value);
}
template <>
__device__ inline float widen<float, __nv_bfloat16>(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
template <class T, class A>
__device__ inline T narrow(A value) {
  return T(value);
}
template <>
__device__ inline __half narrow<__half, float>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16, float>(float value) {
  return __float2bfloat16_rn(value);
}

// kCount elements; read and written in one access of 16 bytes where kAligned, else element by element.
template <class T, int kCount, bool kAligned>
struct alignas(kAligned ? 16 : alignof(T)) Pack {
  static_assert(!kAligned || kCount * sizeof(T) == 16, "one memory access");
  T value[kCount];
};

// One pack of pairs: interleaved, kPack elements hold kPack / 2 pairs; else two packs half a head apart hold kPack.
template <class T, class A, int kPack, bool kAligned, bool kInterleaved>
__device__ inline void rotate_pack(const T* x, T* out, const Angle<A>* angles, int unit, int half) {
  using P = Pack<T, kPack, kAligned>;
  if constexpr (kInterleaved) {
    P pack = *(const P*)(x + unit * kPack);
#pragma unroll
    for (int i = 0; i < kPack / 2; ++i) {
      const Angle<A> angle = angles[unit * (kPack / 2) + i];
      const A a = widen<A>(pack.value[2 * i]), b = widen<A>(pack.value[2 * i + 1]);
      pack.value[2 * i] = narrow<T>(a * angle.cosine - b * angle.sine);
      pack.value[2 * i + 1] = narrow<T>(a * angle.sine + b * angle.cosine);
    }
    *(P*)(out + unit * kPack) = pack;
  } else {
    P first = *(const P*)(x + unit * kPack), second = *(const P*)(x + half + unit * kPack);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const Angle<A> angle = angles[unit * kPack + i];
      const A a = widen<A>(first.value[i]), b = widen<A>(second.value[i]);
      first.value[i] = narrow<T>(a * angle.cosine - b * angle.sine);
      second.value[i] = narrow<T>(a * angle.sine + b * angle.cosine);
    }
    *(P*)(out + unit * kPack) = first;
    *(P*)(out + half + unit * kPack) = second;
  }
}

template <class T, class A, int kPack, bool kAligned, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) rope_kernel(const __grid_constant__ RopeParams p) {
  __shared__ Angle<A> angles[kTokens * kRopeMaxDim / 2];
  __shared__ int64_t x_offset[kTokens], out_offset[kTokens];
  const int pairs = p.dim / 2, heads = int(p.heads);
  const int units = kInterleaved ? p.dim / kPack : pairs / kPack;
  const int64_t tokens = p.batch * p.length;
  for (int64_t first = int64_t(blockIdx.x) * kTokens; first < tokens; first += int64_t(gridDim.x) * kTokens) {
    const int count = tokens - first < kTokens ? int(tokens - first) : kTokens;
    if (int(threadIdx.x) < count) {
      const int64_t sample = (first + threadIdx.x) / p.length, token = (first + threadIdx.x) % p.length;
      x_offset[threadIdx.x] = sample * p.x_stride[0] + token * p.x_stride[2];
      out_offset[threadIdx.x] = sample * p.out_stride[0] + token * p.out_stride[2];
    }
    for (int i = int(threadIdx.x); i < count * pairs; i += kThreads) {
      const int pair = i % pairs, axis = (pair >= p.axis_end[0]) + (pair >= p.axis_end[1]);
      const int64_t token = first + i / pairs;
      const int64_t row = token / p.length * p.position_batch_stride + token % p.length;
      double sine, cosine;
      sincos(position_at(p, row * 3 + axis) * p.inverse_frequency[pair], &sine, &cosine);
      angles[i] = {A(cosine), A(p.inverse ? -sine : sine)};
    }
    __syncthreads();
    // 32-bit: the launcher bounds the heads.
    const int work = count * heads * units;
    for (int i = int(threadIdx.x); i < work; i += kThreads) {
      const int unit = i % units, row = i / units, head = row % heads, local = row / heads;
      const T* x = (const T*)p.x + x_offset[local] + head * p.x_stride[1];
      T* out = (T*)p.out + out_offset[local] + head * p.out_stride[1];
      rotate_pack<T, A, kPack, kAligned, kInterleaved>(x, out, angles + local * pairs, unit, pairs);
    }
    __syncthreads();
  }
}

template <class T, class A, int kPack, bool kAligned, bool kInterleaved>
const char* launch(const RopeParams& p, cudaStream_t stream) {
  const int64_t blocks = (p.batch * p.length + kTokens - 1) / kTokens;
  // Past this many blocks a block takes several groups of tokens.
  const unsigned grid = unsigned(blocks < (1 << 20) ? blocks : 1 << 20);
  rope_kernel<T, A, kPack, kAligned, kInterleaved><<<grid, kThreads, 0, stream>>>(p);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Whether every pack of 16 bytes is aligned to 16 bytes.
bool packs_are_aligned(const RopeParams& p, int64_t element_bytes, int64_t pack) {
  bool aligned = (p.interleaved ? p.dim : p.dim / 2) % pack == 0;
  aligned = aligned && uint64_t(p.x) % 16 == 0 && uint64_t(p.out) % 16 == 0;
  const int64_t sizes[3] = {p.batch, p.heads, p.length};
  for (int i = 0; i < 3; ++i) {
    if (sizes[i] > 1) aligned = aligned && (p.x_stride[i] | p.out_stride[i]) * element_bytes % 16 == 0;
  }
  return aligned;
}

template <class T, class A>
const char* launch_dtype(const RopeParams& p, cudaStream_t stream) {
  constexpr int kPack = 16 / int(sizeof(T));
  if (packs_are_aligned(p, sizeof(T), kPack)) {
    return p.interleaved ? launch<T, A, kPack, true, true>(p, stream) : launch<T, A, kPack, true, false>(p, stream);
  }
  return p.interleaved ? launch<T, A, 2, false, true>(p, stream) : launch<T, A, 1, false, false>(p, stream);
}

}  // namespace

const char* launch_rope(const RopeParams& params, void* stream) {
  if (params.batch * params.heads * params.length * params.dim == 0) return nullptr;
  if (params.dim > kRopeMaxDim) return "rope: head_dim above 256";
  if (params.heads > 1 << 20) return "rope: more than 2^20 heads";
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (params.dtype) {
    case DType::f32: return launch_dtype<float, float>(params, s);
    case DType::f64: return launch_dtype<double, double>(params, s);
    case DType::bf16: return launch_dtype<__nv_bfloat16, float>(params, s);
    case DType::f16: return launch_dtype<__half, float>(params, s);
  }
  return "rope: unknown dtype";
}

}  // namespace cuda
}  // namespace videoar
