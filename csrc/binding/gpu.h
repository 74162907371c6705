// The GPU's kernels beside the CPU's: which of them run, and how they are started.
#pragma once

#include "tensors.h"

#if defined(USE_CUDA)
#include <torch/csrc/stable/accelerator.h>
#endif

// VIDEOAR_GPU(f): the launcher cuda::f where it is built, else a null of its type. Tests build them for the CPU
// (VIDEOAR_CUDA_ON_CPU), which then runs nothing else.
#if defined(USE_CUDA) || defined(VIDEOAR_CUDA_ON_CPU)
#define VIDEOAR_GPU(f) &::videoar::cuda::f
#else
#define VIDEOAR_GPU(f) static_cast<decltype(&::videoar::cuda::f)>(nullptr)
#endif

// Registers kernels of bindings that serve both devices; add(m) names them.
#if defined(USE_CUDA)
#define VIDEOAR_REGISTER(add)                                    \
  STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) { add(m); } \
  STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CUDA, m) { add(m); }
#else
#define VIDEOAR_REGISTER(add) \
  STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) { add(m); }
#endif

namespace videoar {

// Whether x is where this library has kernels.
inline bool has_kernels(const Tensor& x) {
#if defined(USE_CUDA)
  return x.is_cpu() || x.is_cuda();
#else
  return x.is_cpu();
#endif
}

inline bool on_gpu([[maybe_unused]] const Tensor& x) {
#if defined(VIDEOAR_CUDA_ON_CPU)
  return true;
#elif defined(USE_CUDA)
  return x.is_cuda();
#else
  return false;
#endif
}

// Starts a kernel on the current stream of x's device.
template <class P>
inline void launch([[maybe_unused]] const Tensor& x, const char* (*launcher)(const P&, void*), const P& params) {
  void* stream = nullptr;
#if defined(USE_CUDA)
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                  "videoar_kernels: no CUDA stream");
#endif
  const char* error = launcher(params, stream);
  STD_TORCH_CHECK(error == nullptr, error);
}

// Runs the CPU's or the GPU's kernel, where both take the same parameters.
template <class P>
inline void run_kernel(const Tensor& x, void (*cpu)(const P&), const char* (*gpu)(const P&, void*), const P& params) {
  if (on_gpu(x)) return launch(x, gpu, params);
  cpu(params);
}

}  // namespace videoar
