#include "../cuda/kv_cache.h"

#include <algorithm>
#include <cmath>

#include "gpu.h"
#include "out.h"
#include "positions.h"

namespace videoar {
namespace {

RopeStrides strides_of(const Tensor& t) {
  const auto strides = t.strides();
  return {strides[0], strides[1], strides[2]};
}

void check_like(const Tensor& t, const RopeSizes& size, int64_t length, const Tensor& k) {
  const auto sizes = t.sizes();
  STD_TORCH_CHECK(sizes.size() == 4 && sizes[0] == size.batch && sizes[1] == size.heads && sizes[2] == length &&
                      sizes[3] == size.dim && t.scalar_type() == k.scalar_type() && same_device(t, k),
                  "kv_cache_append: blocks or caches differ in shape, dtype or device");
}

struct Rotation {
  const std::optional<Tensor>& positions;
  std::vector<int64_t> dims;  // empty: the default split
  double theta;
  bool interleaved;
};

// The weight as kernels read it; a copy is kept in `held`.
const void* weight_of(const Tensor& weight, const RopeSizes& size, const Tensor& k, std::vector<Tensor>& held) {
  STD_TORCH_CHECK(weight.dim() == 1 && weight.numel() == size.dim && same_device(weight, k),
                  "kv_cache_append: expected weights of head_dim elements");
  dtype_of(weight);  // refuses integers
  const ScalarType wide = k.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  if (weight.scalar_type() == wide && weight.is_contiguous()) return weight.const_data_ptr();
  held.push_back(torch::stable::contiguous(torch::stable::to(weight, wide)));
  return held.back().const_data_ptr();
}

// No block may be a view of a cache that is written: threads would read what others have overwritten.
void check_blocks_apart(size_t count, const Tensor* k_caches, const Tensor* v_caches, const Tensor* ks,
                        const Tensor* vs) {
  std::vector<std::pair<ByteSpan, const Tensor*>> written;
  written.reserve(2 * count);
  for (size_t i = 0; i < count; ++i) {
    for (const Tensor* t : {&k_caches[i], &v_caches[i]}) written.emplace_back(ByteSpan(*t), t);
  }
  for (size_t i = 0; i < count; ++i) {
    for (const Tensor* t : {&ks[i], &vs[i]}) {
      const ByteSpan read(*t);
      for (const auto& [span, cache] : written) {
        if (span.meets(read)) check_apart(*cache, *t, false, "kv_cache_append: a block is a view of a cache");
      }
    }
  }
}

void append_on_gpu(const Tensor& k, const KvAppendParams& p, const cuda::Rotation& rotation) {
  const cuda::KvAppendLaunch params = {p.layers, p.layer_count, p.size, rotation, p.capacity,
                                       p.start,  p.sink,        p.eps,  p.dtype};
  launch(k, VIDEOAR_GPU(launch_kv_append), params);
}

// `weights` is null or holds one per layer.
void append(size_t count, const Tensor* k_caches, const Tensor* v_caches, const Tensor* ks, const Tensor* vs,
            const Tensor* weights, Rotation rotation, int64_t start, int64_t sink, double eps) {
  STD_TORCH_CHECK(has_kernels(ks[0]) && ks[0].dim() == 4 && k_caches[0].dim() == 4,
                  "kv_cache_append: expected blocks (B, H, L, D) on a device with kernels");
  KvAppendParams p{};
  const auto sizes = ks[0].sizes();
  p.size = {sizes[0], sizes[1], sizes[2], sizes[3]};
  p.capacity = k_caches[0].size(2), p.start = start, p.sink = sink;
  p.eps = eps, p.interleaved = rotation.interleaved, p.dtype = dtype_of(ks[0]);
  STD_TORCH_CHECK(weights == nullptr || (eps >= 0 && std::isfinite(eps)),
                  "kv_cache_append: expected a finite eps >= 0");
  // Tokens in the sink, and those in the ring, of which no two may share a slot: threads would write it in any order.
  const int64_t pinned = start < sink ? std::min(sink - start, p.size.length) : 0, ring = p.size.length - pinned;
  STD_TORCH_CHECK(
      start >= 0 && sink >= 0 && (ring > 0 ? ring <= p.capacity - sink : start + pinned <= p.capacity || pinned == 0),
      "kv_cache_append: the block does not fit");
  std::vector<Tensor> held;  // dense copies live until the kernel is done
  held.reserve(3 * count);
  std::vector<KvLayer> layers;
  layers.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    held.push_back(dense_rows(ks[i])), held.push_back(dense_rows(vs[i]));
    const Tensor &k = held[held.size() - 2], &v = held[held.size() - 1];
    const Tensor &k_cache = k_caches[i], &v_cache = v_caches[i];
    check_like(k, p.size, p.size.length, ks[0]), check_like(v, p.size, p.size.length, ks[0]);
    check_like(k_cache, p.size, p.capacity, ks[0]), check_like(v_cache, p.size, p.capacity, ks[0]);
    STD_TORCH_CHECK(p.size.dim == 1 || (k_cache.stride(3) == 1 && v_cache.stride(3) == 1),
                    "kv_cache_append: the caches' last dimension must be contiguous");
    layers.push_back({k.const_data_ptr(), v.const_data_ptr(), k_cache.mutable_data_ptr(), v_cache.mutable_data_ptr(),
                      nullptr, strides_of(k), strides_of(v), strides_of(k_cache), strides_of(v_cache)});
    if (weights != nullptr) layers.back().weight = weight_of(weights[i], p.size, ks[0], held);
  }
  check_blocks_apart(count, k_caches, v_caches, ks, vs);
  p.layers = layers.data(), p.layer_count = int64_t(count);

  if (p.size.batch * p.size.heads * p.size.length * p.size.dim == 0) return;
  if (!rotation.positions.has_value()) {
    if (on_gpu(ks[0])) return append_on_gpu(ks[0], p, {});
    return kv_cache_kernels().append(p);
  }
  const MaybeDims dims = rotation.dims.empty() ? MaybeDims() : MaybeDims(std::move(rotation.dims));
  const RopeOptions options(dims, p.size.dim, rotation.theta, rotation.interleaved, false);
  const Tensor positions = dense_positions(*rotation.positions, p.size, ks[0]);
  if (on_gpu(ks[0])) return append_on_gpu(ks[0], p, rotation_of(positions, p.size, options));
  with_table(positions, p.size, p.dtype, options, rotation.interleaved, [&](const RopeTableView& table) {
    p.table = table;
    kv_cache_kernels().append(p);
  });
}

void kv_cache_append(const std::vector<Tensor>& k_caches, const std::vector<Tensor>& v_caches,
                     const std::vector<Tensor>& ks, const std::vector<Tensor>& vs, const std::vector<Tensor>& k_weights,
                     std::optional<Tensor> positions, int64_t start, int64_t sink, double eps,
                     std::vector<int64_t> dims, double theta, bool interleaved) {
  const size_t count = ks.size();
  STD_TORCH_CHECK(count > 0 && k_caches.size() == count && v_caches.size() == count && vs.size() == count &&
                      (k_weights.empty() || k_weights.size() == count),
                  "kv_cache_append: expected as many caches, and weights if any, as blocks");
  append(count, k_caches.data(), v_caches.data(), ks.data(), vs.data(), k_weights.empty() ? nullptr : k_weights.data(),
         {positions, std::move(dims), theta, interleaved}, start, sink, eps);
}

void kv_cache_append_layer(const Tensor& k_cache, const Tensor& v_cache, const Tensor& k, const Tensor& v,
                           std::optional<Tensor> k_weight, std::optional<Tensor> positions, int64_t start, int64_t sink,
                           double eps, std::vector<int64_t> dims, double theta, bool interleaved) {
  append(1, &k_cache, &v_cache, &k, &v, k_weight.has_value() ? &*k_weight : nullptr,
         {positions, std::move(dims), theta, interleaved}, start, sink, eps);
}

KvMoved moved(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  const int64_t bytes = int64_t(t.element_size());
  return {t.mutable_data_ptr(), sizes[0],           sizes[1],          sizes[3] * bytes,
          strides[0] * bytes,   strides[1] * bytes, strides[2] * bytes};
}

void kv_cache_move(const std::vector<Tensor>& caches, std::vector<int64_t> moves) {
  STD_TORCH_CHECK(!caches.empty() && moves.size() % 3 == 0,
                  "kv_cache_move: expected caches, and moves as triples of source, target and length");
  std::vector<KvMoved> tensors;
  tensors.reserve(caches.size());
  int64_t capacity = -1;
  for (const Tensor& t : caches) {
    STD_TORCH_CHECK(t.dim() == 4 && has_kernels(t) && same_device(t, caches[0]) &&
                        (t.size(3) <= 1 || t.stride(3) == 1) && !repeats_elements(t),
                    "kv_cache_move: expected caches (B, H, slots, D) on one device, the last dimension contiguous");
    capacity = capacity < 0 ? t.size(2) : std::min(capacity, t.size(2));
    if (t.numel() > 0) tensors.push_back(moved(t));
  }
  std::vector<KvMove> steps;
  steps.reserve(moves.size() / 3);
  for (size_t i = 0; i < moves.size(); i += 3) {
    const KvMove step = {moves[i], moves[i + 1], moves[i + 2]};
    STD_TORCH_CHECK(step.length >= 0 && step.source >= 0 && step.target >= 0 &&
                        step.length <= capacity - std::max(step.source, step.target),
                    "kv_cache_move: expected moves within the slots");
    if (step.length > 0 && step.source != step.target) steps.push_back(step);
  }
  if (tensors.empty() || steps.empty()) return;
  const KvMoveParams params = {tensors.data(), steps.data(), int64_t(tensors.size()), int64_t(steps.size())};
  run_kernel(caches[0], kv_cache_kernels().move, VIDEOAR_GPU(launch_kv_move), params);
}

template <class Library>
void add_kernels(Library& m) {
  m.impl("kv_cache_append", TORCH_BOX(&kv_cache_append));
  m.impl("kv_cache_append_layer", TORCH_BOX(&kv_cache_append_layer));
  m.impl("kv_cache_move", TORCH_BOX(&kv_cache_move));
}

}  // namespace

VIDEOAR_REGISTER(add_kernels)

}  // namespace videoar
