#include "kv_cache.h"

#include <cmath>
#include <cstring>

#include "parallel.h"
#include "rotate.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// f(slot, t, n): tokens [first + t, first + t + n) of the appended block go to consecutive slots from `slot` on.
template <class F>
inline void each_slot_run(const KvAppendParams& p, int64_t first, int64_t tokens, const F& f) {
  for (int64_t t = 0, n; t < tokens; t += n) {
    const int64_t number = p.start + first + t, slot = kv_slot(number, p.sink, p.capacity);
    const int64_t room = (number < p.sink ? p.sink : p.capacity) - slot;
    n = room < tokens - t ? room : tokens - t;
    f(slot, t, n);
  }
}

// Norms (where there is a weight) and rotates (where there are cosines) one head.
template <class T, bool kInterleaved>
inline void write_key(const T* from, T* to, const Accumulator<T>* weight, const Accumulator<T>* cosines,
                      const Accumulator<T>* sines, int64_t dim, double eps) {
  using A = Accumulator<T>;
  const auto put = [&](int64_t i, Vec<A> v, int n) { store_upto(to + i, v, n); };
  const auto write = [&](const auto& get) {
    if (cosines != nullptr) return rotate<A, kInterleaved>(cosines, sines, dim, get, put);
    sweep<A>(dim, [&](int64_t i, int n) { put(i, get(i, n), n); });
  };
  if (weight == nullptr) return write([&](int64_t i, int n) { return load_upto(from + i, n); });
  const A rstd = 1 / std::sqrt(sum_of_squares(from, dim) / A(dim) + A(eps));
  write([&](int64_t i, int n) { return load_upto(from + i, n) * rstd * load_upto(weight + i, n); });
}

// Copies heads x tokens; what lies together in both places goes at once.
template <class T>
inline void copy_rows(const T* from, const RopeStrides& in, T* to, const RopeStrides& out, int64_t heads,
                      int64_t tokens, int64_t dim) {
  const bool together = in.token == dim && out.token == dim;
  const int64_t runs = together ? 1 : tokens, length = together ? tokens * dim : dim;
  each_row(heads, runs, in, [&](int64_t h, int64_t t) {
    std::memcpy(to + h * out.head + t * out.token, from + h * in.head + t * in.token, size_t(length) * sizeof(T));
  });
}

template <class T, bool kInterleaved>
void append_blocks_of(const KvAppendParams& p, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const bool rotated = p.table.index != nullptr;
  const int64_t dim = p.size.dim;
  const BlockAngles<A> angles(p.table, rotated ? dim : 0, kInterleaved);
  each_head_block(begin, end, p.size, [&](int64_t first, int64_t tokens, int64_t sample, int64_t head, int64_t last) {
    if (rotated) angles.fill(sample, first, tokens);
    const int64_t heads = last - head;
    // Every layer and head while the block's angles are at hand.
    for (int64_t l = 0; l < p.layer_count; ++l) {
      const KvLayer& layer = p.layers[l];
      each_slot_run(p, first, tokens, [&](int64_t slot, int64_t begun, int64_t n) {
        const auto at = [&](const RopeStrides& stride, int64_t token) {
          return sample * stride.batch + head * stride.head + token * stride.token;
        };
        const RopeStrides &in = layer.k_stride, &out = layer.k_cache_stride;
        const T* k = (const T*)layer.k + at(in, first + begun);
        T* k_cache = (T*)layer.k_cache + at(out, slot);
        if (rotated || layer.weight != nullptr) {
          each_row(heads, n, in, [&](int64_t h, int64_t t) {
            write_key<T, kInterleaved>(k + h * in.head + t * in.token, k_cache + h * out.head + t * out.token,
                                       (const A*)layer.weight, rotated ? angles.cosines(begun + t) : nullptr,
                                       rotated ? angles.sines(begun + t) : nullptr, dim, p.eps);
          });
        } else {
          copy_rows(k, in, k_cache, out, heads, n, dim);
        }
        copy_rows((const T*)layer.v + at(layer.v_stride, first + begun), layer.v_stride,
                  (T*)layer.v_cache + at(layer.v_cache_stride, slot), layer.v_cache_stride, heads, n, dim);
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

// One head of one sample through all moves.
void move_head(char* head, const KvMoved& t, const KvMoveParams& p) {
  for (int64_t m = 0; m < p.move_count; ++m) {
    const auto [source, target, length] = p.moves[m];
    if (t.token_stride == t.row) {
      std::memmove(head + target * t.row, head + source * t.row, size_t(length * t.row));
      continue;
    }
    for (int64_t i = 0; i < length; ++i) {
      const int64_t token = target > source ? length - 1 - i : i;
      std::memmove(head + (target + token) * t.token_stride, head + (source + token) * t.token_stride, size_t(t.row));
    }
  }
}

void move(const KvMoveParams& p) {
  int64_t tokens = 0;
  for (int64_t m = 0; m < p.move_count; ++m) tokens += p.moves[m].length;
  for (int64_t i = 0; i < p.tensor_count; ++i) {
    const KvMoved& t = p.tensors[i];
    const int64_t heads = t.batch * t.heads;
    parallel_ranges(heads, 2 * heads * tokens * t.row, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h)
        move_head((char*)t.data + h / t.heads * t.batch_stride + h % t.heads * t.head_stride, t, p);
    });
  }
}

}  // namespace

const KvCacheKernels kv_cache_kernels = {append_any, move};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
