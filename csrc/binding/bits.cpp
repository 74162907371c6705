#include "../cpu/bits.h"

#include <memory>

#include "out.h"

namespace videoar {
namespace {

std::vector<int64_t> with_last(const Tensor& t, int64_t last) {
  std::vector<int64_t> sizes = sizes_of(t);
  sizes.back() = last;
  return sizes;
}

const uint8_t* bytes_of(const Rows& rows) { return static_cast<const uint8_t*>(rows.tensor.const_data_ptr()); }
uint8_t* mutable_bytes(const Tensor& t) { return static_cast<uint8_t*>(t.mutable_data_ptr()); }

// One float64 per row, dense, or null.
const double* row_values(std::optional<Tensor>& t, int64_t rows, const char* message) {
  if (!t.has_value()) return nullptr;
  STD_TORCH_CHECK(t->numel() == rows && t->scalar_type() == ScalarType::Double && t->is_cpu(), message);
  t = torch::stable::contiguous(*t);
  return static_cast<const double*>(t->const_data_ptr());
}

void check_packed(const Rows& rows, int64_t dim, const char* message) {
  STD_TORCH_CHECK(
      rows.tensor.scalar_type() == ScalarType::Byte && dim >= 0 && rows.width == (dim + 7) / 8 && rows.tensor.is_cpu(),
      message);
}

void quantize_into(const Rows& in, const Tensor& bits, const Tensor& code) {
  bits_kernels().quantize({in.tensor.const_data_ptr(), mutable_bytes(bits), code.mutable_data_ptr(), in.rows, in.width,
                           in.stride, dtype_of(in.tensor)});
}

std::tuple<Tensor, Tensor> bsq_quantize(const Tensor& x) {
  const Rows in(x);
  dtype_of(x);
  Tensor bits = empty_dense(x, with_last(x, (in.width + 7) / 8), ScalarType::Byte);
  Tensor code = empty_dense(x, sizes_of(x));
  quantize_into(in, bits, code);
  return {code, bits};
}

void bsq_quantize_out(const Tensor& x, const Tensor& bits, const Tensor& code) {
  const Rows in(x);
  check_dense_out(bits, x, (in.width + 7) / 8, ScalarType::Byte, "bsq_quantize: expected dense uint8 bits");
  check_dense_out(code, x, in.width, x.scalar_type(), "bsq_quantize: expected a dense code like x");
  check_apart(code, x, true, "bsq_quantize: code overlaps x");
  check_apart(bits, x, false, "bsq_quantize: bits overlap x");
  check_apart(bits, code, false, "bsq_quantize: bits overlap the code");
  quantize_into(in, bits, code);
}

void check_ones(const Tensor& ones) {
  const ScalarType dtype = ones.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Byte || dtype == ScalarType::Bool, "pack_bits: expected bool or uint8");
}

Tensor pack_bits(const Tensor& ones) {
  const Rows in(ones);
  check_ones(ones);
  Tensor bits = empty_dense(ones, with_last(ones, (in.width + 7) / 8), ScalarType::Byte);
  bits_kernels().pack({bytes_of(in), mutable_bytes(bits), in.rows, in.width, in.stride});
  return bits;
}

void pack_bits_out(const Tensor& ones, const Tensor& bits) {
  const Rows in(ones);
  check_ones(ones);
  check_dense_out(bits, ones, (in.width + 7) / 8, ScalarType::Byte, "pack_bits: expected dense uint8 out");
  check_apart(bits, ones, true, "pack_bits: out overlaps bits");
  bits_kernels().pack({bytes_of(in), mutable_bytes(bits), in.rows, in.width, in.stride});
}

Tensor unpack_bits(const Tensor& bits, int64_t dim) {
  const Rows in(bits);
  check_packed(in, dim, "unpack_bits: expected ceil(dim / 8) bytes a token");
  Tensor ones = empty_dense(bits, with_last(bits, dim), ScalarType::Bool);
  bits_kernels().unpack({bytes_of(in), mutable_bytes(ones), in.rows, dim, in.stride});
  return ones;
}

void unpack_bits_out(const Tensor& bits, const Tensor& ones) {
  const Rows in(bits);
  STD_TORCH_CHECK(ones.dim() >= 1, "unpack_bits: expected an out of at least one dimension");
  const int64_t dim = ones.size(ones.dim() - 1);
  check_packed(in, dim, "unpack_bits: expected ceil(dim / 8) bytes a token");
  check_dense_out(ones, bits, dim, ScalarType::Bool, "unpack_bits: expected dense bool out");
  check_apart(ones, bits, false, "unpack_bits: out overlaps bits");
  bits_kernels().unpack({bytes_of(in), mutable_bytes(ones), in.rows, dim, in.stride});
}

Tensor bits_to_code(const Tensor& bits, int64_t dim, int64_t dtype) {
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half};
  const Rows in(bits);
  check_packed(in, dim, "bits_to_code: expected ceil(dim / 8) bytes a token");
  STD_TORCH_CHECK(dtype >= 0 && dtype < 4, "bits_to_code: expected a floating dtype");
  Tensor code = empty_dense(bits, with_last(bits, dim), kTypes[dtype]);
  bits_kernels().code({bytes_of(in), code.mutable_data_ptr(), in.rows, dim, in.stride, DType(int(dtype))});
  return code;
}

void bits_to_code_out(const Tensor& bits, const Tensor& code) {
  const Rows in(bits);
  STD_TORCH_CHECK(code.dim() >= 1, "bits_to_code: expected a code of at least one dimension");
  const int64_t dim = code.size(code.dim() - 1);
  check_packed(in, dim, "bits_to_code: expected ceil(dim / 8) bytes a token");
  check_dense_out(code, bits, dim, code.scalar_type(), "bits_to_code: expected a dense code");
  check_apart(code, bits, false, "bits_to_code: the code overlaps the bits");
  bits_kernels().code({bytes_of(in), code.mutable_data_ptr(), in.rows, dim, in.stride, dtype_of(code)});
}

void flip_into(const Rows& in, double p, std::optional<Tensor>& token_p, std::optional<int64_t> some_dim, int64_t seed,
               int64_t offset, const Tensor& out) {
  const int64_t dim = some_dim.has_value() ? *some_dim : 8 * in.width;
  check_packed(in, dim, "flip_bits: expected ceil(dim / 8) bytes a token");
  const double* row_p = row_values(token_p, in.rows, "flip_bits: expected one float64 p per token");
  bool valid = p >= 0 && p <= 1;
  for (int64_t row = 0; row_p != nullptr && row < in.rows; ++row) valid = valid && row_p[row] >= 0 && row_p[row] <= 1;
  STD_TORCH_CHECK(valid, "flip_bits: expected p within [0, 1]");
  bits_kernels().flip(
      {bytes_of(in), mutable_bytes(out), row_p, p, in.rows, dim, in.stride, uint64_t(seed), uint64_t(offset)});
}

Tensor flip_bits(const Tensor& bits, double p, std::optional<Tensor> token_p, std::optional<int64_t> dim, int64_t seed,
                 int64_t offset) {
  const Rows in(bits);
  STD_TORCH_CHECK(bits.scalar_type() == ScalarType::Byte, "flip_bits: expected uint8 bits");
  Tensor out = empty_dense(bits, sizes_of(bits));
  flip_into(in, p, token_p, dim, seed, offset, out);
  return out;
}

void flip_bits_out(const Tensor& bits, double p, std::optional<Tensor> token_p, std::optional<int64_t> dim,
                   int64_t seed, int64_t offset, const Tensor& out) {
  const Rows in(bits);
  check_dense_out(out, bits, in.width, ScalarType::Byte, "flip_bits: expected dense uint8 out like bits");
  check_apart(out, bits, true, "flip_bits: out overlaps bits");
  flip_into(in, p, token_p, dim, seed, offset, out);
}

struct SampleInputs {
  Rows logits, base;
  std::optional<Tensor>& token_guidance;
  const double* row_guidance;
  const int64_t* seeds = nullptr;
  int64_t sample_rows = 0;
  bool guided;

  SampleInputs(const Tensor& x, const std::optional<Tensor>& uncond, std::optional<Tensor>& token_guidance,
               std::optional<Tensor>& sample_seeds)
      : logits(x), base(uncond.has_value() ? *uncond : x), token_guidance(token_guidance), guided(uncond.has_value()) {
    dtype_of(x);
    if (guided) check_like(*uncond, x, "sample_bits: uncond");
    row_guidance = row_values(token_guidance, logits.rows, "sample_bits: expected one float64 guidance per token");
    if (sample_seeds.has_value()) {
      const int64_t samples = x.dim() > 1 ? x.size(0) : 0;
      STD_TORCH_CHECK(sample_seeds->dim() == 1 && sample_seeds->numel() == samples && samples > 0 &&
                          sample_seeds->scalar_type() == ScalarType::Long && sample_seeds->is_cpu(),
                      "sample_bits: expected one int64 seed per sample");
      sample_seeds = torch::stable::contiguous(*sample_seeds);
      seeds = static_cast<const int64_t*>(sample_seeds->const_data_ptr());
      sample_rows = logits.rows / samples;
    }
  }
  void into(double guidance, double temperature, int64_t seed, int64_t offset, const Tensor& bits,
            const Tensor& code) const {
    STD_TORCH_CHECK(temperature >= 0, "sample_bits: expected temperature >= 0");
    bits_kernels().sample({logits.tensor.const_data_ptr(), guided ? base.tensor.const_data_ptr() : nullptr,
                           row_guidance, mutable_bytes(bits), code.mutable_data_ptr(), guidance, temperature,
                           logits.rows, logits.width, logits.stride, base.stride, uint64_t(seed), uint64_t(offset),
                           seeds, sample_rows, dtype_of(logits.tensor)});
  }
};

std::tuple<Tensor, Tensor> sample_bits(const Tensor& logits, std::optional<Tensor> uncond, double guidance,
                                       std::optional<Tensor> token_guidance, double temperature, int64_t seed,
                                       std::optional<Tensor> seeds, int64_t offset) {
  const SampleInputs in(logits, uncond, token_guidance, seeds);
  Tensor bits = empty_dense(logits, with_last(logits, (in.logits.width + 7) / 8), ScalarType::Byte);
  Tensor code = empty_dense(logits, sizes_of(logits));
  in.into(guidance, temperature, seed, offset, bits, code);
  return {code, bits};
}

void sample_bits_out(const Tensor& logits, std::optional<Tensor> uncond, double guidance,
                     std::optional<Tensor> token_guidance, double temperature, int64_t seed,
                     std::optional<Tensor> seeds, int64_t offset, const Tensor& bits, const Tensor& code) {
  const SampleInputs in(logits, uncond, token_guidance, seeds);
  check_dense_out(bits, logits, (in.logits.width + 7) / 8, ScalarType::Byte, "sample_bits: expected dense uint8 bits");
  check_dense_out(code, logits, in.logits.width, logits.scalar_type(),
                  "sample_bits: expected a dense code like logits");
  for (const Tensor* input : {&logits, uncond.has_value() ? &*uncond : &logits}) {
    check_apart(code, *input, true, "sample_bits: code overlaps an input");
    check_apart(bits, *input, false, "sample_bits: bits overlap an input");
  }
  check_apart(bits, code, false, "sample_bits: bits overlap the code");
  in.into(guidance, temperature, seed, offset, bits, code);
}

// One int32 scale id per row, dense, or null.
const int32_t* row_ids(std::optional<Tensor>& t, int64_t rows) {
  if (!t.has_value()) return nullptr;
  STD_TORCH_CHECK(t->numel() == rows && t->scalar_type() == ScalarType::Int && t->is_cpu(),
                  "bit_cross_entropy: expected one int32 scale id per token");
  t = torch::stable::contiguous(*t);
  return static_cast<const int32_t*>(t->const_data_ptr());
}

bool same_tokens(const Tensor& logits, const Tensor& bits) {
  const auto a = logits.sizes(), b = bits.sizes();
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i + 1 < a.size(); ++i) same = a[i] == b[i];
  return same;
}

void put(Tensor& t, int64_t i, double value) {
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bit_cross_entropy(const Tensor& logits, const Tensor& bits,
                                                                     std::optional<Tensor> weight,
                                                                     std::optional<Tensor> scale_ids,
                                                                     int64_t num_scales) {
  const Rows in(logits), target(bits);
  check_packed(target, in.width, "bit_cross_entropy: expected ceil(d / 8) bytes a token");
  STD_TORCH_CHECK(same_tokens(logits, bits) && num_scales >= 1, "bit_cross_entropy: expected as many bits as logits");
  const double* weights = row_values(weight, in.rows, "bit_cross_entropy: expected one float64 weight per token");
  const int32_t* ids = row_ids(scale_ids, in.rows);
  const int64_t chunks = entropy_chunks(in.rows);
  std::vector<EntropySums> sums(chunks * num_scales);
  std::unique_ptr<bool[]> refused(new bool[chunks]());
  bits_kernels().entropy({in.tensor.const_data_ptr(), bytes_of(target), weights, ids, sums.data(), refused.get(),
                          in.rows, in.width, num_scales, in.stride, target.stride, dtype_of(logits)});
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    STD_TORCH_CHECK(!refused[chunk], "bit_cross_entropy: expected scale_ids in [0, num_scales)");
  }
  const ScalarType wide = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor loss = empty_dense(logits, {}, wide), accuracy = empty_dense(logits, {}, wide);
  Tensor per_scale = empty_dense(logits, {num_scales}, wide), scale_accuracy = empty_dense(logits, {num_scales}, wide);
  Tensor totals = empty_dense(logits, {num_scales}, ScalarType::Double);
  EntropySums all{};
  const double dim = double(in.width);
  for (int64_t s = 0; s < num_scales; ++s) {
    EntropySums one{};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const EntropySums& part = sums[chunk * num_scales + s];
      one = {one.nats + part.nats, one.hits + part.hits, one.weight + part.weight};
    }
    all = {all.nats + one.nats, all.hits + one.hits, all.weight + one.weight};
    put(per_scale, s, one.nats / (one.weight * dim));
    put(scale_accuracy, s, one.hits / (one.weight * dim));
    put(totals, s, one.weight);
  }
  put(loss, 0, all.nats / (all.weight * dim));
  put(accuracy, 0, all.hits / (all.weight * dim));
  return {loss, per_scale, accuracy, scale_accuracy, totals};
}

Tensor bit_cross_entropy_backward(const Tensor& grad_loss, const Tensor& grad_per_scale, const Tensor& logits,
                                  const Tensor& bits, std::optional<Tensor> weight, std::optional<Tensor> scale_ids,
                                  const Tensor& totals) {
  const Rows in(logits), target(bits);
  check_packed(target, in.width, "bit_cross_entropy: expected ceil(d / 8) bytes a token");
  STD_TORCH_CHECK(same_tokens(logits, bits), "bit_cross_entropy: expected as many bits as logits");
  const int64_t num_scales = totals.numel();
  STD_TORCH_CHECK(grad_per_scale.numel() == num_scales && totals.scalar_type() == ScalarType::Double,
                  "bit_cross_entropy: expected a gradient and a total per scale");
  const double* weights = row_values(weight, in.rows, "bit_cross_entropy: expected one float64 weight per token");
  const int32_t* ids = row_ids(scale_ids, in.rows);
  for (int64_t row = 0; ids != nullptr && row < in.rows; ++row) {
    STD_TORCH_CHECK(ids[row] >= 0 && ids[row] < num_scales, "bit_cross_entropy: expected scale_ids in [0, num_scales)");
  }
  STD_TORCH_CHECK(num_scales > 0 || in.rows == 0, "bit_cross_entropy: expected num_scales >= 1");
  const Tensor grad_scales = torch::stable::contiguous(grad_per_scale);
  double all = 0;
  for (int64_t s = 0; s < num_scales; ++s) all += get(totals, s);
  std::vector<double> coefficient(num_scales);
  for (int64_t s = 0; s < num_scales; ++s) {
    const double total = get(totals, s);
    if (total == 0 || all == 0) continue;  // only tokens without weight
    coefficient[s] = (get(grad_loss, 0) / all + get(grad_scales, s) / total) / double(in.width);
  }
  Tensor grad = empty_dense(logits, sizes_of(logits));
  bits_kernels().entropy_backward({in.tensor.const_data_ptr(), bytes_of(target), weights, ids, coefficient.data(),
                                   grad.mutable_data_ptr(), in.rows, in.width, in.stride, target.stride,
                                   dtype_of(logits)});
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) {
  m.impl("bsq_quantize", TORCH_BOX(&bsq_quantize));
  m.impl("bsq_quantize_out", TORCH_BOX(&bsq_quantize_out));
  m.impl("pack_bits", TORCH_BOX(&pack_bits));
  m.impl("pack_bits_out", TORCH_BOX(&pack_bits_out));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits));
  m.impl("unpack_bits_out", TORCH_BOX(&unpack_bits_out));
  m.impl("bits_to_code", TORCH_BOX(&bits_to_code));
  m.impl("bits_to_code_out", TORCH_BOX(&bits_to_code_out));
  m.impl("flip_bits", TORCH_BOX(&flip_bits));
  m.impl("flip_bits_out", TORCH_BOX(&flip_bits_out));
  m.impl("sample_bits", TORCH_BOX(&sample_bits));
  m.impl("sample_bits_out", TORCH_BOX(&sample_bits_out));
  m.impl("bit_cross_entropy", TORCH_BOX(&bit_cross_entropy));
  m.impl("bit_cross_entropy_backward", TORCH_BOX(&bit_cross_entropy_backward));
}

}  // namespace videoar
