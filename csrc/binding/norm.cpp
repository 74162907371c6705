#include "../cuda/norm.h"

#include <cmath>

#include "gpu.h"
#include "out.h"

namespace videoar {
namespace {

void swiglu_into(const Tensor& gate, const Tensor& up, const Tensor& out) {
  const DType dtype = dtype_of(gate);
  const Rows g(gate), u(up), o(out);
  const SwigluParams params = {g.tensor.const_data_ptr(),
                               u.tensor.const_data_ptr(),
                               o.tensor.mutable_data_ptr(),
                               g.rows,
                               g.width,
                               g.stride,
                               u.stride,
                               o.stride,
                               dtype};
  run_kernel(gate, norm_kernels().swiglu, VIDEOAR_GPU(launch_swiglu), params);
  // Rows that do not collapse were written elsewhere.
  if (o.tensor.const_data_ptr() != out.const_data_ptr()) {
    Tensor target = out;
    torch::stable::copy_(target, o.tensor);
  }
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  STD_TORCH_CHECK(has_kernels(gate) && gate.dim() > 0, "swiglu: expected rows on a device with kernels");
  check_like(up, gate, "swiglu: up");
  Tensor out = empty_dense(gate, sizes_of(gate));
  swiglu_into(gate, up, out);
  return out;
}

void swiglu_out(const Tensor& gate, const Tensor& up, const Tensor& out) {
  STD_TORCH_CHECK(has_kernels(gate) && gate.dim() > 0, "swiglu: expected rows on a device with kernels");
  check_like(up, gate, "swiglu: up");
  check_output(out, gate, "swiglu: out");
  check_apart(out, gate, true, "swiglu: out overlaps gate"), check_apart(out, up, true, "swiglu: out overlaps up");
  swiglu_into(gate, up, out);
}

std::tuple<Tensor, Tensor> swiglu_backward(const Tensor& grad_out, const Tensor& gate, const Tensor& up) {
  const Rows d(grad_out), g(gate), u(up);
  Tensor grad_gate = empty_dense(gate, sizes_of(gate));
  Tensor grad_up = empty_dense(up, sizes_of(up));
  const SwigluBackwardParams params = {d.tensor.const_data_ptr(),
                                       g.tensor.const_data_ptr(),
                                       u.tensor.const_data_ptr(),
                                       grad_gate.mutable_data_ptr(),
                                       grad_up.mutable_data_ptr(),
                                       g.rows,
                                       g.width,
                                       d.stride,
                                       g.stride,
                                       u.stride,
                                       dtype_of(gate)};
  run_kernel(gate, norm_kernels().swiglu_backward, VIDEOAR_GPU(launch_swiglu_backward), params);
  return {grad_gate, grad_up};
}

using MaybeTensor = std::optional<Tensor>;

// A tensor's description, asked for once: each question is a call across the stable ABI.
struct Described {
  const void* data;
  const int64_t *sizes, *strides;
  int64_t dims;
  int32_t dtype;
  int32_t device;  // the GPU's number; kCpu, or kElsewhere where there are no kernels

  static constexpr int32_t kCpu = -1, kElsewhere = -2;

  explicit Described(const Tensor& t)
      : data(t.const_data_ptr()),
        sizes(t.sizes().data()),
        strides(t.strides().data()),
        dims(t.dim()),
        dtype(dtype_code(t)),
        device(t.is_cpu()       ? kCpu
               : has_kernels(t) ? t.get_device_index()
                                : kElsewhere) {}

  int64_t width() const { return sizes[dims - 1]; }
  bool dense_rows() const { return dims == 0 || width() <= 1 || strides[dims - 1] == 1; }
  bool resembles(const Described& other) const {
    return dims == other.dims && dtype == other.dtype && device == other.device &&
           std::equal(sizes, sizes + dims, other.sizes);
  }
};

DType dtype_of(const Described& t) {
  if (t.dtype == aoti_torch_dtype_float32()) return DType::f32;
  if (t.dtype == aoti_torch_dtype_bfloat16()) return DType::bf16;
  if (t.dtype == aoti_torch_dtype_float16()) return DType::f16;
  STD_TORCH_CHECK(t.dtype == aoti_torch_dtype_float64(), "norm: expected float32, float64, bfloat16 or float16");
  return DType::f64;
}

// What a kernel reads: the tensor itself, or a copy with dense rows in the wanted dtype, which lives as long as this.
class Operand {
 public:
  Operand(const Tensor& t, const Described& described) : seen(described) {
    if (!seen.dense_rows()) use(torch::stable::contiguous(t));
  }
  explicit Operand(const Tensor& t) : Operand(t, Described(t)) {}
  Operand(const Tensor& t, const Described& described, int32_t dtype) : seen(described) {
    if (seen.dtype != dtype) {
      dtype_of(seen);
      const bool f64 = dtype == aoti_torch_dtype_float64(), f32 = dtype == aoti_torch_dtype_float32();
      STD_TORCH_CHECK(f64 || f32, "norm: modulations are converted to float32 or float64 alone");
      use(torch::stable::contiguous(torch::stable::to(t, f64 ? ScalarType::Double : ScalarType::Float)));
    } else if (!seen.dense_rows()) {
      use(torch::stable::contiguous(t));
    }
  }

  Described seen;

 private:
  void use(Tensor t) {
    copy_ = t;
    seen = Described(*copy_);
  }
  MaybeTensor copy_;
};

TokenRows rows_of(const Described& t) { return {t.data, t.strides[0], t.strides[1]}; }

// x's sizes, once it is known to be (batch, length, width).
NormSizes norm_sizes(const Described& x) {
  STD_TORCH_CHECK(x.dims == 3 && x.device != Described::kElsewhere,
                  "norm: expected (batch, length, width) on a device with kernels");
  return {x.sizes[0], x.sizes[1], x.sizes[2]};
}

OutputRows output_rows(const Tensor& t) { return {t.mutable_data_ptr(), t.stride(0), t.stride(1)}; }

OutputRows dense_output(const Tensor& t, const NormSizes& size) {
  return {t.mutable_data_ptr(), size.length * size.width, size.width};
}

bool is_empty(const NormSizes& size) { return size.batch == 0 || size.length == 0 || size.width == 0; }

Tensor empty_tokens(const Tensor& like, const NormSizes& size, int32_t dtype) {
  if (!like.is_cpu()) return empty_dense(like, {size.batch, size.length, size.width}, ScalarType(dtype));
  const int64_t sizes[3] = {size.batch, size.length, size.width}, row = size.width > 1 ? size.width : 1;
  const int64_t strides[3] = {(size.length > 1 ? size.length : 1) * row, row, 1};
  return empty_strided(sizes, strides, 3, dtype);
}

// The type that kernels compute in.
int32_t wide_of(const Described& x) {
  const int32_t f64 = aoti_torch_dtype_float64();
  return x.dtype == f64 ? f64 : aoti_torch_dtype_float32();
}

// The modulation (width) or (batch or 1, frames, width) of x; frames divides the length.
Modulation modulation_of(const Described& m, const NormSizes& x, int32_t device) {
  STD_TORCH_CHECK(m.device == device && (m.dims == 1 || m.dims == 3) && m.width() == x.width,
                  "norm: modulation's shape or device");
  if (m.dims == 1) return {m.data, 0, 0, x.length == 0 ? 1 : x.length};
  const int64_t frames = m.sizes[1];
  STD_TORCH_CHECK(m.sizes[0] == x.batch || m.sizes[0] == 1, "norm: modulation's batch");
  STD_TORCH_CHECK(frames > 0 && x.length % frames == 0, "norm: frames do not divide the length");
  return {m.data, m.sizes[0] == 1 ? 0 : m.strides[0], m.strides[1], x.length == 0 ? 1 : x.length / frames};
}

// The modulations a and b of x, in x's dtype where both have it, else in the one that is computed in.
class Modulations {
 public:
  Modulations(const Described& x, const NormSizes& size, const Tensor* a, const Tensor* b = nullptr)
      : found_{describe(a), describe(b)} {
    const auto own = [&](const std::optional<Described>& m) { return !m || m->dtype == x.dtype; };
    dtype = own(found_[0]) && own(found_[1]) ? x.dtype : wide_of(x);
    const Tensor* given[2] = {a, b};
    for (int i = 0; i < 2; ++i) {
      if (found_[i]) rows[i] = modulation_of(operands_[i].emplace(*given[i], *found_[i], dtype).seen, size, x.device);
    }
  }

  // Whether both came as they are read, a row for every sample.
  bool expanded(const NormSizes& size) const {
    const auto fits = [&](const std::optional<Described>& m) {
      return !m || (m->dtype == dtype && m->dims == 3 && m->sizes[0] == size.batch);
    };
    return fits(found_[0]) && fits(found_[1]);
  }

  int32_t dtype;
  Modulation rows[2] = {{nullptr, 0, 0, 1}, {nullptr, 0, 0, 1}};

 private:
  static std::optional<Described> describe(const Tensor* t) {
    return t == nullptr ? std::nullopt : std::optional<Described>(*t);
  }
  std::optional<Described> found_[2];
  std::optional<Operand> operands_[2];
};

const Tensor* given(const MaybeTensor& t) { return t ? &*t : nullptr; }

// Everything that both passes of adaln_norm read, checked.
struct AdalnArguments {
  Operand x;
  NormSizes size;
  Modulations modulations;
  std::optional<Operand> weight;

  AdalnArguments(const Tensor& input, const Described& seen, const MaybeTensor& scale, const MaybeTensor& shift,
                 const MaybeTensor& given_weight)
      : x(input, seen), size(norm_sizes(seen)), modulations(seen, size, given(scale), given(shift)) {
    if (!given_weight) return;
    const Described w(*given_weight);
    STD_TORCH_CHECK(w.device == seen.device && w.dims == 1 && w.width() == size.width,
                    "norm: weight's shape or device");
    weight.emplace(*given_weight, w, wide_of(seen));
  }

  AdalnParams params(double eps, bool layer, OutputRows out) const {
    STD_TORCH_CHECK(eps >= 0 && std::isfinite(eps), "adaln_norm: eps is negative or not finite");
    return {rows_of(x.seen),
            out,
            weight ? weight->seen.data : nullptr,
            modulations.rows[0],
            modulations.rows[1],
            size,
            eps,
            layer,
            modulations.dtype == wide_of(x.seen),
            dtype_of(x.seen)};
  }
};

void adaln_norm_into(const Tensor& x, const Described& seen, const MaybeTensor& scale, const MaybeTensor& shift,
                     const MaybeTensor& weight, double eps, bool layer, OutputRows out) {
  const AdalnArguments arguments(x, seen, scale, shift, weight);
  const AdalnParams params = arguments.params(eps, layer, out);
  if (!is_empty(params.size)) run_kernel(x, norm_kernels().adaln_norm, VIDEOAR_GPU(launch_adaln_norm), params);
}

Tensor adaln_norm(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& weight,
                  double eps, bool layer) {
  const Described seen(x);
  const NormSizes size = norm_sizes(seen);
  Tensor out = empty_tokens(x, size, seen.dtype);
  adaln_norm_into(x, seen, scale, shift, weight, eps, layer, dense_output(out, size));
  return out;
}

void adaln_norm_out(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& weight,
                    double eps, bool layer, const Tensor& out) {
  const Described seen(x);
  norm_sizes(seen);
  check_output(out, x, "adaln_norm: out");
  check_apart(out, x, true, "adaln_norm: out overlaps x");
  for (const MaybeTensor* t : {&scale, &shift, &weight}) {
    if (*t) check_apart(out, **t, false, "adaln_norm: out overlaps scale, shift or weight");
  }
  adaln_norm_into(x, seen, scale, shift, weight, eps, layer, output_rows(out));
}

int64_t most_tasks(const Tensor& x) { return on_gpu(x) ? cuda::kNormTasks : kNormTasks; }

// The gradient of an absent argument has no elements; that of one that nothing was computed from is zero.
Tensor empty_grad(const Tensor& x, const MaybeTensor& t) {
  if (!t) return empty_dense(x, {0});
  return x.numel() > 0 ? empty_dense(*t, sizes_of(*t)) : torch::stable::new_zeros(*t, sizes_of(*t));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> adaln_norm_backward(const Tensor& grad_out, const Tensor& x,
                                                               const MaybeTensor& scale, const MaybeTensor& shift,
                                                               const MaybeTensor& weight, double eps, bool layer) {
  const Described seen(x);
  norm_sizes(seen);
  check_like(grad_out, x, "adaln_norm: grad_out");
  const AdalnArguments arguments(x, seen, scale, shift, weight);
  STD_TORCH_CHECK(arguments.modulations.expanded(arguments.size) && (!weight || dtype_code(*weight) == wide_of(seen)),
                  "adaln_norm: modulations of one dtype, a weight in the wide one, expanded over the batch");
  const AdalnParams forward = arguments.params(eps, layer, {nullptr, 0, 0});
  const Operand grads(grad_out);
  Tensor grad_x = empty_tokens(x, forward.size, seen.dtype);
  Tensor grad_scale = empty_grad(x, scale), grad_shift = empty_grad(x, shift), grad_weight = empty_grad(x, weight);
  if (is_empty(forward.size)) return {grad_x, grad_scale, grad_shift, grad_weight};
  const int64_t tokens[2] = {forward.scale.tokens, forward.shift.tokens};
  STD_TORCH_CHECK(tokens[0] % tokens[1] == 0 || tokens[1] % tokens[0] == 0, "adaln_norm: frames that do not nest");
  const NormTasks tasks = norm_tasks(forward.size, tokens[0], tokens[1], most_tasks(x));
  const Tensor partial = empty_tokens(x, {tasks.count, 3, padded_width(forward.size.width)}, wide_of(seen));
  const AdalnBackwardParams params = {forward,
                                      rows_of(grads.seen),
                                      grad_x.mutable_data_ptr(),
                                      grad_weight.mutable_data_ptr(),
                                      grad_scale.mutable_data_ptr(),
                                      grad_shift.mutable_data_ptr(),
                                      partial.mutable_data_ptr()};
  run_kernel(x, norm_kernels().adaln_norm_backward, VIDEOAR_GPU(launch_adaln_norm_backward), params);
  return {grad_x, grad_scale, grad_shift, grad_weight};
}

void gated_residual_into(const Tensor& x, const Described& seen, const Tensor& y, const Tensor& gate, OutputRows out) {
  const NormSizes size = norm_sizes(seen);
  const Modulations gates(seen, size, &gate);
  const Described seen_y(y);
  STD_TORCH_CHECK(seen_y.resembles(seen), "gated_residual: y of another shape, dtype or device");
  const Operand a(x, seen), b(y, seen_y);
  const GatedResidualParams params = {
      rows_of(a.seen), rows_of(b.seen), out, gates.rows[0], size, gates.dtype == wide_of(seen), dtype_of(seen)};
  if (!is_empty(size)) run_kernel(x, norm_kernels().gated_residual, VIDEOAR_GPU(launch_gated_residual), params);
}

Tensor gated_residual(const Tensor& x, const Tensor& y, const Tensor& gate) {
  const Described seen(x);
  const NormSizes size = norm_sizes(seen);
  Tensor out = empty_tokens(x, size, seen.dtype);
  gated_residual_into(x, seen, y, gate, dense_output(out, size));
  return out;
}

void gated_residual_out(const Tensor& x, const Tensor& y, const Tensor& gate, const Tensor& out) {
  const Described seen(x);
  norm_sizes(seen);
  check_output(out, x, "gated_residual: out");
  check_apart(out, x, true, "gated_residual: out overlaps x"),
      check_apart(out, y, true, "gated_residual: out overlaps y");
  check_apart(out, gate, false, "gated_residual: out overlaps gate");
  gated_residual_into(x, seen, y, gate, output_rows(out));
}

std::tuple<Tensor, Tensor> gated_residual_backward(const Tensor& grad_out, const Tensor& y, const Tensor& gate) {
  const Described seen(y);
  const NormSizes size = norm_sizes(seen);
  check_like(grad_out, y, "gated_residual: grad_out");
  const Modulations gates(seen, size, &gate);
  STD_TORCH_CHECK(gates.expanded(size), "gated_residual: a gate in y's dtype or the wide one, expanded over the batch");
  const Operand d(grad_out), b(y, seen);
  Tensor grad_y = empty_tokens(y, size, seen.dtype), grad_gate = empty_grad(y, gate);
  if (is_empty(size)) return {grad_y, grad_gate};
  const NormTasks tasks = norm_tasks(size, gates.rows[0].tokens, gates.rows[0].tokens, most_tasks(y));
  const Tensor partial = empty_tokens(y, {1, tasks.count, size.width}, wide_of(seen));
  const GatedResidualBackwardParams params = {rows_of(d.seen),
                                              rows_of(b.seen),
                                              grad_y.mutable_data_ptr(),
                                              grad_gate.mutable_data_ptr(),
                                              partial.mutable_data_ptr(),
                                              gates.rows[0],
                                              size,
                                              gates.dtype == wide_of(seen),
                                              dtype_of(seen)};
  run_kernel(y, norm_kernels().gated_residual_backward, VIDEOAR_GPU(launch_gated_residual_backward), params);
  return {grad_y, grad_gate};
}

template <class Library>
void add_kernels(Library& m) {
  m.impl("adaln_norm", TORCH_BOX(&adaln_norm));
  m.impl("adaln_norm_out", TORCH_BOX(&adaln_norm_out));
  m.impl("adaln_norm_backward", TORCH_BOX(&adaln_norm_backward));
  m.impl("gated_residual", TORCH_BOX(&gated_residual));
  m.impl("gated_residual_out", TORCH_BOX(&gated_residual_out));
  m.impl("gated_residual_backward", TORCH_BOX(&gated_residual_backward));
  m.impl("swiglu", TORCH_BOX(&swiglu));
  m.impl("swiglu_out", TORCH_BOX(&swiglu_out));
  m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
}

}  // namespace

VIDEOAR_REGISTER(add_kernels)

}  // namespace videoar
