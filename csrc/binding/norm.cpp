#include "../cpu/norm.h"

#include "out.h"
#include "tensors.h"

namespace videoar {
namespace {

void swiglu_into(const Tensor& gate, const Tensor& up, const Tensor& out) {
  const DType dtype = dtype_of(gate);
  const Rows g(gate), u(up), o(out);
  norm_kernels().swiglu({g.tensor.const_data_ptr(), u.tensor.const_data_ptr(), o.tensor.mutable_data_ptr(), g.rows,
                         g.width, g.stride, u.stride, o.stride, dtype});
  // Rows that do not collapse were written elsewhere.
  if (o.tensor.const_data_ptr() != out.const_data_ptr()) {
    Tensor target = out;
    torch::stable::copy_(target, o.tensor);
  }
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  STD_TORCH_CHECK(gate.is_cpu() && gate.dim() > 0, "swiglu: expected rows on the CPU");
  check_like(up, gate, "swiglu: up");
  Tensor out = empty_dense(gate, sizes_of(gate));
  swiglu_into(gate, up, out);
  return out;
}

void swiglu_out(const Tensor& gate, const Tensor& up, const Tensor& out) {
  STD_TORCH_CHECK(gate.is_cpu() && gate.dim() > 0, "swiglu: expected rows on the CPU");
  check_like(up, gate, "swiglu: up");
  check_output(out, gate, "swiglu: out");
  check_apart(out, gate, true, "swiglu: out overlaps gate"), check_apart(out, up, true, "swiglu: out overlaps up");
  swiglu_into(gate, up, out);
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

OutputRows output_rows(const Tensor& t) { return {t.mutable_data_ptr(), t.stride(0), t.stride(1)}; }

NormSizes norm_sizes(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 3 && x.is_cpu(), "norm: expected (batch, length, width) on the CPU");
  return {x.size(0), x.size(1), x.size(2)};
}

// The modulation (width) or (batch or 1, frames, width) of x; frames divides the length.
Modulation modulation_of(const MaybeTensor& m, const Tensor& x) {
  if (!m) return {nullptr, 0, 0, 1};
  const int64_t length = x.size(1);
  STD_TORCH_CHECK(m->is_cpu() && (m->dim() == 1 || m->dim() == 3) && m->size(m->dim() - 1) == x.size(2),
                  "norm: modulation's shape or device");
  if (m->dim() == 1) return {m->const_data_ptr(), 0, 0, length == 0 ? 1 : length};
  const int64_t frames = m->size(1);
  STD_TORCH_CHECK(m->size(0) == x.size(0) || m->size(0) == 1, "norm: modulation's batch");
  STD_TORCH_CHECK(frames > 0 && length % frames == 0, "norm: frames do not divide the length");
  return {m->const_data_ptr(), m->size(0) == 1 ? 0 : m->stride(0), m->stride(1), length == 0 ? 1 : length / frames};
}

ScalarType wide_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// `t` with dense rows in `type`.
MaybeTensor converted(const MaybeTensor& t, ScalarType type) {
  if (!t) return t;
  const ScalarType found = t->scalar_type();
  if (found == type) return dense(t);
  STD_TORCH_CHECK(found == ScalarType::Double || found == ScalarType::Float || found == ScalarType::BFloat16 ||
                      found == ScalarType::Half,
                  "norm: expected a floating point modulation or weight");
  return torch::stable::contiguous(torch::stable::to(*t, type));
}

// The type that kernels read modulations of x in: x's own where all have it, else the one that is computed in.
ScalarType modulation_type(const Tensor& x, const MaybeTensor& a, const MaybeTensor& b) {
  const bool own = (!a || a->scalar_type() == x.scalar_type()) && (!b || b->scalar_type() == x.scalar_type());
  return own ? x.scalar_type() : wide_of(x);
}

void check_norm_weight(const Tensor& x, const MaybeTensor& weight) {
  STD_TORCH_CHECK(!weight || (weight->is_cpu() && weight->dim() == 1 && weight->size(0) == x.size(2)),
                  "norm: weight's shape or device");
}

AdalnParams adaln_params(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& weight,
                         double eps, bool layer, ScalarType modulation) {
  check_norm_weight(x, weight);
  return {rows_of(x),
          {nullptr, 0, 0},
          weight ? weight->const_data_ptr() : nullptr,
          modulation_of(scale, x),
          modulation_of(shift, x),
          norm_sizes(x),
          eps,
          layer,
          modulation == wide_of(x),
          dtype_of(x)};
}

void adaln_norm_into(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& weight,
                     double eps, bool layer, const Tensor& out) {
  const ScalarType type = modulation_type(x, scale, shift);
  const Tensor rows = dense_rows(x);
  const MaybeTensor a = converted(scale, type), b = converted(shift, type), w = converted(weight, wide_of(x));
  AdalnParams params = adaln_params(rows, a, b, w, eps, layer, type);
  params.out = output_rows(out);
  if (x.numel() > 0) norm_kernels().adaln_norm(params);
}

Tensor adaln_norm(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& weight,
                  double eps, bool layer) {
  norm_sizes(x);
  Tensor out = empty_dense(x, sizes_of(x));
  adaln_norm_into(x, scale, shift, weight, eps, layer, out);
  return out;
}

void adaln_norm_out(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& weight,
                    double eps, bool layer, const Tensor& out) {
  norm_sizes(x);
  check_output(out, x, "adaln_norm: out");
  check_apart(out, x, true, "adaln_norm: out overlaps x");
  for (const MaybeTensor* t : {&scale, &shift, &weight}) {
    if (*t) check_apart(out, **t, false, "adaln_norm: out overlaps scale, shift or weight");
  }
  adaln_norm_into(x, scale, shift, weight, eps, layer, out);
}

// The gradient of an absent argument has no elements; that of one that nothing was computed from is zero.
Tensor empty_grad(const Tensor& x, const MaybeTensor& t) {
  if (!t) return empty_dense(x, {0});
  return x.numel() > 0 ? empty_dense(*t, sizes_of(*t)) : torch::stable::new_zeros(*t, sizes_of(*t));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> adaln_norm_backward(const Tensor& grad_out, const Tensor& x,
                                                               const MaybeTensor& scale, const MaybeTensor& shift,
                                                               const MaybeTensor& weight, double eps, bool layer) {
  norm_sizes(x);
  check_like(grad_out, x, "adaln_norm: grad_out");
  const ScalarType type = modulation_type(x, scale, shift), wide = wide_of(x);
  STD_TORCH_CHECK((!scale || scale->scalar_type() == type) && (!shift || shift->scalar_type() == type) &&
                      (!weight || weight->scalar_type() == wide) && (!scale || scale->size(0) == x.size(0)) &&
                      (!shift || shift->size(0) == x.size(0)),
                  "adaln_norm: modulations of one dtype, a weight in the wide one, expanded over the batch");
  const Tensor rows = dense_rows(x), grads = dense_rows(grad_out);
  const MaybeTensor a = dense(scale), b = dense(shift), w = dense(weight);
  Tensor grad_x = empty_dense(x, sizes_of(x));
  Tensor grad_scale = empty_grad(x, scale), grad_shift = empty_grad(x, shift), grad_weight = empty_grad(x, weight);
  const AdalnParams forward = adaln_params(rows, a, b, w, eps, layer, type);
  if (x.numel() == 0) return {grad_x, grad_scale, grad_shift, grad_weight};
  const int64_t tokens[2] = {forward.scale.tokens, forward.shift.tokens};
  STD_TORCH_CHECK(tokens[0] % tokens[1] == 0 || tokens[1] % tokens[0] == 0, "adaln_norm: frames that do not nest");
  const NormTasks tasks = norm_tasks(forward.size, tokens[0], tokens[1]);
  const Tensor partial = empty_dense(x, {tasks.count, 3, padded_width(x.size(2))}, wide);
  norm_kernels().adaln_norm_backward({forward, rows_of(grads), grad_x.mutable_data_ptr(),
                                      grad_weight.mutable_data_ptr(), grad_scale.mutable_data_ptr(),
                                      grad_shift.mutable_data_ptr(), partial.mutable_data_ptr()});
  return {grad_x, grad_scale, grad_shift, grad_weight};
}

void gated_residual_into(const Tensor& x, const Tensor& y, const Tensor& gate, const Tensor& out) {
  const ScalarType type = modulation_type(x, gate, std::nullopt);
  const Tensor a = dense_rows(x), b = dense_rows(y), g = *converted(gate, type);
  const GatedResidualParams params = {rows_of(a),    rows_of(b),         output_rows(out), modulation_of(g, a),
                                      norm_sizes(a), type == wide_of(x), dtype_of(x)};
  if (x.numel() > 0) norm_kernels().gated_residual(params);
}

Tensor gated_residual(const Tensor& x, const Tensor& y, const Tensor& gate) {
  norm_sizes(x);
  check_like(y, x, "gated_residual: y");
  Tensor out = empty_dense(x, sizes_of(x));
  gated_residual_into(x, y, gate, out);
  return out;
}

void gated_residual_out(const Tensor& x, const Tensor& y, const Tensor& gate, const Tensor& out) {
  norm_sizes(x);
  check_like(y, x, "gated_residual: y");
  check_output(out, x, "gated_residual: out");
  check_apart(out, x, true, "gated_residual: out overlaps x"),
      check_apart(out, y, true, "gated_residual: out overlaps y");
  check_apart(out, gate, false, "gated_residual: out overlaps gate");
  gated_residual_into(x, y, gate, out);
}

std::tuple<Tensor, Tensor> gated_residual_backward(const Tensor& grad_out, const Tensor& y, const Tensor& gate) {
  norm_sizes(y);
  check_like(grad_out, y, "gated_residual: grad_out");
  const ScalarType type = modulation_type(y, gate, std::nullopt), wide = wide_of(y);
  STD_TORCH_CHECK(gate.scalar_type() == type && gate.size(0) == y.size(0),
                  "gated_residual: a gate in y's dtype or the wide one, expanded over the batch");
  const Tensor d = dense_rows(grad_out), b = dense_rows(y), g = dense_rows(gate);
  Tensor grad_y = empty_dense(y, sizes_of(y)), grad_gate = empty_grad(y, gate);
  if (y.numel() == 0) return {grad_y, grad_gate};
  const Modulation modulation = modulation_of(g, b);
  const NormTasks tasks = norm_tasks(norm_sizes(b), modulation.tokens, modulation.tokens);
  const Tensor partial = empty_dense(y, {tasks.count, y.size(2)}, wide);
  norm_kernels().gated_residual_backward({rows_of(d), rows_of(b), grad_y.mutable_data_ptr(),
                                          grad_gate.mutable_data_ptr(), partial.mutable_data_ptr(), modulation,
                                          norm_sizes(b), type == wide, dtype_of(y)});
  return {grad_y, grad_gate};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) {
  m.impl("adaln_norm", TORCH_BOX(&adaln_norm));
  m.impl("adaln_norm_out", TORCH_BOX(&adaln_norm_out));
  m.impl("adaln_norm_backward", TORCH_BOX(&adaln_norm_backward));
  m.impl("gated_residual", TORCH_BOX(&gated_residual));
  m.impl("gated_residual_out", TORCH_BOX(&gated_residual_out));
  m.impl("gated_residual_backward", TORCH_BOX(&gated_residual_backward));
  m.impl("swiglu", TORCH_BOX(&swiglu));
  m.impl("swiglu_out", TORCH_BOX(&swiglu_out));
  m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
}

}  // namespace videoar
