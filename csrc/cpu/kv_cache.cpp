#include "kv_cache.h"

#include "parallel.h"
#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

constexpr int kMaxHeadDim = 512;

// cos and sin of one token's pairs; angles in double, since positions of a long video exceed float's precision.
template <class A>
struct Rotation {
  A cosine[kMaxHeadDim / 2], sine[kMaxHeadDim / 2];
};

template <class A>
void fill_rotation(Rotation<A>& rotation, const KvAppendParams& p, const int64_t* position) {
  for (int64_t i = 0; i < p.head_dim / 2; ++i) {
    const double angle = double(position[p.axes[i]]) * p.frequencies[i];
    rotation.cosine[i] = A(__builtin_cos(angle));
    rotation.sine[i] = A(__builtin_sin(angle));
  }
}

template <class T>
inline void copy_row(const T* from, T* to, int64_t width) {
  std::memcpy(to, from, size_t(width) * sizeof(T));
}

// row *= weight / rms(row)
template <class A>
inline void normalise(A* row, const A* weight, int64_t width, A eps) {
  constexpr int kN = kLanes<A>;
  Vec<A> squares = {};
  int64_t i = 0;
  for (; i + kN <= width; i += kN) {
    const Vec<A> x = load(row + i);
    squares += x * x;
  }
  A sum = reduce_add<A>(squares);
  for (; i < width; ++i) sum += row[i] * row[i];
  const A inverse = A(1 / __builtin_sqrt(double(sum / A(width) + eps)));
  for (i = 0; i + kN <= width; i += kN) store(row + i, load(row + i) * inverse * load(weight + i));
  for (; i < width; ++i) row[i] = row[i] * inverse * weight[i];
}

template <class A>
inline void rotate(A* row, const Rotation<A>& r, int64_t width, bool interleaved) {
  const int64_t pairs = width / 2, step = interleaved ? 2 : 1, other = interleaved ? 1 : pairs;
  for (int64_t i = 0; i < pairs; ++i) {
    A* pair = row + i * step;
    const A a = pair[0], b = pair[other];
    pair[0] = a * r.cosine[i] - b * r.sine[i];
    pair[other] = a * r.sine[i] + b * r.cosine[i];
  }
}

template <class T>
inline void write_key(const T* from, T* to, const Accumulator<T>* weight, const Rotation<Accumulator<T>>* rotation,
                      const KvAppendParams& p) {
  using A = Accumulator<T>;
  constexpr int kN = kLanes<A>;
  if (weight == nullptr && rotation == nullptr) return copy_row(from, to, p.head_dim);
  A row[kMaxHeadDim];
  int64_t i = 0;
  for (; i + kN <= p.head_dim; i += kN) store(row + i, load(from + i));
  for (; i < p.head_dim; ++i) row[i] = to_float(from[i]);
  if (weight != nullptr) normalise<A>(row, weight, p.head_dim, A(p.eps));
  if (rotation != nullptr) rotate<A>(row, *rotation, p.head_dim, p.interleaved);
  for (i = 0; i + kN <= p.head_dim; i += kN) store(to + i, load(row + i));
  for (; i < p.head_dim; ++i) to[i] = from_float<T>(row[i]);
}

// All layers and heads of one token of one sample, so that its angles are computed once.
template <class T>
void append(const KvAppendParams& p) {
  using A = Accumulator<T>;
  const int64_t bytes = p.layer_count * p.batch * p.heads * p.length * p.head_dim * 4 * int64_t(sizeof(T));
  parallel_ranges(p.batch * p.length, bytes, [&](int64_t begin, int64_t end) {
    Rotation<A> rotation;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / p.length, token = item % p.length;
      const int64_t slot = kv_slot(p.start + token, p.sink, p.capacity);
      if (p.positions != nullptr) fill_rotation(rotation, p, p.positions + b * p.position_batch_stride + token * 3);
      for (int64_t l = 0; l < p.layer_count; ++l) {
        const KvLayer& layer = p.layers[l];
        for (int64_t h = 0; h < p.heads; ++h) {
          const auto at = [&](const int64_t* strides, int64_t row) {
            return b * strides[0] + h * strides[1] + row * strides[2];
          };
          write_key<T>((const T*)layer.k + at(layer.k_strides, token),
                       (T*)layer.k_cache + at(layer.k_cache_strides, slot), (const A*)layer.k_weight,
                       p.positions == nullptr ? nullptr : &rotation, p);
          copy_row((const T*)layer.v + at(layer.v_strides, token), (T*)layer.v_cache + at(layer.v_cache_strides, slot),
                   p.head_dim);
        }
      }
    }
  });
}

void append_any(const KvAppendParams& p) { VIDEOAR_DISPATCH(p.dtype, append, p) }

}  // namespace

const KvCacheKernels kv_cache_kernels = {append_any};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
