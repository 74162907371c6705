#include "../cpu/norm.h"

#include "tensors.h"

namespace videoar {
namespace {

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  check_like(up, gate, "swiglu: up");
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

using MaybeTensor = std::optional<Tensor>;

// Dense in the last dimension; keeps what kernels point into alive.
MaybeTensor dense(const MaybeTensor& t) { return t ? MaybeTensor(dense_rows(*t)) : t; }

TokenRows rows_of(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(1)}; }

NormSizes norm_sizes(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 3, "norm: expected (batch, length, width)");
  return {x.size(0), x.size(1), x.size(2)};
}

// The modulation (batch, frames, width) of x; frames divides the length.
Modulation modulation_of(const MaybeTensor& m, const Tensor& x) {
  if (!m) return {nullptr, 0, 0, 1};
  STD_TORCH_CHECK(m->dim() == 3 && m->size(0) == x.size(0) && m->size(2) == x.size(2), "norm: modulation's shape");
  const int64_t frames = m->size(1);
  STD_TORCH_CHECK(x.size(1) == 0 || (frames > 0 && x.size(1) % frames == 0), "norm: frames do not divide the length");
  return {m->const_data_ptr(), m->stride(0), m->stride(1), x.size(1) == 0 ? 1 : x.size(1) / frames};
}

bool is_wide(const Tensor& x, const MaybeTensor& a, const MaybeTensor& b) {
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const ScalarType found = a ? a->scalar_type() : b ? b->scalar_type() : x.scalar_type();
  STD_TORCH_CHECK(!(a && b) || a->scalar_type() == b->scalar_type(), "norm: scale and shift of one dtype");
  STD_TORCH_CHECK(found == wide || found == x.scalar_type(), "norm: modulation's dtype");
  return found == wide;
}

void check_norm_weight(const Tensor& x, const MaybeTensor& weight) {
  if (!weight) return;
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(weight->numel() == x.size(2) && weight->scalar_type() == wide, "norm: weight's shape or dtype");
}

AdalnParams adaln_params(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& weight,
                         double eps, bool layer) {
  check_norm_weight(x, weight);
  return {rows_of(x),
          nullptr,
          weight ? weight->const_data_ptr() : nullptr,
          modulation_of(scale, x),
          modulation_of(shift, x),
          norm_sizes(x),
          eps,
          layer,
          is_wide(x, scale, shift),
          dtype_of(x)};
}

Tensor adaln_norm(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& weight,
                  double eps, bool layer) {
  const Tensor rows = dense_rows(x);
  const MaybeTensor a = dense(scale), b = dense(shift), w = dense(weight);
  Tensor out = empty_dense(x, sizes_of(x));
  AdalnParams params = adaln_params(rows, a, b, w, eps, layer);
  params.out = out.mutable_data_ptr();
  norm_kernels().adaln_norm(params);
  return out;
}

// The gradient of an absent argument has no elements; that of one that nothing was computed from is zero.
Tensor empty_grad(const Tensor& x, const MaybeTensor& t) {
  if (!t) return empty_dense(x, {0});
  return x.numel() > 0 ? empty_dense(*t, sizes_of(*t)) : torch::stable::new_zeros(*t, sizes_of(*t));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> adaln_norm_backward(const Tensor& grad_out, const Tensor& x,
                                                               const MaybeTensor& scale, const MaybeTensor& shift,
                                                               const MaybeTensor& weight, double eps, bool layer) {
  const Tensor rows = dense_rows(x), grads = dense_rows(grad_out);
  const MaybeTensor a = dense(scale), b = dense(shift), w = dense(weight);
  Tensor grad_x = empty_dense(x, sizes_of(x));
  Tensor grad_scale = empty_grad(x, scale), grad_shift = empty_grad(x, shift), grad_weight = empty_grad(x, weight);
  const AdalnParams forward = adaln_params(rows, a, b, w, eps, layer);
  if (x.numel() == 0) return {grad_x, grad_scale, grad_shift, grad_weight};
  const NormTasks tasks = norm_tasks(forward.size, forward.scale.tokens, forward.shift.tokens);
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor partial = empty_dense(x, {tasks.count, 3, x.size(2)}, wide);
  norm_kernels().adaln_norm_backward({forward, rows_of(grads), grad_x.mutable_data_ptr(),
                                      grad_weight.mutable_data_ptr(), grad_scale.mutable_data_ptr(),
                                      grad_shift.mutable_data_ptr(), partial.mutable_data_ptr()});
  return {grad_x, grad_scale, grad_shift, grad_weight};
}

Tensor gated_residual(const Tensor& x, const Tensor& y, const Tensor& gate) {
  const Tensor a = dense_rows(x), b = dense_rows(y), g = dense_rows(gate);
  Tensor out = empty_dense(x, sizes_of(x));
  norm_kernels().gated_residual({rows_of(a), rows_of(b), out.mutable_data_ptr(), modulation_of(g, a), norm_sizes(a),
                                 is_wide(x, g, g), dtype_of(x)});
  return out;
}

std::tuple<Tensor, Tensor> gated_residual_backward(const Tensor& grad_out, const Tensor& y, const Tensor& gate) {
  const Tensor d = dense_rows(grad_out), b = dense_rows(y), g = dense_rows(gate);
  Tensor grad_y = empty_dense(y, sizes_of(y)), grad_gate = empty_grad(y, gate);
  if (y.numel() == 0) return {grad_y, grad_gate};
  const Modulation modulation = modulation_of(g, b);
  const NormTasks tasks = norm_tasks(norm_sizes(b), modulation.tokens, modulation.tokens);
  const ScalarType wide = y.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor partial = empty_dense(y, {tasks.count, y.size(2)}, wide);
  norm_kernels().gated_residual_backward({rows_of(d), rows_of(b), grad_y.mutable_data_ptr(),
                                          grad_gate.mutable_data_ptr(), partial.mutable_data_ptr(), modulation,
                                          norm_sizes(b), is_wide(y, g, g), dtype_of(y)});
  return {grad_y, grad_gate};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) {
  m.impl("adaln_norm", TORCH_BOX(&adaln_norm));
  m.impl("adaln_norm_backward", TORCH_BOX(&adaln_norm_backward));
  m.impl("gated_residual", TORCH_BOX(&gated_residual));
  m.impl("gated_residual_backward", TORCH_BOX(&gated_residual_backward));
  m.impl("swiglu", TORCH_BOX(&swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
}

}  // namespace videoar
