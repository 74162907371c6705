// Results that a caller hands in: dense, and apart from the inputs.
#pragma once

#include "tensors.h"

namespace videoar {

struct MemorySpan {
  uintptr_t begin, end;

  explicit MemorySpan(const Tensor& t) : begin(uintptr_t(t.const_data_ptr())), end(begin) {
    if (t.numel() == 0) return;
    const auto sizes = t.sizes(), strides = t.strides();
    int64_t last = 0;
    for (size_t i = 0; i < sizes.size(); ++i) last += (sizes[i] - 1) * strides[i];
    end += uintptr_t((last + 1) * int64_t(t.element_size()));
  }
  bool meets(const MemorySpan& other) const { return begin < other.end && other.begin < end; }
};

// Refuses `out` unless it is dense, has `like`'s leading sizes and `last` elements a row, and is of `dtype`.
inline void check_dense_out(const Tensor& out, const Tensor& like, int64_t last, ScalarType dtype,
                            const char* message) {
  const auto sizes = out.sizes(), expected = like.sizes();
  bool fits = sizes.size() == expected.size() && out.is_cpu() && out.scalar_type() == dtype && out.is_contiguous();
  for (size_t i = 0; fits && i < sizes.size(); ++i) {
    fits = sizes[i] == (i + 1 == sizes.size() ? last : expected[i]);
  }
  STD_TORCH_CHECK(fits, message);
}

// Refuses memory shared with an input. `in_place`: the input may be `out` itself, element for element.
inline void check_apart(const Tensor& out, const Tensor& input, bool in_place, const char* message) {
  if (in_place && out.const_data_ptr() == input.const_data_ptr() && input.is_contiguous()) return;
  STD_TORCH_CHECK(!MemorySpan(out).meets(MemorySpan(input)), message);
}

}  // namespace videoar
