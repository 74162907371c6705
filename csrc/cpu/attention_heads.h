// One key head as the forward reads it: keys as rows and values as panels, both in the accumulator's type. Made once
// per call where enough tiles of queries share it, else chunk by chunk as a tile goes.
#pragma once

#include "attention_tile.h"
#include "parallel.h"

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

constexpr int64_t kPackBlock = 256;  // keys packed by one task, with one note of whether their values are finite

inline bool all_of(const uint8_t* finite, int64_t begin, int64_t end) {
  for (int64_t i = begin / kPackBlock; i * kPackBlock < end; ++i)
    if (!finite[i]) return false;
  return true;
}

template <class A>
struct Head {
  const A* keys;
  int64_t key_stride;
  const A* panels;
  int64_t stride;
  const uint8_t* finite;
};

// The memory of packed heads, and where each part of it is.
template <class T>
struct HeadStore {
  using A = Accumulator<T>;
  using View = Head<A>;
  int64_t keys, width, blocks, row_size, note_size;
  int64_t bytes;  // of a head
  bool copies_keys;
  char* memory = nullptr;

  explicit HeadStore(const AttentionParams& p)
      : keys(p.shape.k_len),
        width(p.shape.head_dim),
        blocks((keys + kPackBlock - 1) / kPackBlock),
        copies_keys(!read_in_place<T>(p.k.row, width)) {
    row_size = copies_keys ? Carver<A>::rounded(keys * width) : 0;
    note_size = Carver<A>::rounded(blocks);  // more than the byte each that they need
    bytes = (row_size + note_size + panels(width) * panel_stride<A>(keys)) * int64_t(sizeof(A));
  }

  View head(const AttentionParams& p, int64_t slot, int64_t b, int64_t kv_head) const {
    A* at = (A*)(memory + slot * bytes);
    const A* rows = at;
    int64_t stride = width;
    if constexpr (sizeof(T) == sizeof(A)) {
      if (!copies_keys) {
        rows = rows_of<T>(p.k, b, kv_head);
        stride = p.k.row;
      }
    }
    return {rows, stride, at + row_size + note_size, panel_stride<A>(keys), (const uint8_t*)(at + row_size)};
  }

  void pack(const AttentionParams& p, int64_t slot, int64_t b, int64_t kv_head, int64_t block) const {
    const int64_t begin = block * kPackBlock, count = keys - begin < kPackBlock ? keys - begin : kPackBlock;
    A* at = (A*)(memory + slot * bytes);
    if (copies_keys) {
      const T* rows = rows_of<T>(p.k, b, kv_head) + begin * p.k.row;
      for (int64_t i = 0; i < count; ++i) copy_row(at + (begin + i) * width, rows + i * p.k.row);
    }
    ((uint8_t*)(at + row_size))[block] =
        pack_panels(at + row_size + note_size + begin * kPanel, panel_stride<A>(keys),
                    rows_of<T>(p.v, b, kv_head) + begin * p.v.row, p.v.row, count, width);
  }

  void copy_row(A* to, const T* row) const {
    int64_t d = 0;
    for (; d + kLanes<A> <= width; d += kLanes<A>) store(to + d, load(row + d));
    for (; d < width; ++d) to[d] = to_float(row[d]);
  }
};

// The vectors of a tile that a run meets, given who sees its keys and which lanes are in use.
template <class A, class Run>
inline void choose_lanes(Run& run, uint64_t seen, uint64_t live, int tile_vectors) {
  run.first = 0;
  run.vectors = tile_vectors;
  run.lanes = seen;
  run.partial = (seen & live) != live;
  if (!run.partial) return;
  run.first = __builtin_ctzll(seen & live) / kLanes<A>;
  run.vectors = (63 - __builtin_clzll(seen & live)) / kLanes<A> + 1 - run.first;
  const int skipped = run.first * kLanes<A>;
  const int end = skipped + run.vectors * kLanes<A>;
  const uint64_t met = (end < 64 ? (uint64_t(1) << end) - 1 : ~uint64_t(0)) & live;
  run.lanes = seen >> skipped;
  run.partial = (seen & met) >> skipped != met >> skipped;
}

constexpr int64_t kSharers = 2;              // packing a head pays from this many tiles on that read it
constexpr int64_t kWave = int64_t(8) << 20;  // bytes of packed heads at a time, or one head

// Whether the tiles of a head read each of its keys kSharers times, on average.
inline bool packing_pays(const AttentionParams& p) {
  const int32_t tiles = p.plan.tile_ptr[p.plan.samples];
  int64_t columns = 0;
  for (int32_t i = 0; i < tiles; ++i) columns += p.plan.tiles[i].cost;
  return columns * (p.shape.heads / p.shape.kv_heads) >= kSharers * p.plan.samples * p.shape.k_len;
}

// attend(tile, b, h, head) for every tile of every query head; head is null, or the key head as `store` packed it.
template <class Store, class F>
inline void for_tiles(const AttentionParams& p, Store& store, Workspace& workspace, const F& attend) {
  const AttentionShape& shape = p.shape;
  const int64_t tiles = p.plan.tile_ptr[1] - p.plan.tile_ptr[0];  // the same in every sample
  const int64_t group = shape.heads / shape.kv_heads, pairs = shape.batch * shape.kv_heads;
  const int64_t work = group * tiles * shape.head_dim * (shape.k_len + 1);  // of a pair
  const auto attend_tile = [&](int64_t b, int64_t h, int64_t i, const typename Store::View* head) {
    attend(p.plan.tiles[p.plan.tile_ptr[p.plan.samples == 1 ? 0 : b] + i], b, h, head);
  };
  if (!packing_pays(p)) {
    parallel_items(pairs * group * tiles, pairs * work, [&](int64_t task) {
      const int64_t head = task / tiles;
      attend_tile(head / shape.heads, head % shape.heads, task % tiles, nullptr);
    });
    return;
  }
  int64_t wave = kWave / store.bytes;
  wave = wave < 1 ? 1 : wave < pairs ? wave : pairs;
  store.memory = (char*)workspace.reserve(size_t(wave * store.bytes));
  for (int64_t first = 0; first < pairs; first += wave) {
    const int64_t count = first + wave < pairs ? wave : pairs - first;
    parallel_items(count * store.blocks, count * work, [&](int64_t task) {
      const int64_t slot = task / store.blocks, pair = first + slot;
      store.pack(p, slot, pair / shape.kv_heads, pair % shape.kv_heads, task % store.blocks);
    });
    parallel_items(count * group * tiles, count * work, [&](int64_t task) {
      const int64_t slot = task / (group * tiles), pair = first + slot;
      const int64_t b = pair / shape.kv_heads, kv_head = pair % shape.kv_heads;
      const typename Store::View head = store.head(p, slot, b, kv_head);
      attend_tile(b, kv_head * group + task / tiles % group, task % tiles, &head);
    });
  }
  workspace.trim();
}

}  // namespace
}  // namespace VIDEOAR_ISA
}  // namespace videoar
