// Forward in bfloat16 pairs: as attention.cpp, but scores are dot products of pairs along head_dim, and sums run over
// pairs of keys, whose values are packed that way and whose weights are rounded to bfloat16. Keys 2i and 2i + 1 are a
// pair wherever a range starts; of a pair that a range cuts, the half outside weighs nothing.
#include "attention_pairs.h"

#include "attention_heads.h"

#if defined(VIDEOAR_BF16_DOT)

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

constexpr int kColumns = 96;     // keys of a chunk: its scores and the queries fit the first-level cache
constexpr float kHeadroom = 32;  // 2^32 times the longest sequence is far from overflow
constexpr float kNothingSeen = -1e30f;
constexpr float kLeastScale = 1e-30f;  // so that a scale of 0 does not meet a masked score's infinity
constexpr double kLog2E = 1.4426950408889634;

thread_local Workspace workspace, head_workspace;

struct PairHead {
  const bf16* keys;
  int64_t key_stride;
  const uint32_t* panels;
  int64_t stride;
  const uint8_t* finite;
};

// Panels of pairs of rows, (0, 1), (2, 3) and so on, an odd last one with zeros. Returns whether all is finite.
__attribute__((noinline)) bool pack_pair_panels(uint32_t* to, int64_t stride, const bf16* rows, int64_t row_stride,
                                                int64_t count, int64_t width) {
  Vec<float> sum{};
  float rest = 0;
  for (int64_t i = 0; i < count; i += 2, to += kPanel) {
    const bf16 *low = rows + i * row_stride, *high = i + 1 < count ? low + row_stride : nullptr;
    int64_t d = 0;
    for (; d + kLanes<float> <= width; d += kLanes<float>) {
      const Vec<float> a = load(low + d), b = high ? load(high + d) : Vec<float>{};
      sum += a * 0.0f + b * 0.0f;
      const VecU32 pairs = (VecU32)a >> 16 | (VecU32)b;
      for (int c = 0; c < kLanes<float>; c += kPanel)
        std::memcpy(to + (d + c) / kPanel * stride, (const uint32_t*)&pairs + c, kPanel * sizeof(uint32_t));
    }
    for (; d < width; ++d) {
      const bf16 a = low[d], b = high ? high[d] : bf16{0};
      rest += to_float(a) * 0 + to_float(b) * 0;
      to[d / kPanel * stride + d % kPanel] = a.bits | uint32_t(b.bits) << 16;
    }
    for (; d % kPanel; ++d) to[d / kPanel * stride + d % kPanel] = 0;
  }
  return reduce_add<float>(sum) + rest == 0;
}

// A copy with a zero after an odd width, or rows where they lie if that is as good.
inline void copy_keys(bf16* to, const bf16* rows, int64_t row_stride, int64_t count, int64_t width) {
  const int64_t stride = 2 * pair_width(width);
  for (int64_t i = 0; i < count; ++i, to += stride) {
    std::memcpy(to, rows + i * row_stride, size_t(width) * sizeof(bf16));
    if (width % 2) to[width] = bf16{0};
  }
}

struct PairStore {
  using View = PairHead;
  int64_t keys, width, blocks, row_size, note_size;
  int64_t bytes;
  bool copies_keys;
  char* memory = nullptr;

  explicit PairStore(const AttentionParams& p)
      : keys(p.shape.k_len),
        width(p.shape.head_dim),
        blocks((keys + kPackBlock - 1) / kPackBlock),
        copies_keys(width % 2 || p.k.row > 2 * width) {
    row_size = copies_keys ? Carver<uint32_t>::rounded(keys * pair_width(width)) : 0;
    note_size = Carver<uint32_t>::rounded(blocks);
    bytes = (row_size + note_size + panels(width) * panel_stride<uint32_t>((keys + 1) / 2)) * int64_t(sizeof(uint32_t));
  }

  View head(const AttentionParams& p, int64_t slot, int64_t b, int64_t kv_head) const {
    const uint32_t* at = (const uint32_t*)(memory + slot * bytes);
    return {copies_keys ? (const bf16*)at : rows_of<bf16>(p.k, b, kv_head),
            copies_keys ? 2 * pair_width(width) : p.k.row, at + row_size + note_size,
            panel_stride<uint32_t>((keys + 1) / 2), (const uint8_t*)(at + row_size)};
  }

  void pack(const AttentionParams& p, int64_t slot, int64_t b, int64_t kv_head, int64_t block) const {
    const int64_t begin = block * kPackBlock, count = keys - begin < kPackBlock ? keys - begin : kPackBlock;
    uint32_t* at = (uint32_t*)(memory + slot * bytes);
    if (copies_keys)
      copy_keys((bf16*)(at + begin * pair_width(width)), rows_of<bf16>(p.k, b, kv_head) + begin * p.k.row, p.k.row,
                count, width);
    ((uint8_t*)(at + row_size))[block] =
        pack_pair_panels(at + row_size + note_size + begin / 2 * kPanel, panel_stride<uint32_t>((keys + 1) / 2),
                         rows_of<bf16>(p.v, b, kv_head) + begin * p.v.row, p.v.row, count, width);
  }
};

// Pairs of the chunk's keys: their panels, which lanes see them, and which halves of the outermost pairs count.
struct Pairs {
  const uint32_t* panels;
  int64_t stride;
  int count;
  uint64_t lanes;
  uint32_t first, last;  // masks
  bool unseen;           // a NaN or infinity is among them that some lane must not see, or none
};

template <int kVectors>
struct QueryTile {
  static constexpr int kWidth = kVectors * kLanes<float>;
  const uint32_t* query;  // [pairs of head_dim][kWidth]
  float* sum;             // [head_dim up to a whole panel][kWidth], weighted values
  float* scores;          // [kColumns][kWidth], not scaled
  uint32_t* weights;      // [kColumns / 2][kWidth], in the same place
  int64_t head_dim;
  float scale;  // for base 2, positive
  // The row sum of the rounded weights divides; the lse needs the sum of the weights themselves.
  Vec<float> reference[kVectors], total[kVectors], rounded_total[kVectors];

  const bf16* keys;
  int64_t stride;
  const LaneMasks<float, kVectors>* seen;

  // kRows keys' scores into rows of `to`.
  template <int kRows>
  void block(float* to, int64_t start) {
    Vec<float> s[kRows][kVectors];
    clear<float, kVectors, kRows>(s);
    dot_add<kVectors, kRows>(s, keys + start * stride, stride, 2, query, kWidth, pair_width(head_dim));
    if (seen) {
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) s[m][j] = seen->m[j] ? s[m][j] : splat(-__builtin_inff());
    }
    store_block<float, kVectors, kRows>(to + start * kWidth, kWidth, s);
  }

  __attribute__((noinline)) void score(float* to, int count) {
    constexpr int kRows = kPairRows<kVectors>;
    int start = 0;
    for (; start + kRows <= count; start += kRows) block<kRows>(to, start);
    if constexpr (kRows > 4) {
      for (; start + 4 <= count; start += 4) block<4>(to, start);
    }
    switch (count - start) {
      case 3: return block<3>(to, start);
      case 2: return block<2>(to, start);
      case 1: return block<1>(to, start);
    }
  }

  void hide(int row) {
    for (int j = 0; j < kVectors; ++j) store(scores + row * kWidth + j * kLanes<float>, splat(-__builtin_inff()));
  }

  // Turns the scores of `count` rows, an even number, into pairs of weights.
  __attribute__((noinline)) void weigh(int count) {
    Vec<float> top[kVectors];
    for (int j = 0; j < kVectors; ++j) top[j] = load(scores + j * kLanes<float>);
    for (int i = 1; i < count; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) top[j] = vmax<float>(top[j], load(scores + i * kWidth + j * kLanes<float>));
    Mask<float> exceeds{};
    for (int j = 0; j < kVectors; ++j) exceeds |= top[j] > reference[j] + kHeadroom / scale;
    if (any(exceeds)) raise(top);
    Vec<float> shift[kVectors], added[kVectors], rounded[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      shift[j] = reference[j] * scale;
      added[j] = rounded[j] = Vec<float>{};
    }
    const float factor = scale;
    const float* from = scores;
    uint32_t* to = weights;
    for (int i = 0; i < count; i += 2, from += 2 * kWidth, to += kWidth)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        const Vec<float> low = exp2_coarse(load(from + j * kLanes<float>) * factor - shift[j]);
        const Vec<float> high = exp2_coarse(load(from + kWidth + j * kLanes<float>) * factor - shift[j]);
        added[j] += low + high;
        const VecU32 pair = to_pairs(low, high);
        rounded[j] = dot_pairs(rounded[j], pair, kPairOfOnes - VecU32{});
        store_pairs(to + j * kLanes<float>, pair);
      }
    for (int j = 0; j < kVectors; ++j) {
      total[j] += added[j];
      rounded_total[j] += rounded[j];
    }
  }

  // Raises the reference of the lanes that need it and rescales all that was summed under the old one.
  __attribute__((noinline)) void raise(const Vec<float> (&tops)[kVectors]) {
    for (int j = 0; j < kVectors; ++j) {
      const Mask<float> higher = tops[j] > reference[j] + kHeadroom / scale;
      const Vec<float> factor = higher ? exp2_weight((reference[j] - tops[j]) * scale) : splat(1.0f);
      reference[j] = higher ? tops[j] : reference[j];
      total[j] *= factor;
      rounded_total[j] *= factor;
      for (int64_t d = 0; d < head_dim; ++d) {
        float* x = sum + d * kWidth + j * kLanes<float>;
        store(x, load(x) * factor);
      }
    }
  }

  // sum[d][:] += sum over pairs of values[pair][d] . weights[pair][:]. kMasked: some run is `unseen`.
  template <bool kMasked>
  __attribute__((noinline)) void add(const Pairs* runs, int run_count) {
    constexpr int kRows = kVectors <= 2 ? 8 : 4;
    static_assert(kPanel % kRows == 0);
    float* at = sum;
    for (int64_t d = 0; d < head_dim; d += kRows, at += kRows * kWidth) {
      const uint32_t* w = weights;
      for (const Pairs* run = runs; run < runs + run_count; w += run->count * kWidth, ++run) {
        const uint32_t* values = run->panels + d / kPanel * run->stride + d % kPanel;
        Vec<float> c[kRows][kVectors];
        clear<float, kVectors, kRows>(c);
        if (kMasked && run->unseen) {
          const LaneMasks<float, kVectors> lanes(run->lanes);
          for (int t = 0; t < run->count; ++t)
            for (int m = 0; m < kRows; ++m) {
              const uint32_t half = (t == 0 ? run->first : ~0u) & (t == run->count - 1 ? run->last : ~0u);
              for (int j = 0; j < kVectors; ++j)
                c[m][j] = dot_pairs(c[m][j], (VecU32)lanes.m[j] & (values[t * kPanel + m] & half),
                                    load_pairs(w + t * kWidth + j * kLanes<float>));
            }
        } else {
          dot_add<kVectors, kRows>(c, values, 1, kPanel, w, kWidth, run->count);
        }
        __asm__ volatile("" ::: "memory");  // the sums are read here, not kept through the loop
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
          for (int j = 0; j < kVectors; ++j) {
            float* x = at + m * kWidth + j * kLanes<float>;
            store(x, load(x) + c[m][j]);
          }
      }
    }
  }
};

template <int kVectors>
void attend(const AttentionParams& p, const Tile& tile, int64_t b, int64_t h, const PairHead* head) {
  constexpr int kWidth = kVectors * kLanes<float>;
  const int64_t width = p.shape.head_dim, words = pair_width(width), full_width = panels(width) * kPanel;
  const int64_t kv_head = h / (p.shape.heads / p.shape.kv_heads);
  const bool copies_keys = !head && width % 2;
  const int64_t value_stride = panel_stride<uint32_t>(kColumns / 2);
  using Carve = Carver<uint32_t>;
  const int64_t query_size = Carve::rounded(words * kWidth), sum_size = Carve::rounded(full_width * kWidth);
  const int64_t score_size = Carve::rounded(kColumns * kWidth);
  const int64_t key_size = copies_keys ? Carve::rounded(kColumns * words) : 0;
  const int64_t value_size = head ? 0 : panels(width) * value_stride;
  Carve memory{(uint32_t*)workspace.reserve(sizeof(uint32_t) *
                                            size_t(query_size + sum_size + score_size + key_size + value_size))};
  uint32_t* query = memory.take(query_size);
  QueryTile<kVectors> state{};
  state.query = query;
  state.sum = (float*)memory.take(sum_size);
  state.weights = memory.take(score_size);
  state.scores = (float*)state.weights;
  state.head_dim = width;
  uint32_t* key_buffer = memory.take(key_size);
  uint32_t* value_buffer = memory.take(value_size);

  const float scale = float(p.shape.scale * kLog2E), size = scale < 0 ? -scale : scale;
  state.scale = size < kLeastScale ? kLeastScale : size;
  const int count = tile.end - tile.begin;
  pack_pairs(query, kWidth, rows_of<bf16>(p.q, b, h) + tile.begin * p.q.row, p.q.row, count, width);
  if (scale < 0)
    for (int64_t i = 0; i < words * kWidth; ++i) query[i] ^= 0x80008000u;
  for (int64_t i = 0; i < full_width * kWidth; ++i) state.sum[i] = 0;
  for (int j = 0; j < kVectors; ++j) state.reference[j] = splat(kNothingSeen);

  const bf16* keys = rows_of<bf16>(p.k, b, kv_head);
  const bf16* values = rows_of<bf16>(p.v, b, kv_head);
  const uint64_t live = live_lanes(tile);
  Pairs runs[kColumns / 2];
  int run_count = 0, filled = 0;
  bool masked = false;  // some run of the chunk is `unseen`
  const auto flush = [&] {
    state.weigh(filled);
    masked ? state.template add<true>(runs, run_count) : state.template add<false>(runs, run_count);
    run_count = filled = 0;
    masked = false;
  };
  for (int32_t index = tile.first; index < tile.last; ++index) {
    const TileSegment& segment = p.plan.segments[index];
    const LaneMasks<float, kVectors> seen(segment.lanes);
    const bool partial = (segment.lanes & live) != live;
    state.seen = partial ? &seen : nullptr;
    for (int64_t column = segment.begin; column < segment.end;) {
      const int odd = head ? int(column & 1) : 0;
      const int64_t space = kColumns - filled - odd, left = segment.end - column;
      const int n = int(left < space ? left : space), rows = (odd + n + 1) / 2 * 2;
      float* to = state.scores + (filled + odd) * kWidth;
      if (odd) state.hide(filled);
      if (odd + n < rows) state.hide(filled + odd + n);
      Pairs& run = runs[run_count++];
      run = {nullptr, 0, rows / 2, segment.lanes, odd ? 0xffff0000u : ~0u, odd + n < rows ? 0xffffu : ~0u, false};
      if (head) {
        state.keys = head->keys + column * head->key_stride;
        state.stride = head->key_stride;
        run.panels = head->panels + column / 2 * kPanel;
        run.stride = head->stride;
        if (partial || odd || odd + n < rows) {
          const int64_t end = column - odd + rows;
          run.unseen = !all_of(head->finite, column - odd, end < p.shape.k_len ? end : p.shape.k_len);
        }
      } else {
        state.keys = keys + column * p.k.row;
        state.stride = p.k.row;
        if (copies_keys) {
          copy_keys((bf16*)key_buffer, state.keys, p.k.row, n, width);
          state.keys = (const bf16*)key_buffer;
          state.stride = 2 * words;
        }
        uint32_t* packed = value_buffer + filled / 2 * kPanel;
        const bool finite = pack_pair_panels(packed, value_stride, values + column * p.v.row, p.v.row, n, width);
        run.panels = packed;
        run.stride = value_stride;
        run.unseen = partial && !finite;
      }
      masked |= run.unseen;
      state.score(to, n);
      filled += rows;
      column += n;
      if (filled == kColumns) flush();
    }
  }
  if (filled) flush();

  float inverse[kWidth];
  float* lse = (float*)p.lse + (b * p.shape.heads + h) * p.shape.q_len + tile.begin;
  for (int i = 0; i < count; ++i) {
    const int j = i / kLanes<float>, lane = i % kLanes<float>;
    const float total = state.total[j][lane];
    inverse[i] = total == 0 ? 0 : 1 / state.rounded_total[j][lane];
    lse[i] = total == 0 ? -__builtin_inff()
                        : (state.reference[j][lane] * state.scale + __builtin_log2f(total)) * float(1 / kLog2E);
  }
  for (int i = count; i < kWidth; ++i) inverse[i] = 0;
  unpack(rows_of<bf16>(p.out, b, h) + tile.begin * p.out.row, p.out.row, state.sum, kWidth, count, width, inverse);
}

}  // namespace

void attention_forward_pairs(const AttentionParams& p) {
  PairStore store(p);
  for_tiles(p, store, head_workspace, [&](const Tile& tile, int64_t b, int64_t h, const PairHead* head) {
    with_pair_vectors(tile.end - tile.begin, [&]<int kVectors>() { attend<kVectors>(p, tile, b, h, head); });
  });
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar

#endif
