#include "out.h"
#include "positions.h"

namespace videoar {
namespace {

using MaybeTensor = std::optional<Tensor>;

RopeSizes rope_sizes(const Tensor& x, const RopeOptions& options) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_cpu(), "rope: expected x (batch, heads, length, dim) on the CPU");
  STD_TORCH_CHECK(options.dims[0] + options.dims[1] + options.dims[2] == x.size(3), "rope: dims do not add up");
  return {x.size(0), x.size(1), x.size(2), x.size(3)};
}

RopeStrides rope_strides(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

void rotate_into(const Tensor& x, const Tensor& out, const Tensor& positions, const RopeOptions& options) {
  const RopeSizes size = rope_sizes(x, options);
  const DType dtype = dtype_of(x);
  with_table(positions, size, dtype, options, rope_spreads(dtype, options.interleaved),
             [&](const RopeTableView& table) {
               if (x.numel() == 0) return;
               rope_kernels().rope({x.const_data_ptr(), out.mutable_data_ptr(), size, rope_strides(x),
                                    rope_strides(out), table, options.interleaved, dtype});
             });
}

Tensor rope_3d(const Tensor& x, const Tensor& positions, std::vector<int64_t> dims, double theta, bool interleaved,
               bool inverse) {
  const RopeOptions options(dims, theta, interleaved, inverse);
  rope_sizes(x, options);
  Tensor out = empty_dense(x, sizes_of(x));
  rotate_into(dense_rows(x), out, positions, options);
  return out;
}

void rope_3d_out(const Tensor& x, const Tensor& positions, std::vector<int64_t> dims, double theta, bool interleaved,
                 bool inverse, const Tensor& out) {
  const RopeOptions options(dims, theta, interleaved, inverse);
  rope_sizes(x, options);
  check_output(out, x, "rope_3d: out");
  check_apart(out, x, true, "rope_3d: out overlaps x");
  check_apart(out, positions, true, "rope_3d: out overlaps positions");
  rotate_into(dense_rows(x), out, positions, options);
}

void rope_3d_(Tensor x, const Tensor& positions, std::vector<int64_t> dims, double theta, bool interleaved,
              bool inverse) {
  const RopeOptions options(dims, theta, interleaved, inverse);
  rope_sizes(x, options);
  check_output(x, x, "rope_3d_: x");
  check_apart(x, positions, true, "rope_3d_: x overlaps positions");
  rotate_into(x, x, positions, options);
}

// The weight in the type that is computed in; a missing one is of ones.
Tensor norm_weight(const Tensor& x, const MaybeTensor& weight, bool full_width) {
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t width = (full_width ? x.size(1) : 1) * x.size(3);
  if (!weight) {
    Tensor ones = empty_dense(x, {width}, wide);
    torch::stable::fill_(ones, 1);
    return ones;
  }
  const ScalarType type = weight->scalar_type();
  STD_TORCH_CHECK(weight->is_cpu() && weight->dim() == 1 && weight->size(0) == width &&
                      (type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::BFloat16 ||
                       type == ScalarType::Half),
                  "qk_norm_rope: a weight's shape, dtype or device");
  const Tensor converted = type == wide ? *weight : torch::stable::to(*weight, wide);
  return torch::stable::contiguous(converted);
}

void check_keys(const Tensor& q, const Tensor& k) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.is_cpu() && k.scalar_type() == q.scalar_type() &&
                      k.size(0) == q.size(0) && k.size(2) == q.size(2) && k.size(3) == q.size(3),
                  "qk_norm_rope: k's shape, dtype or device");
}

void norm_rotate_into(const Tensor (&inputs)[2], const Tensor (&outs)[2], const MaybeTensor& q_weight,
                      const MaybeTensor& k_weight, const Tensor& positions, double eps, const RopeOptions& options,
                      bool full_width) {
  const DType dtype = dtype_of(inputs[0]);
  const Tensor weights[2] = {norm_weight(inputs[0], q_weight, full_width),
                             norm_weight(inputs[1], k_weight, full_width)};
  with_table(positions, rope_sizes(inputs[0], options), dtype, options, rope_spreads(dtype, options.interleaved),
             [&](const RopeTableView& table) {
               for (int i = 0; i < 2; ++i) {
                 const Tensor& x = inputs[i];
                 if (x.numel() == 0) continue;
                 const RopeParams rope = {x.const_data_ptr(),     outs[i].mutable_data_ptr(),
                                          rope_sizes(x, options), rope_strides(x),
                                          rope_strides(outs[i]),  table,
                                          options.interleaved,    dtype};
                 rope_kernels().norm_rope({rope, weights[i].const_data_ptr(), eps, full_width});
               }
             });
}

std::tuple<Tensor, Tensor> qk_norm_rope(const Tensor& q, const Tensor& k, const MaybeTensor& q_weight,
                                        const MaybeTensor& k_weight, const Tensor& positions, double eps,
                                        std::vector<int64_t> dims, double theta, bool interleaved, bool full_width) {
  const RopeOptions options(dims, theta, interleaved, false);
  rope_sizes(q, options);
  check_keys(q, k);
  const Tensor outs[2] = {empty_dense(q, sizes_of(q)), empty_dense(k, sizes_of(k))};
  norm_rotate_into({dense_rows(q), dense_rows(k)}, outs, q_weight, k_weight, positions, eps, options, full_width);
  return {outs[0], outs[1]};
}

void qk_norm_rope_out(const Tensor& q, const Tensor& k, const MaybeTensor& q_weight, const MaybeTensor& k_weight,
                      const Tensor& positions, double eps, std::vector<int64_t> dims, double theta, bool interleaved,
                      bool full_width, const Tensor& q_out, const Tensor& k_out) {
  const RopeOptions options(dims, theta, interleaved, false);
  rope_sizes(q, options);
  check_keys(q, k);
  check_output(q_out, q, "qk_norm_rope: q_out");
  check_output(k_out, k, "qk_norm_rope: k_out");
  check_apart(q_out, q, true, "qk_norm_rope: q_out overlaps q");
  check_apart(k_out, k, true, "qk_norm_rope: k_out overlaps k");
  const auto apart = [](const Tensor& a, const Tensor& b) {
    check_apart(a, b, false, "qk_norm_rope: an output overlaps another tensor");
  };
  apart(q_out, k_out), apart(q_out, k), apart(k_out, q);
  for (const Tensor* out : {&q_out, &k_out}) {
    apart(*out, positions);
    if (q_weight) apart(*out, *q_weight);
    if (k_weight) apart(*out, *k_weight);
  }
  norm_rotate_into({dense_rows(q), dense_rows(k)}, {q_out, k_out}, q_weight, k_weight, positions, eps, options,
                   full_width);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> qk_norm_rope_backward(const Tensor& grad_q, const Tensor& grad_k,
                                                                 const Tensor& q, const Tensor& k,
                                                                 const Tensor& q_weight, const Tensor& k_weight,
                                                                 const Tensor& positions, double eps,
                                                                 std::vector<int64_t> dims, double theta,
                                                                 bool interleaved, bool full_width) {
  const RopeOptions options(dims, theta, interleaved, true);
  rope_sizes(q, options);
  check_keys(q, k);
  check_like(grad_q, q, "qk_norm_rope: grad_q");
  check_like(grad_k, k, "qk_norm_rope: grad_k");
  Tensor grads[2] = {empty_dense(q, sizes_of(q)), empty_dense(k, sizes_of(k))};
  Tensor weight_grads[2] = {empty_dense(q_weight, sizes_of(q_weight)), empty_dense(k_weight, sizes_of(k_weight))};
  with_table(positions, rope_sizes(q, options), dtype_of(q), options, interleaved, [&](const RopeTableView& table) {
    const Tensor inputs[2] = {dense_rows(q), dense_rows(k)};
    const Tensor grad_outs[2] = {dense_rows(grad_q), dense_rows(grad_k)};
    const Tensor weights[2] = {norm_weight(q, q_weight, full_width), norm_weight(k, k_weight, full_width)};
    for (int i = 0; i < 2; ++i) {
      const Tensor& x = inputs[i];
      const RopeSizes size = rope_sizes(x, options);
      const Tensor partial = empty_dense(weights[i], {rope_chunks(size.batch, size.length), weights[i].numel()});
      rope_kernels().norm_rope_backward({grad_outs[i].const_data_ptr(), x.const_data_ptr(), weights[i].const_data_ptr(),
                                         grads[i].mutable_data_ptr(), weight_grads[i].mutable_data_ptr(),
                                         partial.mutable_data_ptr(), size, rope_strides(grad_outs[i]), rope_strides(x),
                                         rope_strides(grads[i]), table, eps, full_width, interleaved, dtype_of(x)});
    }
  });
  return {grads[0], grads[1], weight_grads[0], weight_grads[1]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) {
  m.impl("rope_3d", TORCH_BOX(&rope_3d));
  m.impl("rope_3d_", TORCH_BOX(&rope_3d_));
  m.impl("rope_3d_out", TORCH_BOX(&rope_3d_out));
  m.impl("qk_norm_rope", TORCH_BOX(&qk_norm_rope));
  m.impl("qk_norm_rope_out", TORCH_BOX(&qk_norm_rope_out));
  m.impl("qk_norm_rope_backward", TORCH_BOX(&qk_norm_rope_backward));
}

}  // namespace videoar
