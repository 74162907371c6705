#include "../cpu/pyramid.h"

#include "tensors.h"

namespace videoar {
namespace {

using Scales = std::vector<int64_t>;  // h, w, h, w, ...

int64_t token_count(const Scales& scales) {
  int64_t tokens = 0;
  for (size_t i = 0; i + 1 < scales.size(); i += 2) tokens += scales[i] * scales[i + 1];
  return tokens;
}

PyramidShape shape_of(const Scales& scales, int64_t batch, int64_t frames, int64_t height, int64_t width, int64_t dim,
                      DType dtype) {
  STD_TORCH_CHECK(!scales.empty() && scales.size() % 2 == 0, "pyramid: expected scales as pairs (h, w)");
  for (size_t i = 0; i < scales.size(); ++i) {
    STD_TORCH_CHECK(scales[i] >= 1 && scales[i] <= (i % 2 == 0 ? height : width),
                    "pyramid: expected scales within (H, W)");
  }
  return {scales.data(), int64_t(scales.size() / 2), token_count(scales), batch, frames, height, width, dim, dtype};
}

PyramidShape shape_of(const Scales& scales, const Tensor& z) {
  STD_TORCH_CHECK(z.dim() == 5, "pyramid: expected (B, T, H, W, d)");
  return shape_of(scales, z.size(0), z.size(1), z.size(2), z.size(3), z.size(4), dtype_of(z));
}

Planes planes_of(const Tensor& z) { return {z.const_data_ptr(), z.stride(0), z.stride(1), z.stride(2), z.stride(3)}; }

std::tuple<Tensor, Tensor, Tensor> pyramid_encode(const Tensor& z, Scales scales, std::optional<Tensor> flip_p,
                                                  int64_t seed, int64_t offset, bool inherit) {
  const Tensor dense = dense_rows(z);
  const PyramidShape s = shape_of(scales, dense);
  const double* p = nullptr;
  if (flip_p.has_value()) {
    STD_TORCH_CHECK(flip_p->scalar_type() == ScalarType::Double && flip_p->numel() == s.batch * s.frames * s.count,
                    "pyramid_encode: expected float64 flip_p of shape (B, T, K)");
    flip_p = torch::stable::contiguous(*flip_p);
    p = static_cast<const double*>(flip_p->const_data_ptr());
  }
  Tensor labels = empty_dense(z, {s.batch, s.frames, s.tokens, (s.dim + 7) / 8}, ScalarType::Byte);
  Tensor inputs = empty_dense(z, {s.batch, s.frames, s.tokens, s.dim});
  Tensor total = empty_dense(z, sizes_of(z));
  pyramid_kernels().encode({s, planes_of(dense), p, uint64_t(seed), uint64_t(offset), inherit,
                            static_cast<uint8_t*>(labels.mutable_data_ptr()), inputs.mutable_data_ptr(),
                            total.mutable_data_ptr()});
  return {total, inputs, labels};
}

Tensor pyramid_encode_backward(const Tensor& grad_total, Scales scales) {
  const Tensor dense = dense_rows(grad_total);
  const PyramidShape s = shape_of(scales, dense);
  Tensor grad_z = empty_dense(grad_total, sizes_of(grad_total));
  pyramid_kernels().encode_backward({s, planes_of(dense), grad_z.mutable_data_ptr()});
  return grad_z;
}

Tensor pyramid_decode(const Tensor& bits, Scales scales, int64_t dim, std::optional<Tensor> keep, ScalarType dtype) {
  const Tensor dense = torch::stable::contiguous(bits);
  const int64_t height = scales.at(scales.size() - 2), width = scales.back();
  STD_TORCH_CHECK(dense.dim() == 4 && dense.scalar_type() == ScalarType::Byte && dense.size(2) == token_count(scales) &&
                      dense.size(3) == (dim + 7) / 8,
                  "pyramid_decode: expected uint8 bits of shape (B, T, N, ceil(dim / 8))");
  Tensor total = empty_dense(bits, {dense.size(0), dense.size(1), height, width, dim}, dtype);
  const PyramidShape s = shape_of(scales, total);
  const int64_t* kept = nullptr;
  if (keep.has_value()) {
    STD_TORCH_CHECK(keep->scalar_type() == ScalarType::Long && keep->numel() == s.batch * s.frames,
                    "pyramid_decode: expected int64 keep of shape (B, T)");
    keep = torch::stable::contiguous(*keep);
    kept = static_cast<const int64_t*>(keep->const_data_ptr());
  }
  pyramid_kernels().decode({s, static_cast<const uint8_t*>(dense.const_data_ptr()), kept, total.mutable_data_ptr()});
  return total;
}

Tensor pyramid_resample(const Tensor& x, Scales scales) {
  const Tensor dense = dense_rows(x);
  const PyramidShape s = shape_of(scales, dense);
  Tensor out = empty_dense(x, {s.batch, s.frames, s.tokens, s.dim});
  pyramid_kernels().resample({s, planes_of(dense), out.mutable_data_ptr()});
  return out;
}

Tensor pyramid_resample_backward(const Tensor& grad, Scales scales, int64_t height, int64_t width) {
  const Tensor dense = torch::stable::contiguous(grad);
  STD_TORCH_CHECK(dense.dim() == 4 && dense.size(2) == token_count(scales),
                  "pyramid_resample: expected gradient of shape (B, T, N, d)");
  Tensor grad_x = empty_dense(grad, {dense.size(0), dense.size(1), height, width, dense.size(3)});
  const PyramidShape s = shape_of(scales, grad_x);
  pyramid_kernels().resample_backward({s, dense.const_data_ptr(), grad_x.mutable_data_ptr()});
  return grad_x;
}

std::tuple<Tensor, Tensor> pyramid_step(const Tensor& total, const Tensor& bits, Scales scales) {
  const Tensor dense = dense_rows(total), packed = torch::stable::contiguous(bits);
  STD_TORCH_CHECK(dense.dim() == 4, "pyramid_step: expected total of shape (B, H, W, d)");
  const PyramidShape s =
      shape_of(scales, dense.size(0), 1, dense.size(1), dense.size(2), dense.size(3), dtype_of(dense));
  STD_TORCH_CHECK(packed.dim() == 3 && packed.scalar_type() == ScalarType::Byte && packed.size(0) == s.batch &&
                      packed.size(1) == scales[0] * scales[1] && packed.size(2) == (s.dim + 7) / 8,
                  "pyramid_step: expected uint8 bits of shape (B, h * w, ceil(d / 8))");
  const bool next = s.count == 2;
  Tensor total_out = empty_dense(total, sizes_of(total));
  Tensor input = empty_dense(total, {s.batch, next ? scales[2] * scales[3] : 0, s.dim});
  const Planes planes{dense.const_data_ptr(), dense.stride(0), 0, dense.stride(1), dense.stride(2)};
  pyramid_kernels().step({s, planes, static_cast<const uint8_t*>(packed.const_data_ptr()), total_out.mutable_data_ptr(),
                          next ? input.mutable_data_ptr() : nullptr});
  return {total_out, input};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) {
  m.impl("pyramid_encode", TORCH_BOX(&pyramid_encode));
  m.impl("pyramid_encode_backward", TORCH_BOX(&pyramid_encode_backward));
  m.impl("pyramid_decode", TORCH_BOX(&pyramid_decode));
  m.impl("pyramid_resample", TORCH_BOX(&pyramid_resample));
  m.impl("pyramid_resample_backward", TORCH_BOX(&pyramid_resample_backward));
  m.impl("pyramid_step", TORCH_BOX(&pyramid_step));
}

}  // namespace videoar
