// How the norms' kernels find the rows of their tensors.
#pragma once

#include "norm.h"
#include "stream.h"
#include "wide.h"

namespace videoar {
namespace VIDEOAR_ISA {

// Row `row` of all samples' tokens.
template <class T>
static inline const T* row_of(const TokenRows& rows, int64_t row, int64_t length) {
  return (const T*)rows.data + row / length * rows.batch_stride + row % length * rows.token_stride;
}

template <class T>
static inline T* row_of(const OutputRows& rows, int64_t row, int64_t length) {
  return (T*)rows.data + row / length * rows.batch_stride + row % length * rows.token_stride;
}

// An output over its own input is in the cache already.
template <class T>
static inline bool streams(const void* out, const void* a, const void* b, const NormSizes& size) {
  return out != a && out != b && outgrows_cache(size.batch * size.length * size.width * int64_t(sizeof(T)));
}

// out[i] to out[i + n - 1] = f(i, n), for every step of a row.
template <class T, class F>
static inline void write_row(StreamWriter<T>& writer, T* out, int64_t width, const F& f) {
  if (kStep<T> * sizeof(T) == kVectorBytes && writer.streams() && uintptr_t(out) % kVectorBytes == 0 &&
      width % kStep<T> == 0) {
    for (int64_t i = 0; i < width; i += kStep<T>) {
      alignas(kVectorBytes) T step[kStep<T>];
      store_wide(step, f(i, kStep<T>), kStep<T>);
      stream_vector((char*)(out + i), (const char*)step);
    }
    return;
  }
  each_piece<T>(width, [&](int64_t first, int64_t count) {
    T* to = writer.at(out + first);
    each_step<T>(count, [&](int64_t j, int n) { store_wide(to + j, f(first + j, n), n); });
    writer.done(out + first, count);
  });
}

// The modulation row of a token, null where there is no modulation.
template <class M>
static inline const M* row_of(const Modulation& m, int64_t row, int64_t length) {
  if (m.data == nullptr) return nullptr;
  return (const M*)m.data + row / length * m.batch_stride + row % length / m.tokens * m.frame_stride;
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
