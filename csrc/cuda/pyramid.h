// Multi-scale residual quantization on NVIDIA GPUs: launchers for the structs of cpu/pyramid.h, with pointers to device
// memory (shape.scales is read on the host). Random draws equal the CPU's. Not yet run on a GPU.
#pragma once

#include "../cpu/pyramid.h"

namespace videoar {
namespace cuda {

constexpr int64_t kPyramidScales = 32;

// Planes of more pixels are kept in scratch memory, by at most so many blocks.
constexpr int64_t kSharedPixels = 256, kEncodeBlocks = 1024;

inline int64_t encode_blocks(const PyramidShape& s) {
  const int64_t tasks = s.batch * s.frames * ((s.dim + 7) / 8);
  return tasks < kEncodeBlocks ? tasks : kEncodeBlocks;
}

// Bytes of scratch memory that encoding needs.
inline int64_t encode_scratch_bytes(const PyramidShape& s) {
  const int64_t pixels = s.height * s.width, octet = s.dtype == DType::f64 ? 64 : 32;
  return pixels <= kSharedPixels ? 0 : encode_blocks(s) * 3 * pixels * octet;
}

// tokens: (batch, frames, tokens, dim) in the compute type, scratch.
struct EncodeBackwardLaunch {
  EncodeBackwardParams params;
  void* tokens;
};

struct EncodeLaunch {
  EncodeParams params;
  void* scratch;
};

// Enqueue on `stream` (a cudaStream_t); null on success, else what went wrong.
const char* launch_pyramid_encode(const EncodeLaunch& params, void* stream);
const char* launch_pyramid_encode_backward(const EncodeBackwardLaunch& params, void* stream);
const char* launch_pyramid_decode(const DecodeParams& params, void* stream);
const char* launch_pyramid_resample(const ResampleParams& params, void* stream);
const char* launch_pyramid_resample_backward(const ResampleBackwardParams& params, void* stream);
const char* launch_pyramid_step(const StepParams& params, void* stream);

}  // namespace cuda
}  // namespace videoar
