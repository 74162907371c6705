// Results: fresh ones with strides of their own, and those that a caller hands in, which must fit and lie apart from
// the inputs.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>

#include "tensors.h"

namespace videoar {

// A fresh tensor on the CPU. Quicker than an operator: nothing is looked up or dispatched.
inline Tensor empty_strided(const int64_t* sizes, const int64_t* strides, int64_t dims, int32_t dtype) {
  AtenTensorHandle made = nullptr;
  STD_TORCH_CHECK(aoti_torch_empty_strided(dims, sizes, strides, dtype, aoti_torch_device_type_cpu(), -1, &made) == 0,
                  "videoar_kernels: no memory for a result");
  return Tensor(made);
}

inline int32_t dtype_code(const Tensor& t) {
  int32_t code;
  STD_TORCH_CHECK(aoti_torch_get_dtype(t.get(), &code) == 0, "videoar_kernels: a tensor without dtype");
  return code;
}

struct Dim {
  int64_t stride, size;

  bool operator==(const Dim& other) const { return stride == other.stride && size == other.size; }
};

// The dimensions of more than one element.
inline std::vector<Dim> moving_dims(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  std::vector<Dim> dims;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1) dims.push_back({strides[i], sizes[i]});
  }
  return dims;
}

inline void sort_widest_first(std::vector<Dim>& dims) {
  std::sort(dims.begin(), dims.end(),
            [](const Dim& a, const Dim& b) { return a.stride != b.stride ? a.stride > b.stride : a.size > b.size; });
}

inline bool repeats_elements(const Tensor& t) {
  if (t.numel() == 0 || t.is_contiguous()) return false;
  std::vector<Dim> dims = moving_dims(t);
  sort_widest_first(dims);
  int64_t extent = 1;
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    if (dim->stride < extent) return true;
    extent += (dim->size - 1) * dim->stride;
  }
  return false;
}

// Where a tensor's elements lie, from its first byte to past its last; two such spans that don't meet share nothing.
struct ByteSpan {
  uintptr_t begin, end;

  explicit ByteSpan(const Tensor& t) : begin(uintptr_t(t.const_data_ptr())), end(begin) {
    const auto sizes = t.sizes(), strides = t.strides();
    int64_t last = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] == 0) return;
      last += (sizes[i] - 1) * strides[i];
    }
    end += uintptr_t((last + 1) * int64_t(t.element_size()));
  }
  bool meets(const ByteSpan& other) const { return begin < other.end && other.begin < end; }
};

// Whether two elements of one layout lie `offset` apart.
inline bool spans(int64_t offset, const Dim* dim, const Dim* end) {
  if (dim == end) return offset == 0;
  const auto [stride, size] = *dim;
  const int64_t below = offset >= 0 ? offset / stride : -((stride - 1 - offset) / stride);
  for (int64_t steps = below; steps <= below + 1; ++steps) {
    if (-size < steps && steps < size && spans(offset - steps * stride, dim + 1, end)) return true;
  }
  return false;
}

// Whether `out`, which does not overlap itself, shares memory with `input`; `or_same`: in any other way than by being
// it, element for element. Views of other strides inside one another's range count as sharing.
inline bool shares_memory(const Tensor& out, const Tensor& input, bool or_same) {
  const ByteSpan written(out), read(input);
  if (!written.meets(read)) return false;
  const int64_t width = int64_t(out.element_size()), offset = int64_t(read.begin - written.begin);
  std::vector<Dim> a = moving_dims(out), b = moving_dims(input);
  if (width != int64_t(input.element_size()) || offset % width != 0) return true;
  if (offset == 0) return !(or_same && a == b);
  sort_widest_first(a), sort_widest_first(b);
  return a != b || spans(offset / width, a.data(), a.data() + a.size());
}

// Refuses an `out` that shares memory with an input; `in_place`: but it may be that input, element for element.
inline void check_apart(const Tensor& out, const Tensor& input, bool in_place, const char* message) {
  STD_TORCH_CHECK(!shares_memory(out, input, in_place), message);
}

// Refuses an `out` that cannot take a result like `like`.
inline void check_output(const Tensor& out, const Tensor& like, const char* name) {
  check_like(out, like, name);
  const bool rows = out.dim() == 0 || out.size(out.dim() - 1) <= 1 || out.stride(out.dim() - 1) == 1;
  STD_TORCH_CHECK(rows && !repeats_elements(out), name, ": elements not in contiguous rows, or stored twice");
}

// Refuses `out` unless it is dense, has `like`'s leading sizes and `last` elements a row, and is of `dtype`.
inline void check_dense_out(const Tensor& out, const Tensor& like, int64_t last, ScalarType dtype,
                            const char* message) {
  const auto sizes = out.sizes(), expected = like.sizes();
  bool fits = sizes.size() == expected.size() && same_device(out, like) && out.scalar_type() == dtype;
  fits = fits && out.is_contiguous();
  for (size_t i = 0; fits && i < sizes.size(); ++i) {
    fits = sizes[i] == (i + 1 == sizes.size() ? last : expected[i]);
  }
  STD_TORCH_CHECK(fits, message);
}

}  // namespace videoar
