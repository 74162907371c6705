// Modulated norms on NVIDIA GPUs: launchers for the structs of cpu/norm.h, with pointers to device memory.
#pragma once

#include "../cpu/norm.h"

namespace videoar {
namespace cuda {

// Sums over tokens are cut into about this many tasks, a block each.
constexpr int64_t kNormTasks = 1024;

// Enqueue on `stream` (a cudaStream_t); null on success, else what went wrong.
const char* launch_adaln_norm(const AdalnParams& params, void* stream);
const char* launch_adaln_norm_backward(const AdalnBackwardParams& params, void* stream);
const char* launch_gated_residual(const GatedResidualParams& params, void* stream);
const char* launch_gated_residual_backward(const GatedResidualBackwardParams& params, void* stream);
const char* launch_swiglu(const SwigluParams& params, void* stream);
const char* launch_swiglu_backward(const SwigluBackwardParams& params, void* stream);

}  // namespace cuda
}  // namespace videoar
