#include "element.cuh"
#include "norm.h"

namespace videoar {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostGridRows = 65535;

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
template <class A>
__device__ inline A sigmoid(A x) {
  return 1 / (1 + exponential(-x));
}

// f(row, first, count) for every pack of a row: all of kPack elements but the last, which may have fewer.
template <int kPack, class F>
__device__ inline void each_pack(int64_t rows, int64_t width, const F& f) {
  const int64_t step = int64_t(gridDim.x) * kThreads * kPack;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y)
    for (int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kPack; first < width; first += step)
      f(row, first, width - first < kPack ? int(width - first) : kPack);
}

template <class A, int kPack, class T>
__device__ inline void load_pack(A (&value)[kPack], const T* p, int count) {
  if (count == kPack) {
    const Pack<T, kPack> pack = *(const Pack<T, kPack>*)p;
#pragma unroll
    for (int i = 0; i < kPack; ++i) value[i] = widen<A>(pack.value[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kPack; ++i) value[i] = i < count ? widen<A>(p[i]) : A(0);
  }
}

// p[i] = f(i), rounded once.
template <class A, int kPack, class T, class F>
__device__ inline void store_pack(T* p, int count, const F& f) {
  if (count == kPack) {
    Pack<T, kPack> pack;
#pragma unroll
    for (int i = 0; i < kPack; ++i) pack.value[i] = narrow<T, A>(f(i));
    *(Pack<T, kPack>*)p = pack;
  } else {
#pragma unroll
    for (int i = 0; i < kPack; ++i)
      if (i < count) p[i] = narrow<T, A>(f(i));
  }
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(const __grid_constant__ SwigluParams p) {
  using A = Accumulator<T>;
  each_pack<kPack>(p.rows, p.width, [&](int64_t row, int64_t first, int count) {
    A gate[kPack], up[kPack];
    load_pack(gate, (const T*)p.gate + row * p.gate_stride + first, count);
    load_pack(up, (const T*)p.up + row * p.up_stride + first, count);
    store_pack<A, kPack>((T*)p.out + row * p.out_stride + first, count,
                         [&](int i) { return gate[i] * sigmoid(gate[i]) * up[i]; });
  });
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) swiglu_backward_kernel(const __grid_constant__ SwigluBackwardParams p) {
  using A = Accumulator<T>;
  each_pack<kPack>(p.rows, p.width, [&](int64_t row, int64_t first, int count) {
    A grad[kPack], gate[kPack], up[kPack], share[kPack];
    load_pack(grad, (const T*)p.grad_out + row * p.grad_out_stride + first, count);
    load_pack(gate, (const T*)p.gate + row * p.gate_stride + first, count);
    load_pack(up, (const T*)p.up + row * p.up_stride + first, count);
#pragma unroll
    for (int i = 0; i < kPack; ++i) share[i] = sigmoid(gate[i]);
    store_pack<A, kPack>((T*)p.grad_gate + row * p.width + first, count,
                         [&](int i) { return grad[i] * up[i] * share[i] * (1 + gate[i] * (1 - share[i])); });
    store_pack<A, kPack>((T*)p.grad_up + row * p.width + first, count,
                         [&](int i) { return grad[i] * gate[i] * share[i]; });
  });
}

// Rows that follow on each other in every tensor are one row; so packs of 16 bytes serve them at any width.
struct Rows {
  int64_t rows, width;
  bool aligned = true;

  template <class... Strides>
  Rows(int64_t rows, int64_t width, Strides... strides) : rows(rows), width(width) {
    if (((strides == width) && ...)) {
      this->width = rows * width;
      this->rows = 1;
    }
  }
  Rows& align(const void* p, int64_t stride, int64_t element) {
    aligned = aligned && aligned_to_16(p) && (rows == 1 || stride * element % 16 == 0);
    return *this;
  }
  dim3 grid(int pack) const {
    const int64_t each = int64_t(kThreads) * pack;
    return dim3(grid_of((width + each - 1) / each), unsigned(rows < kMostGridRows ? rows : kMostGridRows));
  }
};

template <class T>
const char* swiglu(const SwigluParams& given, cudaStream_t stream) {
  Rows r(given.rows, given.width, given.gate_stride, given.up_stride, given.out_stride);
  SwigluParams p = given;
  p.rows = r.rows, p.width = r.width;
  constexpr int kPack = 16 / int(sizeof(T));
  r.align(p.gate, p.gate_stride, sizeof(T)).align(p.up, p.up_stride, sizeof(T)).align(p.out, p.out_stride, sizeof(T));
  if (r.aligned) {
    VIDEOAR_LAUNCH(r.grid(kPack), kThreads, stream, swiglu_kernel<T, kPack>)(p);
  } else {
    VIDEOAR_LAUNCH(r.grid(1), kThreads, stream, swiglu_kernel<T, 1>)(p);
  }
  return launch_error();
}

template <class T>
const char* swiglu_backward(const SwigluBackwardParams& given, cudaStream_t stream) {
  Rows r(given.rows, given.width, given.grad_out_stride, given.gate_stride, given.up_stride);
  r.align(given.grad_out, given.grad_out_stride, sizeof(T)).align(given.gate, given.gate_stride, sizeof(T));
  r.align(given.up, given.up_stride, sizeof(T));
  r.align(given.grad_gate, given.width, sizeof(T)).align(given.grad_up, given.width, sizeof(T));
  SwigluBackwardParams p = given;
  p.rows = r.rows, p.width = r.width;
  constexpr int kPack = 16 / int(sizeof(T));
  if (r.aligned) {
    VIDEOAR_LAUNCH(r.grid(kPack), kThreads, stream, swiglu_backward_kernel<T, kPack>)(p);
  } else {
    VIDEOAR_LAUNCH(r.grid(1), kThreads, stream, swiglu_backward_kernel<T, 1>)(p);
  }
  return launch_error();
}

}  // namespace

const char* launch_swiglu(const SwigluParams& p, void* stream) {
  if (p.rows * p.width == 0) return nullptr;
  VIDEOAR_CUDA_DISPATCH(p.dtype, swiglu, p, cudaStream_t(stream));
}
const char* launch_swiglu_backward(const SwigluBackwardParams& p, void* stream) {
  if (p.rows * p.width == 0) return nullptr;
  VIDEOAR_CUDA_DISPATCH(p.dtype, swiglu_backward, p, cudaStream_t(stream));
}

}  // namespace cuda
}  // namespace videoar
