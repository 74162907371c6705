// One key head as the forward reads it: keys as rows and values as panels, both in the accumulator's type. Made once
// per call where enough tiles of queries share it, else column by column as a tile goes.
#pragma once

#include "attention_tile.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// A panel is kPanel columns of head_dim, key after key, so that a register block of values reads memory in order.
constexpr int kPanel = 8;

inline int64_t panels(int64_t width) { return (width + kPanel - 1) / kPanel; }

// Elements from one panel of `keys` keys to the next: an odd number of cache lines, so that the panels of one key
// don't fall on the same place of the cache.
template <class A>
inline int64_t panel_stride(int64_t keys) {
  constexpr int64_t line = 64 / int64_t(sizeof(A));
  return ((keys * kPanel + line - 1) / line | 1) * line;
}

// Panels of `count` rows, the last one filled up with zeros. Returns whether every element is finite.
template <class T>
__attribute__((noinline)) bool pack_panels(Accumulator<T>* to, int64_t stride, const T* rows, int64_t row_stride,
                                           int64_t count, int64_t width) {
  using A = Accumulator<T>;
  Vec<A> sum{};
  A rest = 0;
  for (int64_t i = 0; i < count; ++i, to += kPanel) {
    const T* row = rows + i * row_stride;
    int64_t d = 0;
    for (; d + kLanes<A> <= width; d += kLanes<A>) {
      const Vec<A> x = load(row + d);
      sum += x * A(0);
      constexpr int part = kLanes<A> < kPanel ? kLanes<A> : kPanel;
      for (int c = 0; c < kLanes<A>; c += part)
        std::memcpy(to + (d + c) / kPanel * stride + (d + c) % kPanel, (const A*)&x + c, part * sizeof(A));
    }
    for (; d < width; ++d) {
      const A x = to_float(row[d]);
      rest += x * 0;
      to[d / kPanel * stride + d % kPanel] = x;
    }
    for (; d % kPanel; ++d) to[d / kPanel * stride + d % kPanel] = 0;
  }
  return reduce_add<A>(sum) + rest == 0;
}

// Rows may be read where they lie if they have the right type and are not so far apart that each is on a page of its
// own.
template <class T>
inline bool read_in_place(int64_t row_stride, int64_t width) {
  return sizeof(T) == sizeof(Accumulator<T>) && row_stride <= 2 * width;
}

template <class A>
struct Head {
  static constexpr int64_t kBlock = 256;  // keys packed by one task
  const A* keys;
  int64_t key_stride;
  const A* panels;  // null: nothing is packed
  int64_t stride;
  const uint8_t* finite;  // of each block of kBlock values

  bool values_finite(int64_t begin, int64_t end) const {
    for (int64_t i = begin / kBlock; i * kBlock < end; ++i)
      if (!finite[i]) return false;
    return true;
  }
};

// The memory of packed heads, and where each part of it is.
template <class T>
struct HeadStore {
  using A = Accumulator<T>;
  int64_t keys, width, blocks, row_size, head_size, finite_size;
  bool copies_keys;
  A* memory = nullptr;

  HeadStore(const AttentionParams& p)
      : keys(p.shape.k_len),
        width(p.shape.head_dim),
        blocks((keys + Head<A>::kBlock - 1) / Head<A>::kBlock),
        copies_keys(!read_in_place<T>(p.k.row, width)) {
    row_size = copies_keys ? Carver<A>::rounded(keys * width) : 0;
    finite_size = Carver<A>::rounded(blocks);  // more than a byte each, for whole cache lines
    head_size = row_size + panels(width) * panel_stride<A>(keys) + finite_size;
  }

  Head<A> head(const AttentionParams& p, int64_t slot, int64_t b, int64_t kv_head) const {
    A* at = memory + slot * head_size;
    const A* rows = at;
    int64_t stride = width;
    if constexpr (sizeof(T) == sizeof(A)) {
      if (!copies_keys) {
        rows = rows_of<T>(p.k, b, kv_head);
        stride = p.k.row;
      }
    }
    return {rows, stride, at + row_size + finite_size, panel_stride<A>(keys), (const uint8_t*)(at + row_size)};
  }

  void pack(const AttentionParams& p, int64_t slot, int64_t b, int64_t kv_head, int64_t block) const {
    const int64_t begin = block * Head<A>::kBlock, rest = keys - begin;
    const int64_t count = rest < Head<A>::kBlock ? rest : Head<A>::kBlock;
    A* at = memory + slot * head_size;
    if (copies_keys) copy_rows(at + begin * width, rows_of<T>(p.k, b, kv_head) + begin * p.k.row, p.k.row, count);
    ((uint8_t*)(at + row_size))[block] =
        pack_panels(at + row_size + finite_size + begin * kPanel, panel_stride<A>(keys),
                    rows_of<T>(p.v, b, kv_head) + begin * p.v.row, p.v.row, count, width);
  }

  void copy_rows(A* to, const T* rows, int64_t row_stride, int64_t count) const {
    for (int64_t i = 0; i < count; ++i, to += width) {
      const T* row = rows + i * row_stride;
      int64_t d = 0;
      for (; d + kLanes<A> <= width; d += kLanes<A>) store(to + d, load(row + d));
      for (; d < width; ++d) to[d] = to_float(row[d]);
    }
  }
};

}  // namespace
}  // namespace VIDEOAR_ISA
}  // namespace videoar
