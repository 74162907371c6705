// Rotary positions as bindings get them, and the table of angles that kernels read.
#pragma once

#include "../cuda/rope.h"
#include "../rope_table.h"
#include "tensors.h"

namespace videoar {

using MaybeDims = std::optional<std::vector<int64_t>>;

struct RopeOptions {
  int64_t dims[3];
  double theta;
  bool interleaved, inverse;

  // Without dims h and w get 2 * (head_dim / 6) elements each and t the rest, as in Wan.
  RopeOptions(const MaybeDims& given, int64_t head_dim, double theta, bool interleaved, bool inverse)
      : theta(theta), interleaved(interleaved), inverse(inverse) {
    const int64_t side = head_dim / 6 * 2;
    dims[0] = head_dim - 2 * side, dims[1] = dims[2] = side;
    if (given.has_value()) {
      STD_TORCH_CHECK(given->size() == 3, "rope: expected three dims");
      std::copy(given->begin(), given->end(), dims);
    }
    for (const int64_t dim : dims) {
      STD_TORCH_CHECK(0 <= dim && dim <= head_dim && dim % 2 == 0, "rope: expected even dims within a head");
    }
    STD_TORCH_CHECK(dims[0] + dims[1] + dims[2] == head_dim, "rope: dims do not add up");
    STD_TORCH_CHECK(theta > 0 && std::isfinite(theta), "rope: expected a finite theta above 0");
  }
};

template <class A>
inline std::shared_ptr<const RopeTable<A>> table_of(const Tensor& positions, const RopeOptions& o, bool spread) {
  static RopeTableCache<A> cache;
  const void* data = positions.const_data_ptr();
  const auto get = [&](auto* typed) {
    const int64_t tokens = positions.numel() / 3, bytes = 3 * tokens * int64_t(sizeof(*typed));
    const RopeTableKey key = {
        data,    tokens, bytes,    int(positions.scalar_type()), {o.dims[0], o.dims[1], o.dims[2]},
        o.theta, spread, o.inverse};
    return cache.get(key, [&] { return RopeTable<A>(typed, tokens, o.dims, o.theta, spread, o.inverse); });
  };
  switch (positions.scalar_type()) {
    case ScalarType::Long: return get((const int64_t*)data);
    case ScalarType::Int: return get((const int32_t*)data);
    case ScalarType::Float: return get((const float*)data);
    case ScalarType::Double: return get((const double*)data);
    default: STD_TORCH_CHECK(false, "rope: expected positions of int64, int32, float32 or float64");
  }
}

// The positions (L, 3) or (B, L, 3) of x, dense.
inline Tensor dense_positions(const Tensor& positions, const RopeSizes& size, const Tensor& x) {
  const int64_t dims = positions.dim();
  STD_TORCH_CHECK(same_device(positions, x) && (dims == 2 || (dims == 3 && positions.size(0) == size.batch)) &&
                      positions.size(-2) == size.length && positions.size(-1) == 3,
                  "rope: wrong number of positions, or on another device");
  return positions.is_contiguous() ? positions : torch::stable::contiguous(positions);
}

// f(view) with the table of dense positions in the accumulator type of `dtype`, with a value for every element where
// `spread`, else one for every pair.
template <class F>
inline void with_table(const Tensor& positions, const RopeSizes& size, DType dtype, const RopeOptions& options,
                       bool spread, const F& f) {
  const int64_t batch_stride = positions.dim() == 2 ? 0 : size.length;
  if (dtype == DType::f64) {
    const auto table = table_of<double>(positions, options, spread);
    f(table->view(batch_stride));
  } else {
    const auto table = table_of<float>(positions, options, spread);
    f(table->view(batch_stride));
  }
}

inline cuda::PositionType position_type(const Tensor& positions) {
  switch (positions.scalar_type()) {
    case ScalarType::Long: return cuda::PositionType::i64;
    case ScalarType::Int: return cuda::PositionType::i32;
    case ScalarType::Float: return cuda::PositionType::f32;
    case ScalarType::Double: return cuda::PositionType::f64;
    default: STD_TORCH_CHECK(false, "rope: expected positions of int64, int32, float32 or float64");
  }
}

// Where the GPU's kernels get the angles of dense positions from.
inline cuda::Rotation rotation_of(const Tensor& positions, const RopeSizes& size, const RopeOptions& options) {
  STD_TORCH_CHECK(size.dim <= cuda::kRopeMaxDim, "rope: expected a head_dim of at most 256 on a GPU");
  cuda::Rotation rotation{};
  rotation.positions = positions.const_data_ptr();
  rotation.batch_stride = positions.dim() == 2 ? 0 : size.length;
  int pair = 0;
  for (int axis = 0; axis < 3; ++axis) {
    for (const double frequency : inverse_frequencies(options.dims[axis], options.theta)) {
      rotation.inverse_frequency[pair++] = frequency;
    }
    rotation.axis_end[axis] = pair;
  }
  rotation.type = position_type(positions);
  rotation.interleaved = options.interleaved;
  rotation.inverse = options.inverse;
  return rotation;
}

}  // namespace videoar
