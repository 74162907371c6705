#include "../cpu/linear.h"

#include "tensors.h"

namespace videoar {
namespace {

Tensor pack_linear_weight(const Tensor& weight) {
  const bool narrow = weight.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_cpu() && (narrow || weight.scalar_type() == ScalarType::Float),
                  "pack_linear_weight: weight");
  const int64_t panels = (weight.size(0) + kPanelColumns - 1) / kPanelColumns, pairs = (weight.size(1) + 1) / 2;
  const int64_t inner = narrow ? kPanelColumns : 2;
  Tensor packed = empty_dense(weight, {panels, pairs, inner, 2 * kPanelColumns / inner});
  linear_kernels().pack_linear_weight({weight.const_data_ptr(), packed.mutable_data_ptr(), weight.size(0),
                                       weight.size(1), weight.stride(0), weight.stride(1), dtype_of(weight)});
  return packed;
}

void multiply(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t out_features, void* out,
              int64_t out_stride) {
  const Rows rows(x);
  std::optional<Tensor> wide;
  if (bias) wide = torch::stable::contiguous(torch::stable::to(*bias, ScalarType::Float));
  linear_kernels().packed_linear({rows.tensor.const_data_ptr(), packed.const_data_ptr(),
                                  wide ? (const float*)wide->const_data_ptr() : nullptr, out, rows.rows, rows.width,
                                  out_features, rows.stride, out_stride, dtype_of(x), dtype_of(packed)});
}

// Refuses what would be read out of bounds or taken for something else.
void check(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t out_features) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() > 0 && dtype_of(x) != DType::f64, "packed_linear: x");
  const ScalarType dtype = packed.scalar_type();
  STD_TORCH_CHECK(out_features >= 0 && packed.is_cpu() && packed.is_contiguous() && packed.dim() == 4 &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16),
                  "packed_linear: packed weights");
  const int64_t panels = (out_features + kPanelColumns - 1) / kPanelColumns, pairs = (x.size(x.dim() - 1) + 1) / 2;
  const int64_t inner = dtype == ScalarType::Float ? 2 : kPanelColumns;
  STD_TORCH_CHECK(packed.size(0) == panels && packed.size(1) == pairs && packed.size(2) == inner &&
                      packed.size(3) == 2 * kPanelColumns / inner,
                  "packed_linear: packed weights' shape");
  if (!bias) return;
  STD_TORCH_CHECK(bias->is_cpu() && bias->dim() == 1 && bias->size(0) == out_features, "packed_linear: bias");
  dtype_of(*bias);  // refuses integers
}

std::vector<int64_t> out_sizes(const Tensor& x, int64_t out_features) {
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = out_features;
  return sizes;
}

Tensor packed_linear(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t out_features) {
  check(x, packed, bias, out_features);
  Tensor out = empty_dense(x, out_sizes(x, out_features));
  multiply(x, packed, bias, out_features, out.mutable_data_ptr(), out_features);
  return out;
}

bool overlap(const Tensor& a, const Tensor& b) {
  const auto end = [](const Tensor& t) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    return (const char*)t.const_data_ptr() + (last + 1) * int64_t(t.element_size());
  };
  if (a.numel() == 0 || b.numel() == 0) return false;
  return (const char*)a.const_data_ptr() < end(b) && (const char*)b.const_data_ptr() < end(a);
}

void packed_linear_out(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t out_features,
                       Tensor out) {
  check(x, packed, bias, out_features);
  const bool fits = sizes_of(out) == out_sizes(x, out_features) && out.scalar_type() == x.scalar_type() &&
                    out.is_cpu() && (out_features <= 1 || out.stride(out.dim() - 1) == 1);
  STD_TORCH_CHECK(fits, "packed_linear: out");
  STD_TORCH_CHECK(!overlap(out, x) && !overlap(out, packed) && !(bias && overlap(out, *bias)),
                  "packed_linear: out overlaps an input");
  // Rows that lie at one distance from each other, all apart.
  int64_t stride = out_features, expected = -1;
  for (int64_t i = out.dim() - 2; i >= 0; --i) {
    if (out.size(i) == 1) continue;
    if (expected < 0) stride = out.stride(i);
    STD_TORCH_CHECK(out.numel() == 0 || (stride >= out_features && (expected < 0 || out.stride(i) == expected)),
                    "packed_linear: strides of out");
    expected = out.stride(i) * out.size(i);
  }
  multiply(x, packed, bias, out_features, out.mutable_data_ptr(), stride);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) {
  m.impl("pack_linear_weight", TORCH_BOX(&pack_linear_weight));
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
  m.impl("packed_linear_out", TORCH_BOX(&packed_linear_out));
}

}  // namespace videoar
