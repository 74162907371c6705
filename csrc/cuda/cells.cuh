// How the threads of a block share a row: each owns the same columns of every row. Rows that are whole packs of 16
// bytes are held in registers, kPacks packs a thread; any other row (kPacks = 0) is read where it lies.
#pragma once

#include "element.cuh"

namespace videoar {
namespace cuda {

template <class T>
constexpr int kPackOf = 16 / int(sizeof(T));

// f(i, j, column) for the thread's columns; i and j are compile-time indices of its registers.
template <int kPack, int kPacks, class F>
__device__ inline void for_cells(int64_t width, const F& f) {
  if constexpr (kPacks == 0) {
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x) f(0, 0, c);
  } else {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t first = int64_t(i * blockDim.x + threadIdx.x) * kPack;
      if (first < width) {
#pragma unroll
        for (int j = 0; j < kPack; ++j) f(i, j, first + j);
      }
    }
  }
}

// A row of `S` as numbers of type A; `missing` everywhere where the row is null.
template <class S, class A, int kPack, int kPacks>
struct RowCells {
  A value[kPacks == 0 ? 1 : kPacks][kPacks == 0 ? 1 : kPack];
  const S* row;
  A missing;

  __device__ RowCells(const S* source, int64_t width, A otherwise = A(0)) : row(source), missing(otherwise) {
    if constexpr (kPacks > 0) {
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        const int64_t first = int64_t(i * blockDim.x + threadIdx.x) * kPack;
        if (row != nullptr && first < width) {
          const Pack<S, kPack> pack = *(const Pack<S, kPack>*)(row + first);
#pragma unroll
          for (int j = 0; j < kPack; ++j) value[i][j] = widen<A>(pack.value[j]);
        } else {
#pragma unroll
          for (int j = 0; j < kPack; ++j) value[i][j] = missing;
        }
      }
    }
  }

  __device__ A at(int i, int j, int64_t column) const {
    if constexpr (kPacks > 0) return value[i][j];
    return row == nullptr ? missing : widen<A>(row[column]);
  }
};

// out[column] = f(i, j, column), rounded once.
template <class T, class A, int kPack, int kPacks, class F>
__device__ inline void write_cells(T* out, int64_t width, const F& f) {
  if constexpr (kPacks == 0) {
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x) out[c] = narrow<T, A>(f(0, 0, c));
  } else {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t first = int64_t(i * blockDim.x + threadIdx.x) * kPack;
      if (first < width) {
        Pack<T, kPack> pack;
#pragma unroll
        for (int j = 0; j < kPack; ++j) pack.value[j] = narrow<T, A>(f(i, j, first + j));
        *(Pack<T, kPack>*)(out + first) = pack;
      }
    }
  }
}

// A pack of a row that nobody writes meanwhile, from `column` on: so it may be on its way before earlier results are
// stored. `missing` everywhere where the row is null.
template <class A, int kPack, class S>
__device__ inline void read_pack(A (&value)[kPack], const S* row, int64_t column, A missing = A(0)) {
  if (row == nullptr) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) value[j] = missing;
    return;
  }
  const Pack<S, kPack> pack = read_only((const Pack<S, kPack>*)(row + column));
#pragma unroll
  for (int j = 0; j < kPack; ++j) value[j] = widen<A>(pack.value[j]);
}

// f(i, column, value) makes the thread's packs of a row, which are rounded once.
template <class T, class A, int kPack, int kPacks, class F>
__device__ inline void write_packs(T* out, int64_t width, const F& f) {
  if constexpr (kPacks == 0) {
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
      A value[1];
      f(0, c, value);
      out[c] = narrow<T, A>(value[0]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t first = int64_t(i * blockDim.x + threadIdx.x) * kPack;
      if (first < width) {
        A value[kPack];
        f(i, first, value);
        Pack<T, kPack> pack;
#pragma unroll
        for (int j = 0; j < kPack; ++j) pack.value[j] = narrow<T, A>(value[j]);
        *(Pack<T, kPack>*)(out + first) = pack;
      }
    }
  }
}

// A sum for each of the thread's columns: in registers, or (kPacks = 0) in `memory`, which no other thread touches.
template <class A, int kPack, int kPacks>
struct CellSums {
  A value[kPacks == 0 ? 1 : kPacks][kPacks == 0 ? 1 : kPack];
  A* memory;

  __device__ CellSums(A* memory, int64_t width) : memory(memory) { clear(width); }

  __device__ void clear(int64_t width) {
    if constexpr (kPacks > 0) {
#pragma unroll
      for (int i = 0; i < kPacks; ++i)
#pragma unroll
        for (int j = 0; j < kPack; ++j) value[i][j] = A(0);
    } else if (memory != nullptr) {
      for (int64_t c = threadIdx.x; c < width; c += blockDim.x) memory[c] = A(0);
    }
  }
  __device__ void add(int i, int j, int64_t column, A x) {
    if constexpr (kPacks > 0) {
      value[i][j] += x;
    } else {
      memory[column] += x;
    }
  }
  __device__ A at(int i, int j, int64_t column) const {
    if constexpr (kPacks > 0) return value[i][j];
    return memory[column];
  }
};

// Threads of a block for rows of `width`, whole warps.
inline int row_threads(int64_t width, int pack, int packs, int most) {
  const int64_t units = packs == 0 ? width : (width + int64_t(pack) * packs - 1) / (int64_t(pack) * packs);
  const int64_t threads = (units + kWarp - 1) / kWarp * kWarp;
  return int(threads < most ? threads : most);
}

}  // namespace cuda
}  // namespace videoar
