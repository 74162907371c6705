#include "../cpu/linear.h"

#include "out.h"
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

Tensor dense_floats(const Tensor& t) {
  if (t.scalar_type() == ScalarType::Float && t.is_contiguous()) return t;
  return torch::stable::contiguous(torch::stable::to(t, ScalarType::Float));
}

void multiply(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t out_features, void* out,
              int64_t out_stride) {
  const Rows rows(x);
  const Tensor wide = bias ? dense_floats(*bias) : x;
  linear_kernels().packed_linear({rows.tensor.const_data_ptr(), packed.const_data_ptr(),
                                  bias ? (const float*)wide.const_data_ptr() : nullptr, out, rows.rows, rows.width,
                                  out_features, rows.stride, out_stride, dtype_of(x), dtype_of(packed)});
}

// Refuses what would be read out of bounds or taken for something else.
void check(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t out_features) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() > 0 && dtype_of(x) != DType::f64, "packed_linear: x");
  const ScalarType dtype = packed.scalar_type();
  STD_TORCH_CHECK(out_features >= 0 && packed.is_cpu() && packed.is_contiguous() && packed.dim() == 4 &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16),
                  "packed_linear: packed weights");
  const int64_t panels = out_features / kPanelColumns + (out_features % kPanelColumns != 0),
                pairs = (x.size(x.dim() - 1) + 1) / 2;
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

void packed_linear_out(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t out_features,
                       Tensor out) {
  check(x, packed, bias, out_features);
  const auto sizes = out.sizes(), leading = x.sizes();
  bool fits = sizes.size() == leading.size() && out.scalar_type() == x.scalar_type() && out.is_cpu();
  for (size_t i = 0; fits && i < sizes.size(); ++i)
    fits = sizes[i] == (i + 1 < sizes.size() ? leading[i] : out_features);
  STD_TORCH_CHECK(fits, "packed_linear: out's shape, dtype or device");
  STD_TORCH_CHECK(!repeats_elements(out), "packed_linear: out holds an element twice");
  const Rows rows(out);
  STD_TORCH_CHECK(rows.tensor.const_data_ptr() == out.const_data_ptr(), "packed_linear: out's strides");
  check_apart(out, x, false, "packed_linear: out overlaps x");
  check_apart(out, packed, false, "packed_linear: out overlaps packed");
  if (bias) check_apart(out, *bias, false, "packed_linear: out overlaps bias");
  multiply(x, packed, bias, out_features, out.mutable_data_ptr(), rows.stride);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) {
  m.impl("pack_linear_weight", TORCH_BOX(&pack_linear_weight));
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
  m.impl("packed_linear_out", TORCH_BOX(&packed_linear_out));
}

}  // namespace videoar
