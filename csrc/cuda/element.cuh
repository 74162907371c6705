// Elements on the device: what they are stored as, what they are computed in, and packs of 16 bytes.
#pragma once

#include "launch.cuh"

namespace videoar {
namespace cuda {

template <class T>
struct DeviceElement {
  using type = T;
};
template <>
struct DeviceElement<bf16> {
  using type = __nv_bfloat16;
};
template <>
struct DeviceElement<f16> {
  using type = __half;
};

template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

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

// kCount elements, moved in accesses of up to 16 bytes.
template <class T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T value[kCount];
};

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
