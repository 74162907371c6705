// Packed bits on NVIDIA GPUs: launchers for the structs of cpu/bits.h, with pointers to device memory. Random draws
// equal the CPU's. Not yet run on a GPU.
#pragma once

#include "../cpu/bits.h"

namespace videoar {
namespace cuda {

// Blocks that sum a loss, each over a fixed part of the tokens.
inline int64_t entropy_blocks(int64_t rows) { return rows < 512 ? (rows < 1 ? 1 : rows) : 512; }

// As EntropyParams (its sums and refused are not used), with all results on the device: loss and accuracy (1),
// per_scale and scale_accuracy (scales) in float32, or float64 for float64 logits; totals (scales), the weights.
// sums: entropy_blocks() * scales, scratch. A scale id out of range makes NaN of
// the loss, and in backward of its token's gradient.
struct EntropyLaunch {
  EntropyParams tokens;
  EntropySums* sums;
  void* loss;
  void* accuracy;
  void* per_scale;
  void* scale_accuracy;
  double* totals;
};

// As EntropyBackwardParams, whose coefficient (scales) is filled from the gradients of the loss.
struct EntropyBackwardLaunch {
  EntropyBackwardParams tokens;
  const void* grad_loss;       // (1), dtype of the loss
  const void* grad_per_scale;  // (scales)
  const double* totals;
  double* coefficient;
  int64_t scales;
};

// Enqueue on `stream` (a cudaStream_t); null on success, else what went wrong.
const char* launch_quantize(const QuantizeParams& params, void* stream);
const char* launch_pack(const PackParams& params, void* stream);
const char* launch_unpack(const UnpackParams& params, void* stream);
const char* launch_code(const CodeParams& params, void* stream);
const char* launch_flip(const FlipParams& params, void* stream);
const char* launch_sample(const SampleParams& params, void* stream);
const char* launch_entropy(const EntropyLaunch& params, void* stream);
const char* launch_entropy_backward(const EntropyBackwardLaunch& params, void* stream);

}  // namespace cuda
}  // namespace videoar
