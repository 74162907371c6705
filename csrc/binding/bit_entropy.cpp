#include <memory>

#include "../cuda/bits.h"
#include "bit_rows.h"

namespace videoar {
namespace {

constexpr int64_t kMostScales = 1 << 16;  // sums of every scale are kept 64 times over, or 512 on a GPU

constexpr const char* kOneWeight = "bit_cross_entropy: expected one float64 weight per token";
constexpr const char* kScaleIds = "bit_cross_entropy: expected scale_ids in [0, num_scales)";

// The arguments that forward and backward share, as kernels read them.
struct EntropyInputs {
  Rows in, target;
  const double* weights;
  const int32_t* ids;  // one per row, dense, or null

  // `look`: whether ids on the CPU are looked at here (its forward kernel looks at them, too).
  EntropyInputs(const Tensor& logits, const Tensor& bits, std::optional<Tensor>& weight,
                std::optional<Tensor>& scale_ids, int64_t num_scales, bool look)
      : in(logits), target(bits) {
    check_packed(target, in.width, "bit_cross_entropy: expected ceil(d / 8) bytes a token");
    STD_TORCH_CHECK(same_tokens(logits, bits) && same_device(logits, bits),
                    "bit_cross_entropy: expected as many bits as logits");
    STD_TORCH_CHECK(num_scales >= 1 && num_scales <= kMostScales,
                    "bit_cross_entropy: expected num_scales in [1, 2**16]");
    weights = row_values(weight, in, kOneWeight);
    ids = row_ids(scale_ids);
    // Looking at a GPU's ids would wait for it; its kernels make NaN of those outside.
    for (int64_t row = 0; ids != nullptr && look && logits.is_cpu() && row < in.rows; ++row) {
      STD_TORCH_CHECK(ids[row] >= 0 && ids[row] < num_scales, kScaleIds);
    }
  }

 private:
  static bool same_tokens(const Tensor& logits, const Tensor& bits) {
    const auto a = logits.sizes(), b = bits.sizes();
    bool same = a.size() == b.size();
    for (size_t i = 0; same && i + 1 < a.size(); ++i) same = a[i] == b[i];
    return same;
  }

  const int32_t* row_ids(std::optional<Tensor>& t) const {
    if (!t.has_value()) return nullptr;
    STD_TORCH_CHECK(t->numel() == in.rows && t->scalar_type() == ScalarType::Int && same_device(*t, in.tensor),
                    "bit_cross_entropy: expected one int32 scale id per token");
    t = torch::stable::contiguous(*t);
    return static_cast<const int32_t*>(t->const_data_ptr());
  }
};

struct EntropyResults {
  Tensor loss, per_scale, accuracy, scale_accuracy, totals;

  EntropyResults(const Tensor& logits, int64_t scales)
      : loss(empty_dense(logits, {}, wide(logits))),
        per_scale(empty_dense(logits, {scales}, wide(logits))),
        accuracy(empty_dense(logits, {}, wide(logits))),
        scale_accuracy(empty_dense(logits, {scales}, wide(logits))),
        totals(empty_dense(logits, {scales}, ScalarType::Double)) {}

 private:
  static ScalarType wide(const Tensor& logits) {
    return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }
};

void put(const Tensor& t, int64_t i, double value) {
  if (t.scalar_type() == ScalarType::Double) {
    static_cast<double*>(t.mutable_data_ptr())[i] = value;
  } else {
    static_cast<float*>(t.mutable_data_ptr())[i] = float(value);
  }
}

double get(const Tensor& t, int64_t i) {
  return t.scalar_type() == ScalarType::Double ? static_cast<const double*>(t.const_data_ptr())[i]
                                               : double(static_cast<const float*>(t.const_data_ptr())[i]);
}

void entropy_on_cpu(EntropyParams params, const EntropyResults& out) {
  const int64_t chunks = entropy_chunks(params.rows), scales = params.scales;
  std::vector<EntropySums> sums(chunks * scales);
  std::unique_ptr<bool[]> refused(new bool[chunks]());
  params.sums = sums.data(), params.refused = refused.get();
  bits_kernels().entropy(params);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) STD_TORCH_CHECK(!refused[chunk], kScaleIds);
  EntropySums all{};
  const double dim = double(params.dim);
  for (int64_t s = 0; s < scales; ++s) {
    EntropySums one{};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const EntropySums& part = sums[chunk * scales + s];
      one = {one.nats + part.nats, one.hits + part.hits, one.weight + part.weight};
    }
    all = {all.nats + one.nats, all.hits + one.hits, all.weight + one.weight};
    put(out.per_scale, s, one.nats / (one.weight * dim));
    put(out.scale_accuracy, s, one.hits / (one.weight * dim));
    put(out.totals, s, one.weight);
  }
  put(out.loss, 0, all.nats / (all.weight * dim));
  put(out.accuracy, 0, all.hits / (all.weight * dim));
}

void entropy_on_gpu(const Tensor& logits, const EntropyParams& params, const EntropyResults& out) {
  const Tensor sums = empty_dense(logits, {cuda::entropy_blocks(params.rows), params.scales, 3}, ScalarType::Double);
  const cuda::EntropyLaunch entropy = {params,
                                       static_cast<EntropySums*>(sums.mutable_data_ptr()),
                                       out.loss.mutable_data_ptr(),
                                       out.accuracy.mutable_data_ptr(),
                                       out.per_scale.mutable_data_ptr(),
                                       out.scale_accuracy.mutable_data_ptr(),
                                       static_cast<double*>(out.totals.mutable_data_ptr())};
  launch(logits, VIDEOAR_GPU(launch_entropy), entropy);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bit_cross_entropy(const Tensor& logits, const Tensor& bits,
                                                                     std::optional<Tensor> weight,
                                                                     std::optional<Tensor> scale_ids,
                                                                     int64_t num_scales) {
  const EntropyInputs at(logits, bits, weight, scale_ids, num_scales, on_gpu(logits));
  const EntropyParams params = {at.in.tensor.const_data_ptr(),
                                bytes_of(at.target),
                                at.weights,
                                at.ids,
                                nullptr,
                                nullptr,
                                at.in.rows,
                                at.in.width,
                                num_scales,
                                at.in.stride,
                                at.target.stride,
                                dtype_of(logits)};
  const EntropyResults out(logits, num_scales);
  on_gpu(logits) ? entropy_on_gpu(logits, params, out) : entropy_on_cpu(params, out);
  return {out.loss, out.per_scale, out.accuracy, out.scale_accuracy, out.totals};
}

void entropy_backward_on_cpu(EntropyBackwardParams params, const Tensor& grad_loss, const Tensor& grad_scales,
                             const Tensor& totals) {
  const int64_t scales = totals.numel();
  double all = 0;
  for (int64_t s = 0; s < scales; ++s) all += get(totals, s);
  std::vector<double> coefficient(scales);
  for (int64_t s = 0; s < scales; ++s) {
    const double total = get(totals, s);
    // A mean of no weight is no number and has no gradient, but weights may cancel in one mean and not in the other.
    const double whole = all == 0 ? 0 : get(grad_loss, 0) / all;
    const double own = total == 0 ? 0 : get(grad_scales, s) / total;
    coefficient[s] = (whole + own) / double(params.dim);
  }
  params.coefficient = coefficient.data();
  bits_kernels().entropy_backward(params);
}

void entropy_backward_on_gpu(const Tensor& logits, const EntropyBackwardParams& params, const Tensor& grad_loss,
                             const Tensor& grad_scales, const Tensor& totals) {
  const Tensor coefficient = empty_dense(logits, {totals.numel()}, ScalarType::Double);
  const cuda::EntropyBackwardLaunch backward = {params,
                                                grad_loss.const_data_ptr(),
                                                grad_scales.const_data_ptr(),
                                                static_cast<const double*>(totals.const_data_ptr()),
                                                static_cast<double*>(coefficient.mutable_data_ptr()),
                                                totals.numel()};
  launch(logits, VIDEOAR_GPU(launch_entropy_backward), backward);
}

Tensor bit_cross_entropy_backward(const Tensor& grad_loss, const Tensor& grad_per_scale, const Tensor& logits,
                                  const Tensor& bits, std::optional<Tensor> weight, std::optional<Tensor> scale_ids,
                                  const Tensor& totals) {
  const int64_t num_scales = totals.numel();
  const EntropyInputs at(logits, bits, weight, scale_ids, num_scales, true);
  STD_TORCH_CHECK(grad_per_scale.numel() == num_scales && totals.scalar_type() == ScalarType::Double &&
                      grad_loss.numel() == 1 && grad_loss.scalar_type() == grad_per_scale.scalar_type() &&
                      same_device(grad_loss, logits) && same_device(grad_per_scale, logits) &&
                      same_device(totals, logits) && totals.is_contiguous(),
                  "bit_cross_entropy: expected a gradient and a total per scale");
  const Tensor grad_scales = torch::stable::contiguous(grad_per_scale);
  const Tensor grad = empty_dense(logits, sizes_of(logits));
  const EntropyBackwardParams params = {at.in.tensor.const_data_ptr(),
                                        bytes_of(at.target),
                                        at.weights,
                                        at.ids,
                                        nullptr,
                                        grad.mutable_data_ptr(),
                                        at.in.rows,
                                        at.in.width,
                                        at.in.stride,
                                        at.target.stride,
                                        dtype_of(logits)};
  on_gpu(logits) ? entropy_backward_on_gpu(logits, params, grad_loss, grad_scales, totals)
                 : entropy_backward_on_cpu(params, grad_loss, grad_scales, totals);
  return grad;
}

template <class Library>
void add_kernels(Library& m) {
  m.impl("bit_cross_entropy", TORCH_BOX(&bit_cross_entropy));
  m.impl("bit_cross_entropy_backward", TORCH_BOX(&bit_cross_entropy_backward));
}

}  // namespace

VIDEOAR_REGISTER(add_kernels)

}  // namespace videoar
