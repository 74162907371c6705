// Softmax attention under a RangeMask. Reference: videoar_kernels/reference/attention.py.
#pragma once

#include <cstdint>

#include "../tiles.h"
#include "dtype.h"
#include "isa.h"

namespace videoar {

// (batch, heads, length, head_dim) with contiguous rows; strides in elements.
template <class Pointer>
struct HeadRows {
  Pointer data;
  int64_t batch, head, row;
};

struct AttentionShape {
  int64_t batch, heads, kv_heads, q_len, k_len, head_dim;
  double scale;
  DType dtype;
};

struct AttentionParams {
  AttentionShape shape;
  HeadRows<const void*> q, k, v;
  HeadRows<void*> out;
  void* lse;      // (batch, heads, q_len) dense, in the accumulator's type; or null: not asked for
  TileView plan;  // tiles of queries
};

// delta = rowsum(grad_out * out) - grad_lse; P = exp(S - lse); dV = P^T dO; dS = P * (dO V^T - delta);
// dQ = scale * dS K; dK = scale * dS^T Q.
struct AttentionBackwardParams {
  AttentionShape shape;
  HeadRows<const void*> q, k, v, out, grad_out;
  const void* lse;
  const void* grad_lse;  // like lse, or null for zero
  HeadRows<void*> grad_q, grad_k, grad_v;
  TileView plan;  // tiles of keys
};

struct AttentionKernels {
  int query_tile[4], key_tile[4];  // rows of a tile of the two plans, by DType
  int decode_queries;              // up to so many queries, decode is quicker than forward
  void (*forward)(const AttentionParams&);
  void (*decode)(const AttentionParams&);  // the same for few queries: one tile of up to kMaxTile rows per sample
  void (*backward)(const AttentionBackwardParams&);
};

VIDEOAR_DECLARE_KERNELS(AttentionKernels, attention_kernels)

}  // namespace videoar
