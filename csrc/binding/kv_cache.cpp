#include "../cpu/kv_cache.h"

#include "positions.h"

namespace videoar {
namespace {

RopeStrides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2)}; }

void check_like(const Tensor& t, const RopeSizes& size, int64_t length, DType dtype) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == size.batch && t.size(1) == size.heads && t.size(2) == length &&
                      t.size(3) == size.dim && dtype_of(t) == dtype,
                  "kv_cache_append: blocks or caches differ in shape or dtype");
}

void kv_cache_append(const std::vector<Tensor>& k_caches, const std::vector<Tensor>& v_caches,
                     const std::vector<Tensor>& ks, const std::vector<Tensor>& vs, const std::vector<Tensor>& k_weights,
                     std::optional<Tensor> positions, int64_t start, int64_t sink, double eps,
                     std::vector<int64_t> dims, double theta, bool interleaved) {
  const size_t count = ks.size();
  STD_TORCH_CHECK(count > 0 && k_caches.size() == count && v_caches.size() == count && vs.size() == count &&
                      (k_weights.empty() || k_weights.size() == count) && ks[0].dim() == 4 && k_caches[0].dim() == 4,
                  "kv_cache_append: expected as many caches, and weights if any, as blocks");
  KvAppendParams p{};
  p.size = {ks[0].size(0), ks[0].size(1), ks[0].size(2), ks[0].size(3)};
  p.capacity = k_caches[0].size(2), p.start = start, p.sink = sink;
  p.eps = eps, p.interleaved = interleaved, p.dtype = dtype_of(ks[0]);
  STD_TORCH_CHECK(start >= 0 && sink >= 0 && p.size.length <= p.capacity &&
                      (sink < p.capacity || start + p.size.length <= p.capacity),
                  "kv_cache_append: the block does not fit");

  const ScalarType wide = p.dtype == DType::f64 ? ScalarType::Double : ScalarType::Float;
  std::vector<Tensor> held;  // dense copies live until the kernel is done
  std::vector<KvLayer> layers;
  for (size_t i = 0; i < count; ++i) {
    const Tensor k = dense_rows(ks[i]), v = dense_rows(vs[i]);
    const Tensor &k_cache = k_caches[i], &v_cache = v_caches[i];
    check_like(k, p.size, p.size.length, p.dtype), check_like(v, p.size, p.size.length, p.dtype);
    check_like(k_cache, p.size, p.capacity, p.dtype), check_like(v_cache, p.size, p.capacity, p.dtype);
    STD_TORCH_CHECK(p.size.dim == 1 || (k_cache.stride(3) == 1 && v_cache.stride(3) == 1),
                    "kv_cache_append: the caches' last dimension must be contiguous");
    const void* weight = nullptr;
    if (!k_weights.empty()) {
      STD_TORCH_CHECK(k_weights[i].numel() == p.size.dim, "kv_cache_append: expected weights of head_dim elements");
      held.push_back(torch::stable::contiguous(torch::stable::to(k_weights[i], wide)));
      weight = held.back().const_data_ptr();
    }
    layers.push_back({k.const_data_ptr(), v.const_data_ptr(), k_cache.mutable_data_ptr(), v_cache.mutable_data_ptr(),
                      weight, strides_of(k), strides_of(v), strides_of(k_cache), strides_of(v_cache)});
    held.push_back(k), held.push_back(v);
  }
  p.layers = layers.data(), p.layer_count = int64_t(count);

  if (p.size.batch * p.size.heads * p.size.length * p.size.dim == 0) return;
  if (!positions) return kv_cache_kernels().append(p);
  const RopeOptions options(dims, theta, interleaved, false);
  STD_TORCH_CHECK(dims[0] + dims[1] + dims[2] == p.size.dim, "kv_cache_append: dims do not add up");
  with_table(*positions, p.size, p.dtype, options, interleaved, [&](const RopeTableView& table) {
    p.table = table;
    kv_cache_kernels().append(p);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CPU, m) { m.impl("kv_cache_append", TORCH_BOX(&kv_cache_append)); }

}  // namespace videoar
