// What the pyramid's kernels share. A thread works on eight channels of a pixel or token, and their byte of bits.
#pragma once

#include "../resample_taps.h"
#include "octet.cuh"
#include "pyramid.h"

namespace videoar {
namespace cuda {

constexpr int kPyramidThreads = 256;

// A pyramid's sizes as kernels get them.
struct Grid {
  int height[kPyramidScales], width[kPyramidScales];
  int first[kPyramidScales];  // a scale's first token in a frame
  int count, full_height, full_width, octets;
  int pixels;
  int64_t tokens, flat_frames, frames, dim;

  __device__ int inside(int octet) const { return dim - 8 * octet < 8 ? int(dim - 8 * octet) : 8; }
};

inline Grid grid_of(const PyramidShape& s) {
  Grid g{};
  int first = 0;
  for (int64_t k = 0; k < s.count; ++k) {
    g.height[k] = int(s.scales[2 * k]);
    g.width[k] = int(s.scales[2 * k + 1]);
    g.first[k] = first;
    first += g.height[k] * g.width[k];
  }
  g.count = int(s.count), g.full_height = int(s.height), g.full_width = int(s.width);
  g.octets = int((s.dim + 7) / 8), g.pixels = int(s.height * s.width);
  g.tokens = s.tokens, g.flat_frames = s.batch * s.frames, g.frames = s.frames, g.dim = s.dim;
  return g;
}

// Why these kernels cannot take a pyramid, or null: they count its pixels and tokens in 32 bits.
inline const char* unfit(const PyramidShape& s) {
  constexpr int64_t kMostSide = 16384, kMostTokens = 1 << 28;
  if (s.count > kPyramidScales) return "pyramid: more than 32 scales";
  if (s.height > kMostSide || s.width > kMostSide || s.height * s.width > kMostTokens || s.tokens > kMostTokens) {
    return "pyramid: planes too large for the GPU's kernels";
  }
  return nullptr;
}

inline bool empty(const PyramidShape& s) { return s.batch * s.frames * s.dim == 0; }

// Eight channels.
template <class A>
using Octet = Pack<A, 8>;

template <class A>
__device__ inline Octet<A> zeros() {
  Octet<A> x;
#pragma unroll
  for (int c = 0; c < 8; ++c) x.value[c] = A(0);
  return x;
}

// x += factor * y
template <class A>
__device__ inline void add(Octet<A>& x, const Octet<A>& y, A factor = A(1)) {
#pragma unroll
  for (int c = 0; c < 8; ++c) x.value[c] += factor * y.value[c];
}

template <class A>
__device__ inline Octet<A> between(const Octet<A>& a, const Octet<A>& b, A weight) {
  Octet<A> x;
#pragma unroll
  for (int c = 0; c < 8; ++c) x.value[c] = a.value[c] + weight * (b.value[c] - a.value[c]);
  return x;
}

// `vector`: tensors of T whose octets all lie at multiples of 16 bytes.
template <class A, class T>
__device__ inline Octet<A> load_channels(const T* p, int count, bool vector) {
  Octet<A> x;
  if (vector) {
    load_octet<true>(x.value, p, 8);
  } else {
    load_octet<false>(x.value, p, count);
  }
  return x;
}
template <class A, class T>
__device__ inline void store_channels(T* p, const Octet<A>& x, int count, bool vector) {
  const auto at = [&](int c) { return narrow<T, A>(x.value[c]); };
  if (vector) {
    store_octet<true>(p, 8, at);
  } else {
    store_octet<false>(p, count, at);
  }
}

template <class A>
__device__ inline Octet<A> code_of(unsigned bits, A amplitude) {
  Octet<A> x;
#pragma unroll
  for (int c = 0; c < 8; ++c) x.value[c] = bits >> c & 1 ? amplitude : -amplitude;
  return x;
}

template <class A>
__device__ inline A code_amplitude(int64_t dim) {
  return A(1 / sqrt(double(dim)));
}

// The mean of get(pixel) over the bin of token (i, j) of scale k, taken by `lanes` neighbouring threads together, all
// of which get it; a power of two. Every thread of the warp calls it.
template <class A, class F>
__device__ inline Octet<A> area_mean(const Grid& g, int k, int i, int j, int lane, int lanes, const F& get) {
  const Bin<int> rows = area_bin(i, g.height[k], g.full_height), columns = area_bin(j, g.width[k], g.full_width);
  const int height = rows.end - rows.begin, width = columns.end - columns.begin;
  Octet<A> sum = zeros<A>();
  for (int n = lane; n < height * width; n += lanes) {
    add(sum, get((rows.begin + n / width) * g.full_width + columns.begin + n % width));
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int c = 0; c < 8; ++c) sum.value[c] += __shfl_xor_sync(0xffffffffu, sum.value[c], offset);
  }
#pragma unroll
  for (int c = 0; c < 8; ++c) sum.value[c] = sum.value[c] / A(height) / A(width);
  return sum;
}

// get(token of scale k) up-sampled to a pixel.
template <class A, class F>
__device__ inline Octet<A> bilinear(const Grid& g, int k, int row, int column, const F& get) {
  const Tap<A, int> y = bilinear_tap<A>(row, g.height[k], g.full_height);
  const Tap<A, int> x = bilinear_tap<A>(column, g.width[k], g.full_width);
  const int top = y.first * g.width[k], bottom = y.second * g.width[k];
  return between(between(get(top + x.first), get(top + x.second), x.weight),
                 between(get(bottom + x.first), get(bottom + x.second), x.weight), y.weight);
}

// Where octets of pixels lie in a strided tensor.
template <class T>
struct PlanesView {
  const T* data;
  int64_t batch, frame, row, column;
  bool vector;

  __device__ const T* plane(const Grid& g, int64_t flat_frame, int octet) const {
    return data + flat_frame / g.frames * batch + flat_frame % g.frames * frame + 8 * octet;
  }
};

template <class T>
inline PlanesView<T> view_of(const Planes& p, int64_t dim) {
  const int64_t strides = p.batch | p.frame | p.row | p.column;
  const bool vector = dim % 8 == 0 && aligned_to_16(p.data) && strides * int64_t(sizeof(T)) % 16 == 0;
  return {(const T*)p.data, p.batch, p.frame, p.row, p.column, vector};
}

}  // namespace cuda
}  // namespace videoar
