#include "../cuda/pyramid.h"

#include <initializer_list>

#include "gpu.h"
#include "out.h"

namespace videoar {
namespace {

using Scales = std::vector<int64_t>;  // h, w, h, w, ...
using MaybeTensor = std::optional<Tensor>;

constexpr int64_t kLongestSide = 1 << 16;  // far beyond any frame, and no product of two sides overflows

int64_t token_count(const Scales& scales) {
  int64_t tokens = 0;
  for (size_t i = 0; i + 1 < scales.size(); i += 2) tokens += scales[i] * scales[i + 1];
  return tokens;
}

PyramidShape shape_of(const Scales& scales, int64_t batch, int64_t frames, int64_t height, int64_t width, int64_t dim,
                      DType dtype) {
  STD_TORCH_CHECK(!scales.empty() && scales.size() % 2 == 0, "pyramid: expected scales as pairs (h, w)");
  STD_TORCH_CHECK(height <= kLongestSide && width <= kLongestSide && dim >= 1, "pyramid: expected frames and d >= 1");
  for (size_t i = 0; i < scales.size(); ++i) {
    STD_TORCH_CHECK(scales[i] >= 1 && scales[i] <= (i % 2 == 0 ? height : width),
                    "pyramid: expected scales within (H, W)");
  }
  return {scales.data(), int64_t(scales.size() / 2), token_count(scales), batch, frames, height, width, dim, dtype};
}

PyramidShape shape_of(const Scales& scales, const Tensor& z) {
  STD_TORCH_CHECK(z.dim() == 5 && has_kernels(z), "pyramid: expected (B, T, H, W, d) on a device with kernels");
  const auto sizes = z.sizes();
  return shape_of(scales, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], dtype_of(z));
}

Planes planes_of(const Tensor& z) {
  const auto strides = z.strides();
  return {z.const_data_ptr(), strides[0], strides[1], strides[2], strides[3]};
}

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

const uint8_t* bytes_of(const Tensor& t) { return static_cast<const uint8_t*>(t.const_data_ptr()); }

bool has_sizes(const Tensor& t, std::initializer_list<int64_t> expected) {
  const auto sizes = t.sizes();
  return sizes.size() == expected.size() && std::equal(expected.begin(), expected.end(), sizes.begin());
}

void check_result(const Tensor& out, std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like,
                  const char* message) {
  STD_TORCH_CHECK(has_sizes(out, sizes) && out.scalar_type() == dtype && same_device(out, like) && out.is_contiguous(),
                  message);
}

// A value for every frame (and scale), dense and in range, or null. A dense copy takes the place of `table`.
template <class V>
const V* values_of(MaybeTensor& table, const Tensor& like, int64_t count, ScalarType dtype, V least, V most,
                   const char* message) {
  if (!table.has_value()) return nullptr;
  STD_TORCH_CHECK(table->scalar_type() == dtype && table->numel() == count && same_device(*table, like), message);
  table = dense(*table);
  const V* values = static_cast<const V*>(table->const_data_ptr());
  // Looking at a GPU's values would wait for it; its kernels take those outside for the nearest inside.
  if (!like.is_cpu()) return values;
  for (int64_t i = 0; i < count; ++i) STD_TORCH_CHECK(values[i] >= least && values[i] <= most, message);
  return values;
}

struct Encoding {
  Tensor z;
  EncodeParams params;

  Encoding(const Tensor& input, const Scales& scales, double flip_p, MaybeTensor& table, int64_t seed, int64_t offset,
           bool inherit)
      : z(dense_rows(input)) {
    const PyramidShape s = shape_of(scales, z);
    STD_TORCH_CHECK(scales[scales.size() - 2] == s.height && scales.back() == s.width,
                    "pyramid_encode: expected the last scale to be (H, W)");
    const char* message = "pyramid_encode: expected float64 flip probabilities (B, T, K) within [0, 1]";
    STD_TORCH_CHECK(flip_p >= 0 && flip_p <= 1, message);
    const double* p = values_of(table, z, s.batch * s.frames * s.count, ScalarType::Double, 0.0, 1.0, message);
    params = {s, planes_of(z), p, flip_p, uint64_t(seed), uint64_t(offset), inherit, nullptr, nullptr, nullptr};
  }
  void into(const Tensor& labels, const Tensor& inputs, const Tensor& total) {
    params.labels = static_cast<uint8_t*>(labels.mutable_data_ptr());
    params.inputs = inputs.mutable_data_ptr();
    params.total = total.mutable_data_ptr();
    if (!on_gpu(z)) return pyramid_kernels().encode(params);
    const Tensor scratch = empty_dense(z, {cuda::encode_scratch_bytes(params.shape)}, ScalarType::Byte);
    launch(z, VIDEOAR_GPU(launch_pyramid_encode), {params, scratch.mutable_data_ptr()});
  }
};

std::tuple<Tensor, Tensor, Tensor> pyramid_encode(const Tensor& z, Scales scales, double flip_p, MaybeTensor flip_table,
                                                  int64_t seed, int64_t offset, bool inherit) {
  Encoding encoding(z, scales, flip_p, flip_table, seed, offset, inherit);
  const PyramidShape& s = encoding.params.shape;
  Tensor labels = empty_dense(z, {s.batch, s.frames, s.tokens, (s.dim + 7) / 8}, ScalarType::Byte);
  Tensor inputs = empty_dense(z, {s.batch, s.frames, s.tokens, s.dim});
  Tensor total = empty_dense(z, sizes_of(z));
  encoding.into(labels, inputs, total);
  return {total, inputs, labels};
}

void pyramid_encode_out(const Tensor& z, Scales scales, const Tensor& labels, const Tensor& inputs, const Tensor& total,
                        double flip_p, MaybeTensor flip_table, int64_t seed, int64_t offset, bool inherit) {
  Encoding encoding(z, scales, flip_p, flip_table, seed, offset, inherit);
  const PyramidShape& s = encoding.params.shape;
  const char *fit = "pyramid_encode: out does not fit", *apart = "pyramid_encode: out overlaps an input or itself";
  check_result(labels, {s.batch, s.frames, s.tokens, (s.dim + 7) / 8}, ScalarType::Byte, z, fit);
  check_result(inputs, {s.batch, s.frames, s.tokens, s.dim}, z.scalar_type(), z, fit);
  check_result(total, {s.batch, s.frames, s.height, s.width, s.dim}, z.scalar_type(), z, fit);
  check_apart(total, z, true, apart);
  for (const Tensor* out : {&labels, &inputs})
    check_apart(*out, z, false, apart), check_apart(*out, total, false, apart);
  check_apart(labels, inputs, false, apart);
  for (const Tensor* out : {&labels, &inputs, &total}) {
    if (flip_table.has_value()) check_apart(*out, *flip_table, false, apart);
  }
  encoding.into(labels, inputs, total);
}

Tensor pyramid_encode_backward(const Tensor& grad_total, Scales scales) {
  const Tensor dense = dense_rows(grad_total);
  const PyramidShape s = shape_of(scales, dense);
  Tensor grad_z = empty_dense(grad_total, sizes_of(grad_total));
  const EncodeBackwardParams params = {s, planes_of(dense), grad_z.mutable_data_ptr()};
  if (!on_gpu(dense)) {
    pyramid_kernels().encode_backward(params);
    return grad_z;
  }
  const ScalarType wide = s.dtype == DType::f64 ? ScalarType::Double : ScalarType::Float;
  const Tensor tokens = empty_dense(dense, {s.batch, s.frames, s.tokens, s.dim}, wide);
  launch(dense, VIDEOAR_GPU(launch_pyramid_encode_backward), {params, tokens.mutable_data_ptr()});
  return grad_z;
}

// Bits of shape (B, T, N, ceil(dim / 8)) and how many of their scales are wanted.
struct Decoding {
  Tensor bits;
  DecodeParams params;

  Decoding(const Tensor& input, const Scales& scales, int64_t dim, DType dtype, std::optional<int64_t> keep,
           MaybeTensor& table)
      : bits(dense(input)) {
    STD_TORCH_CHECK(
        bits.dim() == 4 && bits.scalar_type() == ScalarType::Byte && has_kernels(bits) && scales.size() >= 2,
        "pyramid_decode: expected uint8 bits (B, T, N, bytes) on a device with kernels, and scales");
    const int64_t height = scales[scales.size() - 2], width = scales.back();
    const PyramidShape s = shape_of(scales, bits.size(0), bits.size(1), height, width, dim, dtype);
    STD_TORCH_CHECK(bits.size(2) == s.tokens && bits.size(3) == dim / 8 + (dim % 8 != 0),
                    "pyramid_decode: expected bits of shape (B, T, N, ceil(dim / 8))");
    const int64_t all = keep.value_or(s.count);
    const char* message = "pyramid_decode: expected int64 keep of shape (B, T) within [0, K]";
    STD_TORCH_CHECK(all >= 0 && all <= s.count, message);
    const int64_t* kept = values_of<int64_t>(table, bits, s.batch * s.frames, ScalarType::Long, 0, s.count, message);
    params = {s, bytes_of(bits), kept, all, nullptr};
  }
  void into(const Tensor& total) {
    params.total = total.mutable_data_ptr();
    run_kernel(bits, pyramid_kernels().decode, VIDEOAR_GPU(launch_pyramid_decode), params);
  }
};

Tensor pyramid_decode(const Tensor& bits, Scales scales, int64_t dim, std::optional<ScalarType> dtype,
                      std::optional<int64_t> keep, MaybeTensor keep_table) {
  const ScalarType wanted = dtype.value_or(ScalarType::Float);
  Decoding decoding(bits, scales, dim, dtype_of(wanted), keep, keep_table);
  const PyramidShape& s = decoding.params.shape;
  Tensor total = empty_dense(bits, {s.batch, s.frames, s.height, s.width, dim}, wanted);
  decoding.into(total);
  return total;
}

void pyramid_decode_out(const Tensor& bits, Scales scales, const Tensor& total, std::optional<int64_t> keep,
                        MaybeTensor keep_table) {
  STD_TORCH_CHECK(total.dim() == 5, "pyramid_decode: expected out of shape (B, T, H, W, dim)");
  Decoding decoding(bits, scales, total.size(4), dtype_of(total), keep, keep_table);
  const PyramidShape& s = decoding.params.shape;
  check_result(total, {s.batch, s.frames, s.height, s.width, s.dim}, total.scalar_type(), bits,
               "pyramid_decode: out does not fit");
  check_apart(total, bits, false, "pyramid_decode: out overlaps the bits");
  if (keep_table.has_value()) check_apart(total, *keep_table, false, "pyramid_decode: out overlaps keep");
  decoding.into(total);
}

void resample_into(const PyramidShape& s, const Tensor& x, const Tensor& out) {
  const ResampleParams params = {s, planes_of(x), out.mutable_data_ptr()};
  run_kernel(x, pyramid_kernels().resample, VIDEOAR_GPU(launch_pyramid_resample), params);
}

Tensor pyramid_resample(const Tensor& x, Scales scales) {
  const Tensor rows = dense_rows(x);
  const PyramidShape s = shape_of(scales, rows);
  Tensor out = empty_dense(x, {s.batch, s.frames, s.tokens, s.dim});
  resample_into(s, rows, out);
  return out;
}

void pyramid_resample_out(const Tensor& x, Scales scales, const Tensor& out) {
  const Tensor rows = dense_rows(x);
  const PyramidShape s = shape_of(scales, rows);
  check_result(out, {s.batch, s.frames, s.tokens, s.dim}, x.scalar_type(), x, "pyramid_resample: out does not fit");
  check_apart(out, x, false, "pyramid_resample: out overlaps x");
  resample_into(s, rows, out);
}

Tensor pyramid_resample_backward(const Tensor& grad, Scales scales, int64_t height, int64_t width) {
  const Tensor tokens = dense(grad);
  STD_TORCH_CHECK(tokens.dim() == 4 && has_kernels(tokens),
                  "pyramid_resample: expected gradient of shape (B, T, N, d)");
  const PyramidShape s =
      shape_of(scales, tokens.size(0), tokens.size(1), height, width, tokens.size(3), dtype_of(tokens));
  STD_TORCH_CHECK(tokens.size(2) == s.tokens, "pyramid_resample: expected gradient of shape (B, T, N, d)");
  Tensor grad_x = empty_dense(grad, {s.batch, s.frames, height, width, s.dim});
  const ResampleBackwardParams params = {s, tokens.const_data_ptr(), grad_x.mutable_data_ptr()};
  run_kernel(tokens, pyramid_kernels().resample_backward, VIDEOAR_GPU(launch_pyramid_resample_backward), params);
  return grad_x;
}

struct Stepping {
  Tensor total, bits;
  StepParams params;
  int64_t following;  // tokens of the next scale, 0 if there is none

  Stepping(const Tensor& sum, const Tensor& packed, const Scales& scales)
      : total(dense_rows(sum)), bits(dense(packed)) {
    STD_TORCH_CHECK(total.dim() == 4 && has_kernels(total), "pyramid_step: expected total of shape (B, H, W, d)");
    const auto sizes = total.sizes(), strides = total.strides();
    const PyramidShape s = shape_of(scales, sizes[0], 1, sizes[1], sizes[2], sizes[3], dtype_of(total));
    STD_TORCH_CHECK(s.count <= 2, "pyramid_step: expected one scale, or two");
    STD_TORCH_CHECK(has_sizes(bits, {s.batch, scales[0] * scales[1], (s.dim + 7) / 8}) &&
                        bits.scalar_type() == ScalarType::Byte && same_device(bits, total),
                    "pyramid_step: expected uint8 bits of shape (B, h * w, ceil(d / 8))");
    following = s.count == 2 ? scales[2] * scales[3] : 0;
    const Planes planes{total.const_data_ptr(), strides[0], 0, strides[1], strides[2]};
    params = {s, planes, bytes_of(bits), nullptr, nullptr};
  }
  void into(const Tensor& total_out, const Tensor* input) {
    params.total_out = total_out.mutable_data_ptr();
    if (following > 0) params.input = input->mutable_data_ptr();
    run_kernel(total, pyramid_kernels().step, VIDEOAR_GPU(launch_pyramid_step), params);
  }
};

std::tuple<Tensor, Tensor> pyramid_step(const Tensor& total, const Tensor& bits, Scales scales) {
  Stepping step(total, bits, scales);
  Tensor total_out = empty_dense(total, sizes_of(total));
  Tensor input = empty_dense(total, {step.params.shape.batch, step.following, step.params.shape.dim});
  step.into(total_out, &input);
  return {total_out, input};
}

void pyramid_step_out(const Tensor& total, const Tensor& bits, Scales scales, const Tensor& total_out,
                      MaybeTensor input) {
  Stepping step(total, bits, scales);
  const PyramidShape& s = step.params.shape;
  const char *fit = "pyramid_step: out does not fit", *apart = "pyramid_step: out overlaps an input or itself";
  check_result(total_out, {s.batch, s.height, s.width, s.dim}, total.scalar_type(), total, fit);
  check_apart(total_out, total, true, apart);
  check_apart(total_out, bits, false, apart);
  STD_TORCH_CHECK(input.has_value() == (step.following > 0), fit);
  if (input.has_value()) {
    check_result(*input, {s.batch, step.following, s.dim}, total.scalar_type(), total, fit);
    for (const Tensor* other : {&total, &bits, &total_out}) check_apart(*input, *other, false, apart);
  }
  step.into(total_out, input.has_value() ? &*input : nullptr);
}

template <class Library>
void add_kernels(Library& m) {
  m.impl("pyramid_encode", TORCH_BOX(&pyramid_encode));
  m.impl("pyramid_encode_out", TORCH_BOX(&pyramid_encode_out));
  m.impl("pyramid_encode_backward", TORCH_BOX(&pyramid_encode_backward));
  m.impl("pyramid_decode", TORCH_BOX(&pyramid_decode));
  m.impl("pyramid_decode_out", TORCH_BOX(&pyramid_decode_out));
  m.impl("pyramid_resample", TORCH_BOX(&pyramid_resample));
  m.impl("pyramid_resample_out", TORCH_BOX(&pyramid_resample_out));
  m.impl("pyramid_resample_backward", TORCH_BOX(&pyramid_resample_backward));
  m.impl("pyramid_step", TORCH_BOX(&pyramid_step));
  m.impl("pyramid_step_out", TORCH_BOX(&pyramid_step_out));
}

}  // namespace

VIDEOAR_REGISTER(add_kernels)

}  // namespace videoar
