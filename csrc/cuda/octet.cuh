// Eight elements of a token and their byte: what one thread of the bit kernels works on.
#pragma once

#include "../philox.h"
#include "element.cuh"

namespace videoar {
namespace cuda {

constexpr int kBitThreads = 256;

// A power of two of threads shares a token, a byte each; tokens of more bytes take several turns.
struct Octets {
  int lanes, lane;
  int64_t bytes;

  __device__ explicit Octets(int64_t dim) : lanes(1), bytes((dim + 7) / 8) {
    while (lanes < kWarp && lanes < bytes) lanes *= 2;
    lane = int(threadIdx.x) % lanes;
  }
  __device__ int group() const { return int(threadIdx.x) / lanes; }
  __device__ int groups() const { return int(blockDim.x) / lanes; }
};

inline int octet_lanes(int64_t dim) {
  int lanes = 1;
  while (lanes < kWarp && lanes < (dim + 7) / 8) lanes *= 2;
  return lanes;
}

// f(row, byte, count) for every byte, with the number of elements in it.
template <class F>
__device__ inline void each_octet(int64_t rows, int64_t dim, const F& f) {
  const Octets at(dim);
  const int64_t step = int64_t(gridDim.x) * at.groups();
  for (int64_t row = int64_t(blockIdx.x) * at.groups() + at.group(); row < rows; row += step)
    for (int64_t byte = at.lane; byte < at.bytes; byte += at.lanes)
      f(row, byte, dim - 8 * byte < 8 ? int(dim - 8 * byte) : 8);
}

inline unsigned octet_grid(int64_t rows, int64_t dim) {
  const int groups = kBitThreads / octet_lanes(dim);
  return grid_of((rows + groups - 1) / groups);
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

// Whether octets of every row can be moved in accesses of 16 bytes.
template <class T>
inline bool octets_aligned(const void* p, int64_t stride, int64_t dim) {
  return dim % 8 == 0 && aligned_to_16(p) && stride * int64_t(sizeof(T)) % 16 == 0;
}

}  // namespace cuda
}  // namespace videoar
