// Compiled where PyTorch has CUDA. Like every GPU part of this repository not yet run on a GPU; nvcc checks the kernel.
#include "../../cuda/rope.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../positions.h"

namespace videoar {
namespace {

cuda::PositionType position_type(const Tensor& positions) {
  switch (positions.scalar_type()) {
    case ScalarType::Long: return cuda::PositionType::i64;
    case ScalarType::Int: return cuda::PositionType::i32;
    case ScalarType::Float: return cuda::PositionType::f32;
    case ScalarType::Double: return cuda::PositionType::f64;
    default: STD_TORCH_CHECK(false, "rope: expected positions of int64, int32, float32 or float64");
  }
  return cuda::PositionType::i64;
}

void rotate_into(const Tensor& x, const Tensor& out, const Tensor& positions, const RopeOptions& options) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(3) <= cuda::kRopeMaxDim, "rope: expected 4 dimensions, head_dim up to 256");
  const bool shared = positions.dim() == 2;
  STD_TORCH_CHECK(positions.numel() == (shared ? 1 : x.size(0)) * x.size(2) * 3, "rope: wrong number of positions");
  const Tensor dense = torch::stable::contiguous(positions);
  cuda::RopeParams p{};
  p.x = x.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.positions = dense.const_data_ptr();
  p.batch = x.size(0);
  p.heads = x.size(1);
  p.length = x.size(2);
  p.dim = int(x.size(3));
  p.position_batch_stride = shared ? 0 : x.size(2);
  int pair = 0;
  for (int axis = 0; axis < 3; ++axis) {
    p.x_stride[axis] = x.stride(axis);
    p.out_stride[axis] = out.stride(axis);
    for (const double frequency : inverse_frequencies(options.dims[axis], options.theta)) {
      p.inverse_frequency[pair++] = frequency;
    }
    p.axis_end[axis] = pair;
  }
  p.position_type = position_type(positions);
  p.dtype = dtype_of(x);
  p.interleaved = options.interleaved;
  p.inverse = options.inverse;
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS, "rope: no CUDA stream");
  const char* error = cuda::launch_rope(p, stream);
  STD_TORCH_CHECK(error == nullptr, "rope: ", error == nullptr ? "" : error);
}

Tensor rope_3d(const Tensor& x, const Tensor& positions, const MaybeDims& dims, double theta, bool interleaved,
               bool inverse) {
  const Tensor dense = dense_rows(x);
  Tensor out = empty_dense(x, sizes_of(x));
  rotate_into(dense, out, positions, {dims, x.size(-1), theta, interleaved, inverse});
  return out;
}

void rope_3d_(Tensor x, const Tensor& positions, const MaybeDims& dims, double theta, bool interleaved, bool inverse) {
  STD_TORCH_CHECK(x.size(3) <= 1 || x.stride(3) == 1, "rope_3d_: expected x with a contiguous last dimension");
  rotate_into(x, x, positions, {dims, x.size(-1), theta, interleaved, inverse});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CUDA, m) {
  m.impl("rope_3d", TORCH_BOX(&rope_3d));
  m.impl("rope_3d_", TORCH_BOX(&rope_3d_));
}

}  // namespace videoar
