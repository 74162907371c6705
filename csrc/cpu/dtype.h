// Element types as kernels see them: plain storage, with the arithmetic type each accumulates in.
#pragma once

#include <cstdint>

namespace videoar {

enum class DType : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

}  // namespace videoar

// Calls `f<T>(params)` for the element type that `dtype` names.
#define VIDEOAR_DISPATCH(dtype, f, ...)                                  \
  switch (dtype) {                                                       \
    case ::videoar::DType::f32: f<float>(__VA_ARGS__); break;            \
    case ::videoar::DType::f64: f<double>(__VA_ARGS__); break;           \
    case ::videoar::DType::bf16: f<::videoar::bf16>(__VA_ARGS__); break; \
    case ::videoar::DType::f16: f<::videoar::f16>(__VA_ARGS__); break;   \
  }
