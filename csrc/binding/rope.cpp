#include "gpu.h"
#include "out.h"
#include "positions.h"

namespace videoar {
namespace {

using MaybeTensor = std::optional<Tensor>;

RopeSizes rope_sizes(const Tensor& x) {
  const auto sizes = x.sizes();
  STD_TORCH_CHECK(sizes.size() == 4 && has_kernels(x),
                  "rope: expected x (batch, heads, length, dim) on a device with kernels");
  return {sizes[0], sizes[1], sizes[2], sizes[3]};
}

RopeStrides rope_strides(const Tensor& x) {
  const auto strides = x.strides();
  return {strides[0], strides[1], strides[2]};
}

// A fresh dense tensor of sizes `s` and x's dtype.
Tensor empty_heads(const Tensor& x, const RopeSizes& s) {
  if (!x.is_cpu()) return empty_dense(x, {s.batch, s.heads, s.length, s.dim});
  const auto or_one = [](int64_t size) { return size > 1 ? size : 1; };
  const int64_t sizes[] = {s.batch, s.heads, s.length, s.dim};
  const int64_t token = or_one(s.dim), head = token * or_one(s.length), sample = head * or_one(s.heads);
  const int64_t strides[] = {sample, head, token, 1};
  return empty_strided(sizes, strides, 4, dtype_code(x));
}

bool is_empty(const RopeSizes& s) { return s.batch * s.heads * s.length * s.dim == 0; }

// The norm of heads, where there is one.
struct HeadNorm {
  const void* weight;
  double eps;
  bool full_width;
};

void rotate_on_gpu(const Tensor& x, const Tensor& out, const RopeSizes& size, const HeadNorm& norm,
                   const Tensor& positions, const RopeOptions& options) {
  const cuda::HeadsParams params = {x.const_data_ptr(),
                                    out.mutable_data_ptr(),
                                    norm.weight,
                                    size,
                                    rope_strides(x),
                                    rope_strides(out),
                                    rotation_of(positions, size, options),
                                    norm.eps,
                                    norm.full_width,
                                    dtype_of(x)};
  launch(x, VIDEOAR_GPU(launch_heads), params);
}

void rotate_into(const Tensor& x, const Tensor& out, const Tensor& positions, const RopeOptions& options) {
  const RopeSizes size = rope_sizes(x);
  const DType dtype = dtype_of(x);
  const Tensor dense = dense_positions(positions, size, x);
  if (on_gpu(x)) return rotate_on_gpu(x, out, size, {}, dense, options);
  with_table(dense, size, dtype, options, rope_spreads(dtype, options.interleaved), [&](const RopeTableView& table) {
    if (is_empty(size)) return;
    rope_kernels().rope({x.const_data_ptr(), out.mutable_data_ptr(), size, rope_strides(x), rope_strides(out), table,
                         options.interleaved, dtype});
  });
}

Tensor rope_3d(const Tensor& x, const Tensor& positions, const MaybeDims& dims, double theta, bool interleaved,
               bool inverse) {
  const RopeSizes size = rope_sizes(x);
  const RopeOptions options(dims, size.dim, theta, interleaved, inverse);
  Tensor out = empty_heads(x, size);
  rotate_into(dense_rows(x), out, positions, options);
  return out;
}

void rope_3d_out(const Tensor& x, const Tensor& positions, const MaybeDims& dims, double theta, bool interleaved,
                 bool inverse, const Tensor& out) {
  const RopeOptions options(dims, rope_sizes(x).dim, theta, interleaved, inverse);
  check_output(out, x, "rope_3d: out");
  check_apart(out, x, true, "rope_3d: out overlaps x");
  check_apart(out, positions, false, "rope_3d: out overlaps positions");
  rotate_into(dense_rows(x), out, positions, options);
}

void rope_3d_(Tensor x, const Tensor& positions, const MaybeDims& dims, double theta, bool interleaved, bool inverse) {
  const RopeOptions options(dims, rope_sizes(x).dim, theta, interleaved, inverse);
  check_output(x, x, "rope_3d_: x");
  check_apart(x, positions, false, "rope_3d_: x overlaps positions");
  rotate_into(x, x, positions, options);
}

template <class A>
Tensor ones(const Tensor& x, int64_t width, ScalarType type) {
  if (!x.is_cpu()) {
    Tensor result = empty_dense(x, {width}, type);
    return torch::stable::fill_(result, 1);
  }
  const int64_t stride = 1;
  Tensor result = empty_strided(&width, &stride, 1, int32_t(type));
  std::fill_n((A*)result.mutable_data_ptr(), width, A(1));
  return result;
}

// The weight, dense and in the type that is computed in; a missing one is of ones.
Tensor norm_weight(const Tensor& x, const RopeSizes& size, const MaybeTensor& weight, bool full_width) {
  const bool wide = dtype_of(x) == DType::f64;
  const ScalarType computed = wide ? ScalarType::Double : ScalarType::Float;
  const int64_t width = (full_width ? size.heads : 1) * size.dim;
  if (!weight) return wide ? ones<double>(x, width, computed) : ones<float>(x, width, computed);
  const ScalarType type = weight->scalar_type();
  const auto sizes = weight->sizes();
  STD_TORCH_CHECK(same_device(*weight, x) && sizes.size() == 1 && sizes[0] == width &&
                      (type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::BFloat16 ||
                       type == ScalarType::Half),
                  "qk_norm_rope: a weight's shape, dtype or device");
  const Tensor converted = type == computed ? *weight : torch::stable::to(*weight, computed);
  return converted.is_contiguous() ? converted : torch::stable::contiguous(converted);
}

void check_norm(const Tensor& q, const RopeSizes& a, const Tensor& k, const RopeSizes& b, double eps) {
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && same_device(k, q) && a.batch == b.batch &&
                      a.length == b.length && a.dim == b.dim,
                  "qk_norm_rope: k's shape, dtype or device");
  STD_TORCH_CHECK(eps >= 0 && std::isfinite(eps), "qk_norm_rope: expected a finite eps >= 0");
}

void norm_rotate_into(const Tensor (&inputs)[2], const Tensor (&outs)[2], const MaybeTensor& q_weight,
                      const MaybeTensor& k_weight, const Tensor& positions, double eps, const RopeOptions& options,
                      bool full_width) {
  const DType dtype = dtype_of(inputs[0]);
  const RopeSizes sizes[2] = {rope_sizes(inputs[0]), rope_sizes(inputs[1])};
  const Tensor dense = dense_positions(positions, sizes[0], inputs[0]);
  const Tensor weights[2] = {norm_weight(inputs[0], sizes[0], q_weight, full_width),
                             norm_weight(inputs[1], sizes[1], k_weight, full_width)};
  if (on_gpu(inputs[0])) {
    for (int i = 0; i < 2; ++i) {
      const HeadNorm norm = {weights[i].const_data_ptr(), eps, full_width};
      rotate_on_gpu(inputs[i], outs[i], sizes[i], norm, dense, options);
    }
    return;
  }
  with_table(dense, sizes[0], dtype, options, rope_spreads(dtype, options.interleaved),
             [&](const RopeTableView& table) {
               for (int i = 0; i < 2; ++i) {
                 const Tensor& x = inputs[i];
                 const RopeSizes& size = sizes[i];
                 if (is_empty(size)) continue;
                 const RopeParams rope = {x.const_data_ptr(),
                                          outs[i].mutable_data_ptr(),
                                          size,
                                          rope_strides(x),
                                          rope_strides(outs[i]),
                                          table,
                                          options.interleaved,
                                          dtype};
                 rope_kernels().norm_rope({rope, weights[i].const_data_ptr(), eps, full_width});
               }
             });
}

std::tuple<Tensor, Tensor> qk_norm_rope(const Tensor& q, const Tensor& k, const MaybeTensor& q_weight,
                                        const MaybeTensor& k_weight, const Tensor& positions, double eps,
                                        const MaybeDims& dims, double theta, bool interleaved, bool full_width) {
  const RopeSizes q_size = rope_sizes(q), k_size = rope_sizes(k);
  const RopeOptions options(dims, q_size.dim, theta, interleaved, false);
  check_norm(q, q_size, k, k_size, eps);
  const Tensor outs[2] = {empty_heads(q, q_size), empty_heads(k, k_size)};
  norm_rotate_into({dense_rows(q), dense_rows(k)}, outs, q_weight, k_weight, positions, eps, options, full_width);
  return {outs[0], outs[1]};
}

void qk_norm_rope_out(const Tensor& q, const Tensor& k, const MaybeTensor& q_weight, const MaybeTensor& k_weight,
                      const Tensor& positions, double eps, const MaybeDims& dims, double theta, bool interleaved,
                      bool full_width, const Tensor& q_out, const Tensor& k_out) {
  const RopeSizes q_size = rope_sizes(q), k_size = rope_sizes(k);
  const RopeOptions options(dims, q_size.dim, theta, interleaved, false);
  check_norm(q, q_size, k, k_size, eps);
  check_output(q_out, q, "qk_norm_rope: q_out");
  check_output(k_out, k, "qk_norm_rope: k_out");
  check_apart(q_out, q, true, "qk_norm_rope: q_out overlaps q");
  check_apart(k_out, k, true, "qk_norm_rope: k_out overlaps k");
  const auto apart = [](const Tensor& a, const Tensor& b) {
    check_apart(a, b, false, "qk_norm_rope: an output overlaps another tensor");
  };
  apart(q_out, k_out), apart(q_out, k), apart(k_out, q);
  for (const Tensor* out : {&q_out, &k_out}) {
    apart(*out, positions);
    if (q_weight) apart(*out, *q_weight);
    if (k_weight) apart(*out, *k_weight);
  }
  norm_rotate_into({dense_rows(q), dense_rows(k)}, {q_out, k_out}, q_weight, k_weight, positions, eps, options,
                   full_width);
}

// What the gradient of queries or of keys is made of.
struct HeadsBackward {
  Tensor grad_out, x, weight, grad_x, grad_weight;
  RopeSizes size;
  double eps;
  bool full_width;

  HeadsBackward(const Tensor& grad, const Tensor& heads, const Tensor& w, double eps, bool full_width)
      : grad_out(dense_rows(grad)),
        x(dense_rows(heads)),
        weight(norm_weight(heads, rope_sizes(heads), w, full_width)),
        grad_x(empty_dense(heads, sizes_of(heads))),
        grad_weight(empty_dense(w, sizes_of(w))),
        size(rope_sizes(heads)),
        eps(eps),
        full_width(full_width) {}

  void on_cpu(const RopeTableView& table, bool interleaved) const {
    const Tensor partial = empty_dense(weight, {rope_chunks(size.batch, size.length), weight.numel()});
    rope_kernels().norm_rope_backward({gradients(partial), table, interleaved});
  }

  void on_gpu(const cuda::Rotation& rotation) const {
    const Tensor partial = empty_dense(weight, {cuda::heads_chunks(size), weight.numel()});
    launch(x, VIDEOAR_GPU(launch_heads_backward), {gradients(partial), rotation});
  }

 private:
  HeadsGradients gradients(const Tensor& partial) const {
    return {grad_out.const_data_ptr(),
            x.const_data_ptr(),
            weight.const_data_ptr(),
            grad_x.mutable_data_ptr(),
            grad_weight.mutable_data_ptr(),
            partial.mutable_data_ptr(),
            size,
            rope_strides(grad_out),
            rope_strides(x),
            rope_strides(grad_x),
            eps,
            full_width,
            dtype_of(x)};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> qk_norm_rope_backward(const Tensor& grad_q, const Tensor& grad_k,
                                                                 const Tensor& q, const Tensor& k,
                                                                 const Tensor& q_weight, const Tensor& k_weight,
                                                                 const Tensor& positions, double eps,
                                                                 const MaybeDims& dims, double theta, bool interleaved,
                                                                 bool full_width) {
  const RopeSizes q_size = rope_sizes(q), k_size = rope_sizes(k);
  const RopeOptions options(dims, q_size.dim, theta, interleaved, true);
  check_norm(q, q_size, k, k_size, eps);
  check_like(grad_q, q, "qk_norm_rope: grad_q");
  check_like(grad_k, k, "qk_norm_rope: grad_k");
  const HeadsBackward both[2] = {{grad_q, q, q_weight, eps, full_width}, {grad_k, k, k_weight, eps, full_width}};
  const Tensor dense = dense_positions(positions, q_size, q);
  if (on_gpu(q)) {
    const cuda::Rotation rotation = rotation_of(dense, q_size, options);
    for (const HeadsBackward& one : both) one.on_gpu(rotation);
  } else {
    with_table(dense, q_size, dtype_of(q), options, interleaved, [&](const RopeTableView& table) {
      for (const HeadsBackward& one : both) one.on_cpu(table, interleaved);
    });
  }
  return {both[0].grad_x, both[1].grad_x, both[0].grad_weight, both[1].grad_weight};
}

template <class Library>
void add_kernels(Library& m) {
  m.impl("rope_3d", TORCH_BOX(&rope_3d));
  m.impl("rope_3d_", TORCH_BOX(&rope_3d_));
  m.impl("rope_3d_out", TORCH_BOX(&rope_3d_out));
  m.impl("qk_norm_rope", TORCH_BOX(&qk_norm_rope));
  m.impl("qk_norm_rope_out", TORCH_BOX(&qk_norm_rope_out));
  m.impl("qk_norm_rope_backward", TORCH_BOX(&qk_norm_rope_backward));
}

}  // namespace

VIDEOAR_REGISTER(add_kernels)

}  // namespace videoar
