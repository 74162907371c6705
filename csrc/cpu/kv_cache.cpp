#include "kv_cache.h"

#include <cmath>
#include <cstring>

#include "parallel.h"
#include "rotate.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

template <class T>
inline void copy_row(const T* from, T* to, int64_t dim) {
  std::memcpy(to, from, size_t(dim) * sizeof(T));
}

// Norms (where there is a weight) and rotates (where there are cosines) one head.
template <class T, bool kInterleaved>
inline void write_key(const T* from, T* to, const Accumulator<T>* weight, const Accumulator<T>* cosines,
                      const Accumulator<T>* sines, int64_t dim, double eps) {
  using A = Accumulator<T>;
  if (weight == nullptr && cosines == nullptr) return copy_row(from, to, dim);
  const auto put = [&](int64_t i, Vec<A> v, int n) { store_upto(to + i, v, n); };
  const auto write = [&](const auto& get) {
    if (cosines != nullptr) return rotate<A, kInterleaved>(cosines, sines, dim, get, put);
    sweep<A>(dim, [&](int64_t i, int n) { put(i, get(i, n), n); });
  };
  if (weight == nullptr) return write([&](int64_t i, int n) { return load_upto(from + i, n); });
  const A rstd = 1 / std::sqrt(sum_of_squares(from, dim) / A(dim) + A(eps));
  write([&](int64_t i, int n) { return load_upto(from + i, n) * rstd * load_upto(weight + i, n); });
}

template <class T, bool kInterleaved>
void append_blocks_of(const KvAppendParams& p, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const bool rotated = p.table.index != nullptr;
  const BlockAngles<A> angles(p.table, rotated ? p.size.dim : 0, kInterleaved);
  each_head_block(begin, end, p.size, [&](int64_t first, int64_t tokens, int64_t sample, int64_t head, int64_t last) {
    if (rotated) angles.fill(sample, first, tokens);
    // Every layer and head while the block's angles are at hand.
    for (int64_t l = 0; l < p.layer_count; ++l) {
      const KvLayer& layer = p.layers[l];
      each_row(last - head, tokens, layer.k_stride, [&](int64_t h, int64_t t) {
        const auto at = [&](const RopeStrides& stride, int64_t token) {
          return sample * stride.batch + (head + h) * stride.head + token * stride.token;
        };
        const int64_t token = first + t, slot = kv_slot(p.start + token, p.sink, p.capacity);
        write_key<T, kInterleaved>((const T*)layer.k + at(layer.k_stride, token),
                                   (T*)layer.k_cache + at(layer.k_cache_stride, slot), (const A*)layer.weight,
                                   rotated ? angles.cosines(t) : nullptr, rotated ? angles.sines(t) : nullptr,
                                   p.size.dim, p.eps);
        copy_row((const T*)layer.v + at(layer.v_stride, token), (T*)layer.v_cache + at(layer.v_cache_stride, slot),
                 p.size.dim);
      });
    }
  });
}

template <class T>
void append(const KvAppendParams& p) {
  const RopeSizes& size = p.size;
  const int64_t bytes = p.layer_count * size.batch * size.heads * size.length * size.dim * 4 * int64_t(sizeof(T));
  parallel_ranges(rope_blocks(size.batch, size.length) * size.heads, bytes, [&](int64_t begin, int64_t end) {
    p.interleaved ? append_blocks_of<T, true>(p, begin, end) : append_blocks_of<T, false>(p, begin, end);
  });
}

void append_any(const KvAppendParams& p) { VIDEOAR_DISPATCH(p.dtype, append, p) }

}  // namespace

const KvCacheKernels kv_cache_kernels = {append_any};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
