// What every binding needs to turn a stable-ABI tensor into the plain structs that kernels take.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../cpu/dtype.h"

namespace videoar {

using Tensor = torch::stable::Tensor;
using torch::headeronly::ScalarType;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, "videoar_kernels: expected float32, float64, bfloat16 or float16");
  }
  return DType::f32;
}

// Refuses a tensor that has not the shape, dtype and device of `like`.
inline void check_like(const Tensor& t, const Tensor& like, const char* name) {
  bool same = t.dim() == like.dim() && t.scalar_type() == like.scalar_type() && t.is_cpu() == like.is_cpu();
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == like.size(i);
  STD_TORCH_CHECK(same, name, ": another shape, dtype or device");
}

// The tensor itself if its last dimension is contiguous, else a dense copy.
inline Tensor dense_rows(const Tensor& t) {
  const bool dense = t.dim() == 0 || t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1;
  return dense ? t : torch::stable::contiguous(t);
}

// A tensor seen as `rows` rows of `width` contiguous elements, `stride` elements apart. Leading dimensions that
// do not collapse to one stride are copied first.
struct Rows {
  Tensor tensor;
  int64_t rows, width, stride;

  explicit Rows(const Tensor& input) : tensor(dense_rows(input)) {
    const int64_t last = tensor.dim() - 1;
    width = tensor.size(last);
    rows = 1;
    for (int64_t i = 0; i < last; ++i) rows *= tensor.size(i);
    stride = width;
    int64_t expected = -1;
    bool collapses = true;
    for (int64_t i = last - 1; i >= 0; --i) {
      if (tensor.size(i) == 1) continue;
      if (expected < 0) {
        stride = tensor.stride(i);
      } else if (tensor.stride(i) != expected) {
        collapses = false;
      }
      expected = tensor.stride(i) * tensor.size(i);
    }
    if (!collapses) {
      tensor = torch::stable::contiguous(tensor);
      stride = width;
    }
  }
};

// A fresh dense tensor of `like`'s dtype and device.
inline Tensor empty_dense(const Tensor& like, const std::vector<int64_t>& sizes,
                          std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, sizes, dtype);
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(t.size(i));
  return sizes;
}

}  // namespace videoar
