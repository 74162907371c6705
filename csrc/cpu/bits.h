// Packed bits: quantize, pack, flip, sample, cross-entropy. Reference: videoar_kernels/reference/bits.py.
// Bits of a token: ceil(dim / 8) bytes, little-endian, padding bits zero. Inputs are rows `stride` elements apart;
// outputs are dense.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace videoar {

struct QuantizeParams {
  const void* x;
  uint8_t* bits;
  void* code;
  int64_t rows, dim, stride;
  DType dtype;
};

// ones[i] != 0 -> bit i.
struct PackParams {
  const uint8_t* ones;
  uint8_t* bits;
  int64_t rows, dim, stride;
};

struct UnpackParams {
  const uint8_t* bits;
  uint8_t* ones;
  int64_t rows, dim, stride;
};

struct CodeParams {
  const uint8_t* bits;
  void* code;
  int64_t rows, dim, stride;
  DType dtype;
};

// Element `row * dim + i` draws its own uniform; `row_p` (one per row) replaces `p` where it is not null.
struct FlipParams {
  const uint8_t* bits;
  uint8_t* out;
  const double* row_p;
  double p;
  int64_t rows, dim, stride;
  uint64_t seed, offset;
};

// logit = uncond + guidance * (logits - uncond); bit = uniform < sigmoid(logit / temperature), or logit > 0 at
// temperature 0. `uncond` may be null; `row_guidance` (one per row) replaces `guidance` where it is not null.
struct SampleParams {
  const void* logits;
  const void* uncond;
  const double* row_guidance;
  uint8_t* bits;
  void* code;
  double guidance, temperature;
  int64_t rows, dim, logits_stride, uncond_stride;
  uint64_t seed, offset;
  const int64_t* seeds;  // one for every sample_rows rows, whose elements are numbered from 0; null: seed, for all
  int64_t sample_rows;
  DType dtype;
};

// Sums over the tokens of one scale: weight * entropy in nats, weight * bits whose sign agrees, weight.
struct EntropySums {
  double nats, hits, weight;
};

// Tokens are summed in so many chunks, whatever the number of threads, so that it cannot change the result.
static inline int64_t entropy_chunks(int64_t rows) { return rows < 64 ? rows : 64; }

// weight: null (ones), or one per row. scale_ids: null (all 0), or one per row. sums: (entropy_chunks(rows), scales);
// refused: one per chunk, set where a scale id is out of range.
struct EntropyParams {
  const void* logits;
  const uint8_t* bits;
  const double* weight;
  const int32_t* scale_ids;
  EntropySums* sums;
  bool* refused;
  int64_t rows, dim, scales, logits_stride, bits_stride;
  DType dtype;
};

// grad = coefficient[scale id] * weight * (sigmoid(logit) - bit); scale ids are in range.
struct EntropyBackwardParams {
  const void* logits;
  const uint8_t* bits;
  const double* weight;
  const int32_t* scale_ids;
  const double* coefficient;
  void* grad;
  int64_t rows, dim, logits_stride, bits_stride;
  DType dtype;
};

struct BitsKernels {
  void (*quantize)(const QuantizeParams&);
  void (*pack)(const PackParams&);
  void (*unpack)(const UnpackParams&);
  void (*code)(const CodeParams&);
  void (*flip)(const FlipParams&);
  void (*sample)(const SampleParams&);
  void (*entropy)(const EntropyParams&);
  void (*entropy_backward)(const EntropyBackwardParams&);
};

VIDEOAR_DECLARE_KERNELS(BitsKernels, bits_kernels)

}  // namespace videoar
