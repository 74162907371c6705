// Eight elements of a token and their byte: what one thread of the bit kernels works on.
#pragma once

#include "../philox.h"
#include "element.cuh"

namespace videoar {
namespace cuda {

constexpr int kBitThreads = 256;

// f(row, byte, count) for every byte, with the number of elements in it; neighbouring threads get neighbouring bytes,
// so that none is idle where a token's bytes are no power of two.
template <class F>
__device__ inline void each_octet(int64_t rows, int64_t dim, const F& f) {
  const int64_t bytes = (dim + 7) / 8, items = rows * bytes, step = int64_t(gridDim.x) * kBitThreads;
  for (int64_t item = int64_t(blockIdx.x) * kBitThreads + threadIdx.x; item < items; item += step) {
    const int64_t row = item / bytes, byte = item - row * bytes;
    f(row, byte, dim - 8 * byte < 8 ? int(dim - 8 * byte) : 8);
  }
}

inline unsigned octet_grid(int64_t rows, int64_t dim) {
  return grid_of((rows * ((dim + 7) / 8) + kBitThreads - 1) / kBitThreads);
}

// Elements as numbers; those past `count` are zero. kAligned: all eight are there, in accesses of 16 bytes.
template <bool kAligned, class A, class T>
__device__ inline void load_octet(A (&value)[8], const T* p, int count) {
  if constexpr (kAligned) {
    const Pack<T, 8> pack = *(const Pack<T, 8>*)p;
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = widen<A>(pack.value[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = i < count ? widen<A>(p[i]) : A(0);
  }
}

// f(i) at each element.
template <bool kAligned, class T, class F>
__device__ inline void store_octet(T* p, int count, const F& f) {
  if constexpr (kAligned) {
    Pack<T, 8> pack;
#pragma unroll
    for (int i = 0; i < 8; ++i) pack.value[i] = f(i);
    *(Pack<T, 8>*)p = pack;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) p[i] = f(i);
  }
}

// The random words of elements `first` to `first` + 7.
__device__ inline void draw_octet(uint32_t (&word)[8], uint64_t first, uint64_t offset, uint64_t seed) {
  if (first % 4 == 0) {
    const PhiloxBlock low = philox_block(first / 4, offset, seed), high = philox_block(first / 4 + 1, offset, seed);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      word[i] = low.word[i];
      word[4 + i] = high.word[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const PhiloxBlock block = philox_block((first + i) / 4, offset, seed);
      const int at = int((first + i) % 4);
      word[i] = at == 0 ? block.word[0] : at == 1 ? block.word[1] : at == 2 ? block.word[2] : block.word[3];
    }
  }
}

// Which of elements `first` to `first` + 7 an event of this threshold befalls.
__device__ inline unsigned events_octet(uint64_t first, uint32_t threshold, uint64_t offset, uint64_t seed) {
  if (threshold == 0) return 0;
  uint32_t word[8];
  draw_octet(word, first, offset, seed);
  const uint32_t last = (threshold << 8) - 1;  // word >> 8 is below the threshold exactly up to here
  unsigned events = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) events |= unsigned(word[i] <= last) << i;
  return events;
}

// Whether octets of every row can be moved in accesses of 16 bytes.
template <class T>
inline bool octets_aligned(const void* p, int64_t stride, int64_t dim) {
  return dim % 8 == 0 && aligned_to_16(p) && stride * int64_t(sizeof(T)) % 16 == 0;
}

}  // namespace cuda
}  // namespace videoar
