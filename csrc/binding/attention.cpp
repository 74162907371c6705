#include "../cpu/attention.h"

#include <cmath>
#include <cstring>

#include "../plan_cache.h"
#include "out.h"
#include "tensors.h"

namespace videoar {
namespace {

using OptionalTensor = std::optional<Tensor>;

HeadRows<const void*> head_rows(const Tensor& t) {
  const auto strides = t.strides();
  return {t.const_data_ptr(), strides[0], strides[1], strides[2]};
}
HeadRows<void*> written_rows(Tensor& t) {
  const auto strides = t.strides();
  return {t.mutable_data_ptr(), strides[0], strides[1], strides[2]};
}

// (batch, heads, length, head_dim) stored as (batch, length, heads, head_dim): the projection that follows reads it
// without a copy.
Tensor empty_heads(const Tensor& like) {
  const auto sizes = like.sizes();
  const int64_t heads = sizes[1], length = sizes[2], head_dim = sizes[3];
  const int64_t strides[] = {length * heads * head_dim, head_dim, heads * head_dim, 1};
  return empty_strided(sizes.data(), strides, 4, dtype_code(like));
}

// Everything a kernel relies on: it reads and writes by these numbers alone.
AttentionShape shape_of(const Tensor& q, const Tensor& k, const Tensor& v, double scale) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "range_attention: expected 4 dimensions");
  check_like(v, k, "range_attention: v");
  const auto queries = q.sizes(), keys = k.sizes();
  const AttentionShape s{queries[0], queries[1], keys[1], queries[2], keys[2], queries[3], scale, dtype_of(q)};
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && k.is_cpu() && q.is_cpu() && keys[0] == s.batch &&
                      keys[3] == s.head_dim && s.kv_heads > 0 && s.heads % s.kv_heads == 0,
                  "range_attention: q and k do not fit together");
  STD_TORCH_CHECK(s.head_dim >= 1 && s.head_dim <= 256 && s.q_len <= INT32_MAX && s.k_len <= INT32_MAX,
                  "range_attention: expected head_dim 1 to 256, and lengths below 2^31");
  STD_TORCH_CHECK(std::isfinite(scale), "range_attention: expected a finite scale");
  return s;
}

// The mask's arrays. Their content is checked when a plan is made of them: a kernel reads wherever they point.
struct MaskArrays {
  OptionalTensor held[4];
  RangeMaskView view{};

  // Of RangeMask.packed: q_len, k_len, batch (-1: one mask for all samples), query ranges, key ranges, the four arrays.
  MaskArrays(const AttentionShape& shape, const OptionalTensor& packed) {
    view.samples = 1;
    view.q_len = shape.q_len;
    view.k_len = shape.k_len;
    if (!packed) return;
    constexpr int64_t kHeader = 5;
    const int32_t* at = data_of(0, *packed);
    const int64_t size = held[0]->numel();
    STD_TORCH_CHECK(size >= kHeader && at[0] == shape.q_len && at[1] == shape.k_len && at[3] >= 0 && at[4] >= 0 &&
                        (at[2] == -1 || at[2] == shape.batch),
                    "range_attention: a mask of other lengths or batch");
    view.samples = at[2] == -1 ? 1 : at[2];
    view.rows = at[3];
    view.ranges = at[4];
    STD_TORCH_CHECK(size == kHeader + view.samples + 1 + 3 * view.rows + 1 + 2 * view.ranges,
                    "range_attention: the packed mask is of another size than it says");
    view.batch_ptr = at + kHeader;
    view.q_ranges = view.batch_ptr + view.samples + 1;
    view.key_ptr = view.q_ranges + 2 * view.rows;
    view.key_ranges = view.key_ptr + view.rows + 1;
  }

  MaskArrays(const AttentionShape& shape, const OptionalTensor& batch_ptr, const OptionalTensor& q_ranges,
             const OptionalTensor& key_ptr, const OptionalTensor& key_ranges) {
    view.samples = 1;
    view.q_len = shape.q_len;
    view.k_len = shape.k_len;
    if (!batch_ptr) return;
    STD_TORCH_CHECK(q_ranges && key_ptr && key_ranges, "range_attention: expected all four mask arrays or none");
    view.batch_ptr = data_of(0, *batch_ptr);
    view.q_ranges = data_of(1, *q_ranges);
    view.key_ptr = data_of(2, *key_ptr);
    view.key_ranges = data_of(3, *key_ranges);
    const int64_t q_numbers = q_ranges->numel(), key_numbers = key_ranges->numel();
    view.samples = batch_ptr->numel() - 1;
    view.rows = q_numbers / 2;
    view.ranges = key_numbers / 2;
    STD_TORCH_CHECK((view.samples == 1 || view.samples == shape.batch) && key_ptr->numel() == view.rows + 1 &&
                        q_numbers % 2 == 0 && key_numbers % 2 == 0,
                    "range_attention: the mask's arrays do not fit together, or not the batch");
  }

  std::shared_ptr<const TilePlan> plan(int tile, bool by_key) const {
    const char* reason = nullptr;
    std::shared_ptr<const TilePlan> made = cached_plan({view, tile, by_key}, reason);
    STD_TORCH_CHECK(made, "range_attention: mask with ", reason);
    return made;
  }

 private:
  const int32_t* data_of(int i, const Tensor& t) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Int && t.is_cpu(),
                    "range_attention: expected int32 mask arrays on the CPU");
    held[i] = t.is_contiguous() ? t : torch::stable::contiguous(t);
    return (const int32_t*)held[i]->const_data_ptr();
  }
};

// Whether queries see runs of neighbouring keys, as in decoding.
bool has_long_runs(const TilePlan& plan) {
  constexpr int64_t kShortRun = 8;  // on average; below, lanes with masks are quicker than rows taken apart
  int64_t keys = 0;
  for (const Tile& tile : plan.tiles) keys += tile.cost;
  return (int64_t(plan.segments.size()) - int64_t(plan.tiles.size())) * kShortRun <= keys;
}

// Without `lse` no query's log of its denominator is kept.
void attend(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const MaskArrays& mask,
            Tensor& out, Tensor* lse) {
  if (shape.batch * shape.heads * shape.q_len == 0) return;
  const Tensor query = dense_rows(q), key = dense_rows(k), value = dense_rows(v);
  const AttentionKernels& kernels = attention_kernels();
  AttentionParams params{shape,
                         head_rows(query),
                         head_rows(key),
                         head_rows(value),
                         written_rows(out),
                         lse ? lse->mutable_data_ptr() : nullptr,
                         {}};
  if (shape.q_len <= kernels.decode_queries) {
    const auto plan = mask.plan(kMaxTile, false);
    if (has_long_runs(*plan)) {
      params.plan = plan->view();
      kernels.decode(params);
      return;
    }
  }
  const auto plan = mask.plan(kernels.query_tile[int(shape.dtype)], false);
  params.plan = plan->view();
  kernels.forward(params);
}

Tensor empty_lse(const AttentionShape& shape) {
  const int64_t sizes[] = {shape.batch, shape.heads, shape.q_len};
  const int64_t strides[] = {shape.heads * shape.q_len, shape.q_len, 1};
  return empty_strided(sizes, strides, 3,
                       shape.dtype == DType::f64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
}

void check_written(const Tensor& out, const Tensor& q, const Tensor& k, const Tensor& v) {
  check_output(out, q, "range_attention: out");
  for (const Tensor* input : {&q, &k, &v}) {
    check_apart(out, *input, false, "range_attention: out overlaps an input");
  }
}

std::tuple<Tensor, Tensor> range_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const OptionalTensor& batch_ptr, const OptionalTensor& q_ranges,
                                           const OptionalTensor& key_ptr, const OptionalTensor& key_ranges,
                                           double scale) {
  const AttentionShape shape = shape_of(q, k, v, scale);
  Tensor out = empty_heads(q), lse = empty_lse(shape);
  attend(shape, q, k, v, MaskArrays(shape, batch_ptr, q_ranges, key_ptr, key_ranges), out, &lse);
  return {out, lse};
}

Tensor range_attention_out(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& batch_ptr,
                           const OptionalTensor& q_ranges, const OptionalTensor& key_ptr,
                           const OptionalTensor& key_ranges, double scale, Tensor out) {
  const AttentionShape shape = shape_of(q, k, v, scale);
  check_written(out, q, k, v);
  Tensor lse = empty_lse(shape);
  attend(shape, q, k, v, MaskArrays(shape, batch_ptr, q_ranges, key_ptr, key_ranges), out, &lse);
  return lse;
}

double scale_of(const Tensor& q, std::optional<double> scale) {
  STD_TORCH_CHECK(q.dim() == 4, "range_attention: expected 4 dimensions");
  return scale ? *scale : std::pow(double(q.size(3)), -0.5);
}

Tensor range_attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
                               std::optional<double> scale) {
  const AttentionShape shape = shape_of(q, k, v, scale_of(q, scale));
  Tensor out = empty_heads(q);
  attend(shape, q, k, v, MaskArrays(shape, mask), out, nullptr);
  return out;
}

void range_attention_forward_out(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
                                 std::optional<double> scale, Tensor out) {
  const AttentionShape shape = shape_of(q, k, v, scale_of(q, scale));
  check_written(out, q, k, v);
  attend(shape, q, k, v, MaskArrays(shape, mask), out, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> range_attention_backward(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& out, const Tensor& lse, const OptionalTensor& batch_ptr, const OptionalTensor& q_ranges,
    const OptionalTensor& key_ptr, const OptionalTensor& key_ranges, double scale) {
  const AttentionShape shape = shape_of(q, k, v, scale);
  check_like(out, q, "range_attention_backward: out");
  check_like(grad_out, q, "range_attention_backward: grad_out");
  const Tensor query = dense_rows(q), key = dense_rows(k), value = dense_rows(v);
  const Tensor result = dense_rows(out), grad = dense_rows(grad_out), dense_lse = torch::stable::contiguous(lse);
  const Tensor dense_grad_lse = grad_lse ? torch::stable::contiguous(*grad_lse) : dense_lse;
  for (const Tensor* t : {&dense_lse, &dense_grad_lse}) {
    STD_TORCH_CHECK(t->numel() == shape.batch * shape.heads * shape.q_len && t->is_cpu() &&
                        t->scalar_type() == (shape.dtype == DType::f64 ? ScalarType::Double : ScalarType::Float),
                    "range_attention_backward: lse or its gradient of another shape or dtype");
  }
  Tensor grad_q = empty_heads(q), grad_k = empty_heads(k), grad_v = empty_heads(v);
  if (grad_q.numel() == 0) {
    for (Tensor* grad_of_keys : {&grad_k, &grad_v})
      std::memset(grad_of_keys->mutable_data_ptr(), 0, size_t(grad_of_keys->numel()) * grad_of_keys->element_size());
    return {grad_q, grad_k, grad_v};
  }
  const MaskArrays mask(shape, batch_ptr, q_ranges, key_ptr, key_ranges);
  const AttentionKernels& kernels = attention_kernels();
  const auto plan = mask.plan(kernels.key_tile[int(shape.dtype)], true);
  kernels.backward({shape, head_rows(query), head_rows(key), head_rows(value), head_rows(result), head_rows(grad),
                    dense_lse.const_data_ptr(), grad_lse ? dense_grad_lse.const_data_ptr() : nullptr,
                    written_rows(grad_q), written_rows(grad_k), written_rows(grad_v), plan->view()});
  return {grad_q, grad_k, grad_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) {
  m.impl("range_attention", TORCH_BOX(&range_attention));
  m.impl("range_attention_out", TORCH_BOX(&range_attention_out));
  m.impl("range_attention_forward", TORCH_BOX(&range_attention_forward));
  m.impl("range_attention_forward_out", TORCH_BOX(&range_attention_forward_out));
  m.impl("range_attention_backward", TORCH_BOX(&range_attention_backward));
}

}  // namespace videoar
