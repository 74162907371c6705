#include "positions.h"

namespace videoar {
namespace {

RopeSizes rope_sizes(const Tensor& x, const RopeOptions& options) {
  STD_TORCH_CHECK(x.dim() == 4, "rope: expected x (batch, heads, length, dim)");
  STD_TORCH_CHECK(options.dims[0] + options.dims[1] + options.dims[2] == x.size(3), "rope: dims do not add up");
  return {x.size(0), x.size(1), x.size(2), x.size(3)};
}

RopeStrides rope_strides(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

void rotate_into(const Tensor& x, const Tensor& out, const Tensor& positions, const RopeOptions& options) {
  const RopeSizes size = rope_sizes(x, options);
  if (x.numel() == 0) return;
  with_table(positions, size, dtype_of(x), options, rope_spreads(dtype_of(x), options.interleaved),
             [&](const RopeTableView& table) {
               rope_kernels().rope({x.const_data_ptr(), out.mutable_data_ptr(), size, rope_strides(x),
                                    rope_strides(out), table, options.interleaved, dtype_of(x)});
             });
}

Tensor rope_3d(const Tensor& x, const Tensor& positions, std::vector<int64_t> dims, double theta, bool interleaved,
               bool inverse) {
  const Tensor dense = dense_rows(x);
  Tensor out = empty_dense(x, sizes_of(x));
  rotate_into(dense, out, positions, {dims, theta, interleaved, inverse});
  return out;
}

void rope_3d_(Tensor x, const Tensor& positions, std::vector<int64_t> dims, double theta, bool interleaved,
              bool inverse) {
  STD_TORCH_CHECK(x.size(3) <= 1 || x.stride(3) == 1, "rope_3d_: expected x with a contiguous last dimension");
  rotate_into(x, x, positions, {dims, theta, interleaved, inverse});
}

void check_weight(const Tensor& x, const Tensor& weight, bool full_width) {
  const bool f64 = x.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(weight.scalar_type() == (f64 ? ScalarType::Double : ScalarType::Float), "qk_norm_rope: weight dtype");
  STD_TORCH_CHECK(weight.numel() == (full_width ? x.size(1) : 1) * x.size(3), "qk_norm_rope: weight size");
}

std::tuple<Tensor, Tensor> qk_norm_rope(const Tensor& q, const Tensor& k, const Tensor& q_weight,
                                        const Tensor& k_weight, const Tensor& positions, double eps,
                                        std::vector<int64_t> dims, double theta, bool interleaved, bool full_width) {
  const RopeOptions options(dims, theta, interleaved, false);
  Tensor outs[2] = {empty_dense(q, sizes_of(q)), empty_dense(k, sizes_of(k))};
  if (q.numel() + k.numel() == 0) return {outs[0], outs[1]};
  with_table(positions, rope_sizes(q, options), dtype_of(q), options, rope_spreads(dtype_of(q), interleaved),
             [&](const RopeTableView& table) {
               const Tensor inputs[2] = {dense_rows(q), dense_rows(k)};
               const Tensor weights[2] = {torch::stable::contiguous(q_weight), torch::stable::contiguous(k_weight)};
               for (int i = 0; i < 2; ++i) {
                 const Tensor& x = inputs[i];
                 check_weight(x, weights[i], full_width);
                 const RopeParams rope = {x.const_data_ptr(),
                                          outs[i].mutable_data_ptr(),
                                          rope_sizes(x, options),
                                          rope_strides(x),
                                          rope_strides(outs[i]),
                                          table,
                                          interleaved,
                                          dtype_of(x)};
                 rope_kernels().norm_rope({rope, weights[i].const_data_ptr(), eps, full_width});
               }
             });
  return {outs[0], outs[1]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> qk_norm_rope_backward(const Tensor& grad_q, const Tensor& grad_k,
                                                                 const Tensor& q, const Tensor& k,
                                                                 const Tensor& q_weight, const Tensor& k_weight,
                                                                 const Tensor& positions, double eps,
                                                                 std::vector<int64_t> dims, double theta,
                                                                 bool interleaved, bool full_width) {
  const RopeOptions options(dims, theta, interleaved, true);
  Tensor grads[2] = {empty_dense(q, sizes_of(q)), empty_dense(k, sizes_of(k))};
  Tensor weight_grads[2] = {empty_dense(q_weight, sizes_of(q_weight)), empty_dense(k_weight, sizes_of(k_weight))};
  with_table(positions, rope_sizes(q, options), dtype_of(q), options, interleaved, [&](const RopeTableView& table) {
    const Tensor inputs[2] = {dense_rows(q), dense_rows(k)};
    const Tensor grad_outs[2] = {dense_rows(grad_q), dense_rows(grad_k)};
    const Tensor weights[2] = {torch::stable::contiguous(q_weight), torch::stable::contiguous(k_weight)};
    for (int i = 0; i < 2; ++i) {
      const Tensor& x = inputs[i];
      check_weight(x, weights[i], full_width);
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
  m.impl("qk_norm_rope", TORCH_BOX(&qk_norm_rope));
  m.impl("qk_norm_rope_backward", TORCH_BOX(&qk_norm_rope_backward));
}

}  // namespace videoar
