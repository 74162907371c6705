// Elements on the device: to the type they are computed in and back, and packs of 16 bytes.
#pragma once

#include <type_traits>

#include "launch.cuh"

namespace videoar {
namespace cuda {

// From an element to the type it is computed in (Accumulator<T>), and back.
template <class A, class T>
__device__ inline A widen(T value) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float(value);
  else
    return A(value);
}
template <class T, class A>
__device__ inline T narrow(A value) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(value);
  else
    return T(value);
}

// kCount elements, moved in accesses of up to 16 bytes.
template <class T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T value[kCount];
};

// What lies at p and is not written while the kernel runs.
template <class P>
__device__ inline P read_only(const P* p) {
  if constexpr (sizeof(P) % 16 == 0) {
    union {
      uint4 words[sizeof(P) / 16];
      P value;
    } got;
#pragma unroll
    for (int i = 0; i < int(sizeof(P) / 16); ++i) got.words[i] = __ldg((const uint4*)p + i);
    return got.value;
  } else {
    return *p;
  }
}

inline bool aligned_to_16(const void* p) { return uint64_t(p) % 16 == 0; }

}  // namespace cuda
}  // namespace videoar

// Calls `f<T>(params)` for the device's element type that `dtype` names.
#define VIDEOAR_CUDA_DISPATCH(dtype, f, ...)                           \
  switch (dtype) {                                                     \
    case ::videoar::DType::f32: return f<float>(__VA_ARGS__);          \
    case ::videoar::DType::f64: return f<double>(__VA_ARGS__);         \
    case ::videoar::DType::bf16: return f<__nv_bfloat16>(__VA_ARGS__); \
    case ::videoar::DType::f16: return f<__half>(__VA_ARGS__);         \
  }                                                                    \
  return "unknown dtype"
