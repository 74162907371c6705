// Results with strides of their own, made without the dispatcher, and where tensors lie.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

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

// Where a tensor's elements lie, from its first byte to past its last; two such spans that don't meet share nothing.
struct ByteSpan {
  uintptr_t begin, end;

  explicit ByteSpan(const Tensor& t) : begin(uintptr_t(t.const_data_ptr())), end(begin) {
    if (t.numel() == 0) return;
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    end += uintptr_t((last + 1) * int64_t(t.element_size()));
  }
  bool meets(const ByteSpan& other) const { return begin < other.end && other.begin < end; }
};

}  // namespace videoar
