#include "out.h"
#include "positions.h"

namespace videoar {
namespace {

using MaybeTensor = std::optional<Tensor>;

RopeSizes rope_sizes(const Tensor& x) {
  const auto sizes = x.sizes();
  STD_TORCH_CHECK(sizes.size() == 4 && x.is_cpu(), "rope: expected x (batch, heads, length, dim) on the CPU");
  return {sizes[0], sizes[1], sizes[2], sizes[3]};
}

RopeStrides rope_strides(const Tensor& x) {
  const auto strides = x.strides();
  return {strides[0], strides[1], strides[2]};
}

// A fresh dense tensor of sizes `s` and x's dtype.
Tensor empty_heads(const Tensor& x, const RopeSizes& s) {
  const auto or_one = [](int64_t size) { return size > 1 ? size : 1; };
  const int64_t sizes[] = {s.batch, s.heads, s.length, s.dim};
  const int64_t token = or_one(s.dim), head = token * or_one(s.length), sample = head * or_one(s.heads);
  const int64_t strides[] = {sample, head, token, 1};
  return empty_strided(sizes, strides, 4, dtype_code(x));
}

void rotate_into(const Tensor& x, const Tensor& out, const Tensor& positions, const RopeOptions& options) {
  const RopeSizes size = rope_sizes(x);
  const DType dtype = dtype_of(x);
  with_table(positions, size, dtype, options, rope_spreads(dtype, options.interleaved),
             [&](const RopeTableView& table) {
               if (size.batch * size.heads * size.length * size.dim == 0) return;
               rope_kernels().rope({x.const_data_ptr(), out.mutable_data_ptr(), size, rope_strides(x),
                                    rope_strides(out), table, options.interleaved, dtype});
             });
}

Tensor rope_3d(const Tensor& x, const Tensor& positions, const MaybeDims& dims, double theta, bool interleaved,
               bool inverse) {
  const RopeSizes size = rope_sizes(x);
  const RopeOptions options(dims, size.dim, theta, interleaved, inverse);
  Tensor out = empty_heads(x, size);
  rotate_into(dense_rows(x), out, positions, options);
  return out;
}

void rope_3d_out(const Tensor& x, const Tensor& positions, const MaybeDims& dims, double theta, bool interleaved,
                 bool inverse, const Tensor& out) {
  const RopeOptions options(dims, rope_sizes(x).dim, theta, interleaved, inverse);
  check_output(out, x, "rope_3d: out");
  check_apart(out, x, true, "rope_3d: out overlaps x");
  check_apart(out, positions, false, "rope_3d: out overlaps positions");
  rotate_into(dense_rows(x), out, positions, options);
}

void rope_3d_(Tensor x, const Tensor& positions, const MaybeDims& dims, double theta, bool interleaved, bool inverse) {
  const RopeOptions options(dims, rope_sizes(x).dim, theta, interleaved, inverse);
  check_output(x, x, "rope_3d_: x");
  check_apart(x, positions, false, "rope_3d_: x overlaps positions");
  rotate_into(x, x, positions, options);
}

template <class A>
Tensor ones(int64_t width, ScalarType type) {
  const int64_t stride = 1;
  Tensor result = empty_strided(&width, &stride, 1, int32_t(type));
  std::fill_n((A*)result.mutable_data_ptr(), width, A(1));
  return result;
}

// The weight, dense and in the type that is computed in; a missing one is of ones.
Tensor norm_weight(const RopeSizes& size, DType dtype, const MaybeTensor& weight, bool full_width) {
  const bool wide = dtype == DType::f64;
  const ScalarType computed = wide ? ScalarType::Double : ScalarType::Float;
  const int64_t width = (full_width ? size.heads : 1) * size.dim;
  if (!weight) return wide ? ones<double>(width, computed) : ones<float>(width, computed);
  const ScalarType type = weight->scalar_type();
  const auto sizes = weight->sizes();
  STD_TORCH_CHECK(weight->is_cpu() && sizes.size() == 1 && sizes[0] == width &&
                      (type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::BFloat16 ||
                       type == ScalarType::Half),
                  "qk_norm_rope: a weight's shape, dtype or device");
  const Tensor converted = type == computed ? *weight : torch::stable::to(*weight, computed);
  return converted.is_contiguous() ? converted : torch::stable::contiguous(converted);
}

void check_norm(const Tensor& q, const RopeSizes& a, const Tensor& k, const RopeSizes& b, double eps) {
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && a.batch == b.batch && a.length == b.length && a.dim == b.dim,
                  "qk_norm_rope: k's shape, dtype or device");
  STD_TORCH_CHECK(eps >= 0 && std::isfinite(eps), "qk_norm_rope: expected a finite eps >= 0");
}

void norm_rotate_into(const Tensor (&inputs)[2], const Tensor (&outs)[2], const MaybeTensor& q_weight,
                      const MaybeTensor& k_weight, const Tensor& positions, double eps, const RopeOptions& options,
                      bool full_width) {
  const DType dtype = dtype_of(inputs[0]);
  const RopeSizes sizes[2] = {rope_sizes(inputs[0]), rope_sizes(inputs[1])};
  const Tensor weights[2] = {norm_weight(sizes[0], dtype, q_weight, full_width),
                             norm_weight(sizes[1], dtype, k_weight, full_width)};
  with_table(positions, sizes[0], dtype, options, rope_spreads(dtype, options.interleaved),
             [&](const RopeTableView& table) {
               for (int i = 0; i < 2; ++i) {
                 const Tensor& x = inputs[i];
                 const RopeSizes& size = sizes[i];
                 if (size.batch * size.heads * size.length * size.dim == 0) continue;
                 const RopeParams rope = {x.const_data_ptr(),
                                          outs[i].mutable_data_ptr(),
                                          size,
                                          rope_strides(x),
                                          rope_strides(outs[i]),
                                          table,
                                          options.interleaved,
                                          dtype};
                 rope_kernels().norm_rope({rope, weights[i].const_data_ptr(), eps, full_width});
               }
             });
}

std::tuple<Tensor, Tensor> qk_norm_rope(const Tensor& q, const Tensor& k, const MaybeTensor& q_weight,
                                        const MaybeTensor& k_weight, const Tensor& positions, double eps,
                                        const MaybeDims& dims, double theta, bool interleaved, bool full_width) {
  const RopeSizes q_size = rope_sizes(q), k_size = rope_sizes(k);
  const RopeOptions options(dims, q_size.dim, theta, interleaved, false);
  check_norm(q, q_size, k, k_size, eps);
  const Tensor outs[2] = {empty_heads(q, q_size), empty_heads(k, k_size)};
  norm_rotate_into({dense_rows(q), dense_rows(k)}, outs, q_weight, k_weight, positions, eps, options, full_width);
  return {outs[0], outs[1]};
}

void qk_norm_rope_out(const Tensor& q, const Tensor& k, const MaybeTensor& q_weight, const MaybeTensor& k_weight,
                      const Tensor& positions, double eps, const MaybeDims& dims, double theta, bool interleaved,
                      bool full_width, const Tensor& q_out, const Tensor& k_out) {
  const RopeSizes q_size = rope_sizes(q), k_size = rope_sizes(k);
  const RopeOptions options(dims, q_size.dim, theta, interleaved, false);
  check_norm(q, q_size, k, k_size, eps);
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
                                                                 const MaybeDims& dims, double theta, bool interleaved,
                                                                 bool full_width) {
  const RopeSizes q_size = rope_sizes(q), k_size = rope_sizes(k);
  const RopeOptions options(dims, q_size.dim, theta, interleaved, true);
  check_norm(q, q_size, k, k_size, eps);
  check_like(grad_q, q, "qk_norm_rope: grad_q");
  check_like(grad_k, k, "qk_norm_rope: grad_k");
  Tensor grads[2] = {empty_dense(q, sizes_of(q)), empty_dense(k, sizes_of(k))};
  Tensor weight_grads[2] = {empty_dense(q_weight, sizes_of(q_weight)), empty_dense(k_weight, sizes_of(k_weight))};
  with_table(positions, rope_sizes(q), dtype_of(q), options, interleaved, [&](const RopeTableView& table) {
    const Tensor inputs[2] = {dense_rows(q), dense_rows(k)};
    const Tensor grad_outs[2] = {dense_rows(grad_q), dense_rows(grad_k)};
    const Tensor weights[2] = {norm_weight(rope_sizes(q), dtype_of(q), q_weight, full_width),
                               norm_weight(rope_sizes(k), dtype_of(q), k_weight, full_width)};
    for (int i = 0; i < 2; ++i) {
      const Tensor& x = inputs[i];
      const RopeSizes size = rope_sizes(x);
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
