#include "../cpu/attention.h"

#include "../planner.h"
#include "tensors.h"

namespace videoar {
namespace {

using OptionalTensor = std::optional<Tensor>;

HeadRows<const void*> head_rows(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }
HeadRows<void*> written_rows(Tensor& t) { return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

// (batch, heads, length, head_dim) stored as (batch, length, heads, head_dim): the projection that follows reads it
// without a copy.
Tensor empty_heads(const Tensor& like) {
  Tensor dense = empty_dense(like, {like.size(0), like.size(2), like.size(1), like.size(3)});
  return torch::stable::transpose(dense, 1, 2);
}

AttentionShape shape_of(const Tensor& q, const Tensor& k, double scale) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.size(1) > 0 && q.size(1) % k.size(1) == 0,
                  "range_attention: expected 4 dimensions, and heads a multiple of key heads");
  return {q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3), scale, dtype_of(q)};
}

// The mask's arrays, checked once more: a kernel reads wherever they point.
struct MaskArrays {
  std::vector<Tensor> held;
  RangeMaskView view{};

  MaskArrays(const AttentionShape& shape, const OptionalTensor& batch_ptr, const OptionalTensor& q_ranges,
             const OptionalTensor& key_ptr, const OptionalTensor& key_ranges) {
    view.samples = 1;
    view.q_len = shape.q_len;
    view.k_len = shape.k_len;
    if (!batch_ptr) return;
    STD_TORCH_CHECK(q_ranges && key_ptr && key_ranges, "range_attention: expected all four mask arrays or none");
    for (const OptionalTensor* t : {&batch_ptr, &q_ranges, &key_ptr, &key_ranges}) {
      STD_TORCH_CHECK((*t)->scalar_type() == ScalarType::Int && (*t)->is_cpu(),
                      "range_attention: expected int32 mask arrays on the CPU");
      held.push_back(torch::stable::contiguous(**t));
    }
    view.batch_ptr = (const int32_t*)held[0].const_data_ptr();
    view.q_ranges = (const int32_t*)held[1].const_data_ptr();
    view.key_ptr = (const int32_t*)held[2].const_data_ptr();
    view.key_ranges = (const int32_t*)held[3].const_data_ptr();
    view.samples = held[0].numel() - 1;
    view.rows = held[1].numel() / 2;
    view.ranges = held[3].numel() / 2;
    STD_TORCH_CHECK((view.samples == 1 || view.samples == shape.batch) && held[2].numel() == view.rows + 1,
                    "range_attention: the mask's arrays do not fit together, or not the batch");
    const char* reason = invalid(view);
    STD_TORCH_CHECK(!reason, "range_attention: mask with ", reason);
  }
};

std::tuple<Tensor, Tensor> range_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const OptionalTensor& batch_ptr, const OptionalTensor& q_ranges,
                                           const OptionalTensor& key_ptr, const OptionalTensor& key_ranges,
                                           double scale) {
  const AttentionShape shape = shape_of(q, k, scale);
  const Tensor query = dense_rows(q), key = dense_rows(k), value = dense_rows(v);
  Tensor out = empty_heads(q);
  Tensor lse = empty_dense(q, {shape.batch, shape.heads, shape.q_len},
                           shape.dtype == DType::f64 ? ScalarType::Double : ScalarType::Float);
  const MaskArrays mask(shape, batch_ptr, q_ranges, key_ptr, key_ranges);
  const AttentionKernels& kernels = attention_kernels();
  const TilePlan plan = plan_queries(mask.view, kernels.query_tile[int(shape.dtype)]);
  kernels.forward({shape, head_rows(query), head_rows(key), head_rows(value), written_rows(out), lse.mutable_data_ptr(),
                   plan.view()});
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> range_attention_backward(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& out, const Tensor& lse, const OptionalTensor& batch_ptr, const OptionalTensor& q_ranges,
    const OptionalTensor& key_ptr, const OptionalTensor& key_ranges, double scale) {
  const AttentionShape shape = shape_of(q, k, scale);
  const Tensor query = dense_rows(q), key = dense_rows(k), value = dense_rows(v);
  const Tensor result = dense_rows(out), grad = dense_rows(grad_out), dense_lse = torch::stable::contiguous(lse);
  const Tensor dense_grad_lse = grad_lse ? torch::stable::contiguous(*grad_lse) : dense_lse;
  Tensor grad_q = empty_heads(q), grad_k = empty_heads(k), grad_v = empty_heads(v);
  const MaskArrays mask(shape, batch_ptr, q_ranges, key_ptr, key_ranges);
  const AttentionKernels& kernels = attention_kernels();
  const TilePlan plan = plan_keys(mask.view, kernels.key_tile[int(shape.dtype)]);
  kernels.backward({shape, head_rows(query), head_rows(key), head_rows(value), head_rows(result), head_rows(grad),
                    dense_lse.const_data_ptr(), grad_lse ? dense_grad_lse.const_data_ptr() : nullptr,
                    written_rows(grad_q), written_rows(grad_k), written_rows(grad_v), plan.view()});
  return {grad_q, grad_k, grad_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) {
  m.impl("range_attention", TORCH_BOX(&range_attention));
  m.impl("range_attention_backward", TORCH_BOX(&range_attention_backward));
}

}  // namespace videoar
