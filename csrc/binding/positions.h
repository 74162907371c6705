// Rotary positions as bindings get them, and the table of angles that kernels read.
#pragma once

#include "../rope_table.h"
#include "tensors.h"

namespace videoar {

struct RopeOptions {
  int64_t dims[3];
  double theta;
  bool interleaved, inverse;

  RopeOptions(const std::vector<int64_t>& d, double theta, bool interleaved, bool inverse)
      : theta(theta), interleaved(interleaved), inverse(inverse) {
    STD_TORCH_CHECK(d.size() == 3, "rope: expected three dims");
    for (int i = 0; i < 3; ++i) {
      STD_TORCH_CHECK(d[size_t(i)] >= 0 && d[size_t(i)] % 2 == 0, "rope: expected even dims");
      dims[i] = d[size_t(i)];
    }
  }
};

template <class A>
inline RopeTable<A> table_of(const Tensor& positions, const RopeOptions& o) {
  const int64_t tokens = positions.numel() / 3;
  const void* data = positions.const_data_ptr();
  const auto build = [&](auto* typed) {
    return RopeTable<A>(typed, tokens, o.dims, o.theta, o.interleaved, o.inverse);
  };
  switch (positions.scalar_type()) {
    case ScalarType::Long: return build((const int64_t*)data);
    case ScalarType::Int: return build((const int32_t*)data);
    case ScalarType::Float: return build((const float*)data);
    case ScalarType::Double: return build((const double*)data);
    default: STD_TORCH_CHECK(false, "rope: expected positions of int64, int32, float32 or float64");
  }
}

// f(view) with the table of `positions` (L, 3) or (B, L, 3) in the accumulator type of `dtype`.
template <class F>
inline void with_table(const Tensor& positions, const RopeSizes& size, DType dtype, const RopeOptions& options,
                       const F& f) {
  const bool shared = positions.dim() == 2;
  STD_TORCH_CHECK(positions.numel() == (shared ? 1 : size.batch) * size.length * 3, "rope: wrong number of positions");
  const Tensor dense = torch::stable::contiguous(positions);
  const int64_t batch_stride = shared ? 0 : size.length;
  if (dtype == DType::f64) {
    f(table_of<double>(dense, options).view(batch_stride));
  } else {
    f(table_of<float>(dense, options).view(batch_stride));
  }
}

}  // namespace videoar
