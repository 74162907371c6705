// What every binding needs to turn a stable-ABI tensor into the plain structs that kernels take.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <tuple>
#include <utility>
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

inline int64_t element_bytes(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
    case ScalarType::Long: return 8;
    case ScalarType::Float:
    case ScalarType::Int: return 4;
    case ScalarType::BFloat16:
    case ScalarType::Half: return 2;
    default: return 1;
  }
}

// The dimensions of more than one element, widest stride first.
inline std::vector<std::pair<int64_t, int64_t>> nested_dims(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t i = 0; i < t.dim(); ++i) {
    if (t.size(i) > 1) dims.emplace_back(t.stride(i), t.size(i));
  }
  std::sort(dims.begin(), dims.end(), std::greater<>());
  return dims;
}

inline bool repeats_elements(const Tensor& t) {
  if (t.numel() == 0) return false;
  const auto dims = nested_dims(t);
  int64_t extent = 1;
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    if (dim->first < extent) return true;
    extent += (dim->second - 1) * dim->first;
  }
  return false;
}

// Whether two elements of one layout lie `offset` apart.
inline bool spans(int64_t offset, const std::pair<int64_t, int64_t>* dim, const std::pair<int64_t, int64_t>* end) {
  if (dim == end) return offset == 0;
  const auto [stride, size] = *dim;
  const int64_t below = offset >= 0 ? offset / stride : -((stride - 1 - offset) / stride);
  for (int64_t steps = below; steps <= below + 1; ++steps) {
    if (-size < steps && steps < size && spans(offset - steps * stride, dim + 1, end)) return true;
  }
  return false;
}

// Whether `out`, which does not overlap itself, shares memory with `input` without being the same view of it. Views of
// other strides inside one another's range count as overlapping.
inline bool shares_memory(const Tensor& out, const Tensor& input) {
  if (out.numel() == 0 || input.numel() == 0) return false;
  const auto a = nested_dims(out), b = nested_dims(input);
  const auto bytes = [](const Tensor& t, const auto& dims) {
    int64_t last = 0;
    for (const auto& [stride, size] : dims) last += stride * (size - 1);
    return (last + 1) * element_bytes(t);
  };
  const int64_t offset = (const char*)input.const_data_ptr() - (const char*)out.const_data_ptr();
  if (offset >= bytes(out, a) || -offset >= bytes(input, b)) return false;
  if (a != b || element_bytes(out) != element_bytes(input) || offset % element_bytes(out) != 0) return true;
  return offset != 0 && spans(offset / element_bytes(out), a.data(), a.data() + a.size());
}

// Refuses an `out` that cannot take a result like `like`.
inline void check_output(const Tensor& out, const Tensor& like, const char* name) {
  check_like(out, like, name);
  const bool rows = out.dim() == 0 || out.size(out.dim() - 1) <= 1 || out.stride(out.dim() - 1) == 1;
  STD_TORCH_CHECK(rows && !repeats_elements(out), name, ": elements not in contiguous rows, or stored twice");
}

// Refuses an `out` that shares memory with an input in any way but being it.
inline void check_apart(const Tensor& out, const Tensor& input, const char* name) {
  STD_TORCH_CHECK(!shares_memory(out, input), name, ": overlaps an input");
}

}  // namespace videoar
