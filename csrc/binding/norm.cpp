#include "../cpu/norm.h"

#include "tensors.h"

namespace videoar {
namespace {

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  const Rows g(gate), u(up);
  Tensor out = empty_dense(gate, sizes_of(gate));
  norm_kernels().swiglu({g.tensor.const_data_ptr(), u.tensor.const_data_ptr(), out.mutable_data_ptr(), g.rows, g.width,
                         g.stride, u.stride, dtype_of(gate)});
  return out;
}

std::tuple<Tensor, Tensor> swiglu_backward(const Tensor& grad_out, const Tensor& gate, const Tensor& up) {
  const Rows d(grad_out), g(gate), u(up);
  Tensor grad_gate = empty_dense(gate, sizes_of(gate));
  Tensor grad_up = empty_dense(up, sizes_of(up));
  norm_kernels().swiglu_backward({d.tensor.const_data_ptr(), g.tensor.const_data_ptr(), u.tensor.const_data_ptr(),
                                  grad_gate.mutable_data_ptr(), grad_up.mutable_data_ptr(), g.rows, g.width, d.stride,
                                  g.stride, u.stride, dtype_of(gate)});
  return {grad_gate, grad_up};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) {
  m.impl("swiglu", TORCH_BOX(&swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
}

}  // namespace videoar
