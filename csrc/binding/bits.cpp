#include "../cuda/bits.h"

#include <cmath>

#include "bit_rows.h"
#include "out.h"

namespace videoar {
namespace {

std::vector<int64_t> with_last(const Tensor& t, int64_t last) {
  std::vector<int64_t> sizes = sizes_of(t);
  sizes.back() = last;
  return sizes;
}

void quantize_into(const Rows& in, const Tensor& bits, const Tensor& code) {
  const QuantizeParams params = {
      in.tensor.const_data_ptr(), mutable_bytes(bits), code.mutable_data_ptr(), in.rows, in.width, in.stride,
      dtype_of(in.tensor)};
  run_kernel(in.tensor, bits_kernels().quantize, VIDEOAR_GPU(launch_quantize), params);
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

void pack_into(const Rows& in, const Tensor& bits) {
  const PackParams params = {bytes_of(in), mutable_bytes(bits), in.rows, in.width, in.stride};
  run_kernel(in.tensor, bits_kernels().pack, VIDEOAR_GPU(launch_pack), params);
}

Tensor pack_bits(const Tensor& ones) {
  const Rows in(ones);
  check_ones(ones);
  Tensor bits = empty_dense(ones, with_last(ones, (in.width + 7) / 8), ScalarType::Byte);
  pack_into(in, bits);
  return bits;
}

void pack_bits_out(const Tensor& ones, const Tensor& bits) {
  const Rows in(ones);
  check_ones(ones);
  check_dense_out(bits, ones, (in.width + 7) / 8, ScalarType::Byte, "pack_bits: expected dense uint8 out");
  check_apart(bits, ones, true, "pack_bits: out overlaps bits");
  pack_into(in, bits);
}

void unpack_into(const Rows& in, int64_t dim, const Tensor& ones) {
  const UnpackParams params = {bytes_of(in), mutable_bytes(ones), in.rows, dim, in.stride};
  run_kernel(in.tensor, bits_kernels().unpack, VIDEOAR_GPU(launch_unpack), params);
}

Tensor unpack_bits(const Tensor& bits, int64_t dim) {
  const Rows in(bits);
  check_packed(in, dim, "unpack_bits: expected ceil(dim / 8) bytes a token");
  Tensor ones = empty_dense(bits, with_last(bits, dim), ScalarType::Bool);
  unpack_into(in, dim, ones);
  return ones;
}

void unpack_bits_out(const Tensor& bits, const Tensor& ones) {
  const Rows in(bits);
  STD_TORCH_CHECK(ones.dim() >= 1, "unpack_bits: expected an out of at least one dimension");
  const int64_t dim = ones.size(ones.dim() - 1);
  check_packed(in, dim, "unpack_bits: expected ceil(dim / 8) bytes a token");
  check_dense_out(ones, bits, dim, ScalarType::Bool, "unpack_bits: expected dense bool out");
  check_apart(ones, bits, false, "unpack_bits: out overlaps bits");
  unpack_into(in, dim, ones);
}

void code_into(const Rows& in, int64_t dim, const Tensor& code) {
  const CodeParams params = {bytes_of(in), code.mutable_data_ptr(), in.rows, dim, in.stride, dtype_of(code)};
  run_kernel(in.tensor, bits_kernels().code, VIDEOAR_GPU(launch_code), params);
}

Tensor bits_to_code(const Tensor& bits, int64_t dim, int64_t dtype) {
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half};
  const Rows in(bits);
  check_packed(in, dim, "bits_to_code: expected ceil(dim / 8) bytes a token");
  STD_TORCH_CHECK(dtype >= 0 && dtype < 4, "bits_to_code: expected a floating dtype");
  Tensor code = empty_dense(bits, with_last(bits, dim), kTypes[dtype]);
  code_into(in, dim, code);
  return code;
}

void bits_to_code_out(const Tensor& bits, const Tensor& code) {
  const Rows in(bits);
  STD_TORCH_CHECK(code.dim() >= 1, "bits_to_code: expected a code of at least one dimension");
  const int64_t dim = code.size(code.dim() - 1);
  check_packed(in, dim, "bits_to_code: expected ceil(dim / 8) bytes a token");
  check_dense_out(code, bits, dim, code.scalar_type(), "bits_to_code: expected a dense code");
  check_apart(code, bits, false, "bits_to_code: the code overlaps the bits");
  code_into(in, dim, code);
}

void flip_into(const Rows& in, double p, std::optional<Tensor>& token_p, std::optional<int64_t> some_dim, int64_t seed,
               int64_t offset, const Tensor& out) {
  const int64_t dim = some_dim.has_value() ? *some_dim : 8 * in.width;
  check_packed(in, dim, "flip_bits: expected ceil(dim / 8) bytes a token");
  const double* row_p = row_values(token_p, in, "flip_bits: expected one float64 p per token");
  bool valid = p >= 0 && p <= 1;
  // Looking at a GPU's values would wait for it; its kernel takes those outside for 0 or 1.
  const int64_t looked_at = row_p != nullptr && in.tensor.is_cpu() ? in.rows : 0;
  for (int64_t row = 0; row < looked_at; ++row) valid = valid && row_p[row] >= 0 && row_p[row] <= 1;
  STD_TORCH_CHECK(valid, "flip_bits: expected p within [0, 1]");
  const FlipParams params = {bytes_of(in), mutable_bytes(out), row_p,           p, in.rows, dim,
                             in.stride,    uint64_t(seed),     uint64_t(offset)};
  run_kernel(in.tensor, bits_kernels().flip, VIDEOAR_GPU(launch_flip), params);
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
    row_guidance = row_values(token_guidance, logits, "sample_bits: expected one float64 guidance per token");
    if (sample_seeds.has_value()) {
      const int64_t samples = x.size(0);
      STD_TORCH_CHECK(x.dim() > 1 && sample_seeds->dim() == 1 && sample_seeds->numel() == samples &&
                          sample_seeds->scalar_type() == ScalarType::Long && same_device(*sample_seeds, x),
                      "sample_bits: expected one int64 seed per sample");
      sample_seeds = torch::stable::contiguous(*sample_seeds);
      seeds = static_cast<const int64_t*>(sample_seeds->const_data_ptr());
      sample_rows = samples == 0 ? 0 : logits.rows / samples;
    }
  }
  void into(double guidance, double temperature, int64_t seed, int64_t offset, const Tensor& bits,
            const Tensor& code) const {
    STD_TORCH_CHECK(temperature >= 0, "sample_bits: expected temperature >= 0");
    STD_TORCH_CHECK(guided ? std::isfinite(guidance) : guidance == 1 && row_guidance == nullptr,
                    "sample_bits: expected a finite guidance, and 1 without uncond");
    const SampleParams params = {logits.tensor.const_data_ptr(),
                                 guided ? base.tensor.const_data_ptr() : nullptr,
                                 row_guidance,
                                 mutable_bytes(bits),
                                 code.mutable_data_ptr(),
                                 guidance,
                                 temperature,
                                 logits.rows,
                                 logits.width,
                                 logits.stride,
                                 base.stride,
                                 uint64_t(seed),
                                 uint64_t(offset),
                                 seeds,
                                 sample_rows,
                                 dtype_of(logits.tensor)};
    run_kernel(logits.tensor, bits_kernels().sample, VIDEOAR_GPU(launch_sample), params);
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

template <class Library>
void add_kernels(Library& m) {
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
}

}  // namespace

VIDEOAR_REGISTER(add_kernels)

}  // namespace videoar
