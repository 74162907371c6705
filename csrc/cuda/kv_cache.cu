#include "kv_cache.h"
#include "rotate.cuh"

namespace videoar {
namespace cuda {
namespace {

struct KvLayers {
  KvLayer layer[kLaunchLayers];
};

// A block takes a few tokens, all heads of one layer: keys normed and rotated on the way, values as they are.
template <class T, class A, int kPack, int kUnits, bool kInterleaved>
__global__ void __launch_bounds__(kRopeThreads, 2)
    append_kernel(const __grid_constant__ KvAppendLaunch p, const __grid_constant__ KvLayers layers) {
  __shared__ Angle<A> angles[kTokens * kRopeMaxDim / 2];
  const KvLayer& layer = layers.layer[blockIdx.y];
  const int dim = int(p.size.dim), half = dim / 2, heads = int(p.size.heads);
  const bool rotated = p.rotation.positions != nullptr;
  const int64_t tokens = p.size.batch * p.size.length, step = int64_t(gridDim.x) * kTokens;
  const Lanes at(dim, kPack, kUnits);
  const A* weight = (const A*)layer.weight;
  HeadCells<T, A, kPack, kUnits, kInterleaved> x;
  for (int64_t first = int64_t(blockIdx.x) * kTokens; first < tokens; first += step) {
    const int count = tokens - first < kTokens ? int(tokens - first) : kTokens;
    if (rotated) fill_angles(angles, p.rotation, first, count, p.size.length, half);
    __syncthreads();
    const int rows = count * heads, groups = at.groups();
    for (int base = 0; base < rows; base += groups) {
      const int row = base + at.group();
      const bool present = row < rows;
      const int local = present ? row / heads : 0, head = present ? row % heads : 0;
      const int64_t sample = (first + local) / p.size.length, token = (first + local) % p.size.length;
      const int64_t slot = kv_slot(p.start + token, p.sink, p.capacity);
      const auto at_token = [&](const RopeStrides& stride, int64_t t) {
        return sample * stride.batch + head * stride.head + t * stride.token;
      };
      x.load((const T*)layer.k + at_token(layer.k_stride, token), at, half, present);
      if (weight != nullptr) {
        const A rstd = reciprocal_root(lanes_sum(x.squares(), at.lanes) / A(dim) + A(p.eps));
        x.scale(rstd, weight, at, half);
      }
      if (!present) continue;
      if (rotated) x.rotate(angles + local * half, at);
      x.store((T*)layer.k_cache + at_token(layer.k_cache_stride, slot), at, half);
      x.load((const T*)layer.v + at_token(layer.v_stride, token), at, half, true);
      x.store((T*)layer.v_cache + at_token(layer.v_cache_stride, slot), at, half);
    }
    __syncthreads();
  }
}

template <class T>
bool layer_aligned(const KvLayer& l, const RopeSizes& block, int64_t capacity) {
  const RopeSizes cache = {block.batch, block.heads, capacity, block.dim};
  return packs_aligned<T>(l.k, block, l.k_stride) && packs_aligned<T>(l.v, block, l.v_stride) &&
         packs_aligned<T>(l.k_cache, cache, l.k_cache_stride) && packs_aligned<T>(l.v_cache, cache, l.v_cache_stride);
}

template <class T>
const char* append(const KvAppendLaunch& p, cudaStream_t stream) {
  using A = Accumulator<T>;
  const unsigned groups = grid_of((p.size.batch * p.size.length + kTokens - 1) / kTokens);
  for (int64_t first = 0; first < p.layer_count; first += kLaunchLayers) {
    KvLayers layers{};
    const int64_t count = p.layer_count - first < kLaunchLayers ? p.layer_count - first : kLaunchLayers;
    bool aligned = true;
    for (int64_t i = 0; i < count; ++i) {
      layers.layer[i] = p.layers[first + i];
      aligned = aligned && layer_aligned<T>(layers.layer[i], p.size, p.capacity);
    }
    const dim3 grid(groups, unsigned(count));
    with_packs<T>(aligned, [&]<int kPack, int kUnits>() {
      if (p.rotation.interleaved) {
        VIDEOAR_LAUNCH(grid, kRopeThreads, stream, append_kernel<T, A, kPack, kUnits, true>)(p, layers);
      } else {
        VIDEOAR_LAUNCH(grid, kRopeThreads, stream, append_kernel<T, A, kPack, kUnits, false>)(p, layers);
      }
    });
  }
  return launch_error();
}

}  // namespace

const char* launch_kv_append(const KvAppendLaunch& p, void* stream) {
  if (p.size.batch * p.size.heads * p.size.length * p.size.dim == 0) return nullptr;
  if (p.size.dim > kRopeMaxDim || p.size.dim % 2) return "kv_cache_append: expected an even head_dim up to 256";
  VIDEOAR_CUDA_DISPATCH(p.dtype, append, p, cudaStream_t(stream));
}

}  // namespace cuda
}  // namespace videoar
