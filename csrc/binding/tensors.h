// What every binding needs to turn a stable-ABI tensor into the plain structs that kernels take.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/dtype.h"

namespace videoar {

using Tensor = torch::stable::Tensor;
using torch::headeronly::ScalarType;

inline DType dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, "videoar_kernels: expected float32, float64, bfloat16 or float16");
  }
  return DType::f32;
}
inline DType dtype_of(const Tensor& t) { return dtype_of(t.scalar_type()); }

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() ? b.is_cpu() : a.is_cuda() && b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// Refuses a tensor that has not the shape, dtype and device of `like`.
inline void check_like(const Tensor& t, const Tensor& like, const char* name) {
  bool same = t.dim() == like.dim() && t.scalar_type() == like.scalar_type() && same_device(t, like);
  const auto sizes = t.sizes(), expected = like.sizes();
  for (size_t i = 0; same && i < sizes.size(); ++i) same = sizes[i] == expected[i];
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

  explicit Rows(const Tensor& input) : tensor(input) {
    STD_TORCH_CHECK(tensor.dim() >= 1, "videoar_kernels: expected at least one dimension");
    if (!collapse()) {
      tensor = torch::stable::contiguous(tensor);
      collapse();
    }
  }

 private:
  bool collapse() {
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    const size_t last = sizes.size() - 1;
    width = stride = sizes[last];
    rows = 1;
    bool dense = width <= 1 || strides[last] == 1;
    int64_t expected = -1;
    for (size_t i = last; i-- > 0;) {
      rows *= sizes[i];
      if (sizes[i] == 1) continue;
      if (expected < 0) stride = strides[i];
      dense = dense && (expected < 0 || strides[i] == expected);
      expected = strides[i] * sizes[i];
    }
    return dense;
  }
};

// A fresh dense tensor of `like`'s dtype and device. On the CPU no dispatcher is asked, which takes longer.
inline Tensor empty_dense(const Tensor& like, const std::vector<int64_t>& sizes,
                          std::optional<ScalarType> dtype = std::nullopt) {
  constexpr size_t kMostDims = 16;
  if (!like.is_cpu() || sizes.size() > kMostDims) return torch::stable::new_empty(like, sizes, dtype);
  int64_t strides[kMostDims], reach = 1;
  for (size_t i = sizes.size(); i-- > 0; reach *= sizes[i] > 1 ? sizes[i] : 1) strides[i] = reach;
  AtenTensorHandle made = nullptr;
  const ScalarType wanted = dtype.has_value() ? *dtype : like.scalar_type();
  STD_TORCH_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides, int32_t(wanted),
                                           aoti_torch_device_type_cpu(), -1, &made) == 0,
                  "videoar_kernels: no memory for a result");
  return Tensor(made);
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  const auto all = t.sizes();
  return std::vector<int64_t>(all.begin(), all.end());
}

}  // namespace videoar
