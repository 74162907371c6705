#include "../cpu/kv_cache.h"

#include <cmath>

#include "tensors.h"

namespace videoar {
namespace {

constexpr int64_t kMaxHeadDim = 512;

void copy_strides(const Tensor& t, int64_t* strides) {
  for (int64_t i = 0; i < 3; ++i) strides[i] = t.stride(i);
}

void kv_cache_append(const std::vector<Tensor>& k_caches, const std::vector<Tensor>& v_caches,
                     const std::vector<Tensor>& ks, const std::vector<Tensor>& vs, const std::vector<Tensor>& k_weights,
                     std::optional<Tensor> positions, int64_t start, int64_t sink, double eps,
                     std::vector<int64_t> dims, double theta, bool interleaved) {
  const size_t count = ks.size();
  STD_TORCH_CHECK(count > 0 && k_caches.size() == count && v_caches.size() == count && vs.size() == count,
                  "kv_cache_append: expected as many caches as blocks");
  STD_TORCH_CHECK(k_weights.empty() || k_weights.size() == count,
                  "kv_cache_append: expected a weight per block or none");

  KvAppendParams p{};
  p.batch = ks[0].size(0), p.heads = ks[0].size(1), p.length = ks[0].size(2), p.head_dim = ks[0].size(3);
  p.capacity = k_caches[0].size(2), p.start = start, p.sink = sink;
  p.eps = eps, p.interleaved = interleaved, p.dtype = dtype_of(ks[0]);
  STD_TORCH_CHECK(p.head_dim <= kMaxHeadDim, "kv_cache_append: head_dim above 512");
  STD_TORCH_CHECK(start >= 0 && sink >= 0 && p.length <= p.capacity && (sink < p.capacity || start + p.length <= sink),
                  "kv_cache_append: the block does not fit");

  const ScalarType wide = p.dtype == DType::f64 ? ScalarType::Double : ScalarType::Float;
  std::vector<Tensor> held;  // keeps dense copies alive
  std::vector<KvLayer> layers(count);
  for (size_t i = 0; i < count; ++i) {
    const Tensor k = dense_rows(ks[i]), v = dense_rows(vs[i]);
    const Tensor &k_cache = k_caches[i], &v_cache = v_caches[i];
    for (const Tensor* t : {&v, &k_cache, &v_cache}) {
      STD_TORCH_CHECK(t->dim() == 4 && t->size(0) == p.batch && t->size(1) == p.heads && t->size(3) == p.head_dim &&
                          dtype_of(*t) == p.dtype,
                      "kv_cache_append: blocks and caches differ in shape or dtype");
    }
    STD_TORCH_CHECK(dtype_of(k) == p.dtype && k.size(2) == p.length && v.size(2) == p.length &&
                        k_cache.size(2) == p.capacity && v_cache.size(2) == p.capacity,
                    "kv_cache_append: blocks or caches differ in length or dtype");
    STD_TORCH_CHECK(p.head_dim == 1 || (k_cache.stride(3) == 1 && v_cache.stride(3) == 1),
                    "kv_cache_append: the caches' last dimension must be contiguous");
    KvLayer& layer = layers[i];
    layer = {k.const_data_ptr(),
             v.const_data_ptr(),
             k_cache.mutable_data_ptr(),
             v_cache.mutable_data_ptr(),
             nullptr,
             {},
             {},
             {},
             {}};
    copy_strides(k, layer.k_strides), copy_strides(v, layer.v_strides);
    copy_strides(k_cache, layer.k_cache_strides), copy_strides(v_cache, layer.v_cache_strides);
    held.push_back(k), held.push_back(v);
    if (k_weights.empty()) continue;
    const Tensor weight = torch::stable::contiguous(torch::stable::to(k_weights[i], wide));
    STD_TORCH_CHECK(weight.numel() == p.head_dim, "kv_cache_append: expected a weight of head_dim elements");
    layer.k_weight = weight.const_data_ptr();
    held.push_back(weight);
  }
  p.layers = layers.data(), p.layer_count = int64_t(count);

  std::vector<double> frequencies;
  std::vector<int32_t> axes;
  if (positions) {
    const Tensor dense = torch::stable::contiguous(*positions);
    STD_TORCH_CHECK(dense.scalar_type() == ScalarType::Long && dense.size(dense.dim() - 1) == 3 &&
                        dense.size(dense.dim() - 2) == p.length && (dense.dim() == 2 || dense.size(0) == p.batch),
                    "kv_cache_append: expected int64 positions (L, 3) or (B, L, 3)");
    STD_TORCH_CHECK(dims.size() == 3 && dims[0] + dims[1] + dims[2] == p.head_dim && p.head_dim % 2 == 0,
                    "kv_cache_append: expected three dims that sum to head_dim");
    for (int32_t axis = 0; axis < 3; ++axis) {
      for (int64_t i = 0; i < dims[axis]; i += 2) {
        frequencies.push_back(std::pow(theta, -double(i) / double(dims[axis])));
        axes.push_back(axis);
      }
    }
    p.positions = static_cast<const int64_t*>(dense.const_data_ptr());
    p.position_batch_stride = dense.dim() == 3 ? p.length * 3 : 0;
    held.push_back(dense);
  }
  p.frequencies = frequencies.data(), p.axes = axes.data();
  if (p.batch * p.heads * p.length * p.head_dim > 0) kv_cache_kernels().append(p);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) { m.impl("kv_cache_append", TORCH_BOX(&kv_cache_append)); }

}  // namespace videoar
