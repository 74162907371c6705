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

// Some keys of a chunk in pairs of its rows, and the queries that see them: vectors [first, first + vectors) of the
// tile, and among their lanes those in `lanes`.
struct Run {
  const bf16* keys;
  int64_t key_stride;
  const uint32_t* panels;
  int64_t panel_stride;
  int count, odd;  // keys, and whether the first one is the second of a pair
  int first, vectors;
  uint64_t lanes;  // from the first vector on
  bool partial;    // not all of those lanes see the keys
  bool unseen;     // a NaN or infinity is among the pairs' values that some lane must not see, or none

  int pairs() const { return (odd + count + 1) / 2; }
  bool cut() const { return odd || (odd + count) % 2; }
};

// Scores of a run, kVectors vectors of queries: into rows of the chunk, `width` apart.
template <int kVectors>
struct Score {
  const Run& run;
  const uint32_t* query;
  float* scores;
  int64_t width, head_dim;
  LaneMasks<float, kVectors> seen;

  template <int kRows>
  void block(int start) const {
    Vec<float> s[kRows][kVectors];
    clear<float, kVectors, kRows>(s);
    dot_add<kVectors, kRows>(s, run.keys + start * run.key_stride, run.key_stride, 2, query, width,
                             pair_width(head_dim));
    if (run.partial) {
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) s[m][j] = seen.m[j] ? s[m][j] : splat(-__builtin_inff());
    }
    store_block<float, kVectors, kRows>(scores + start * width, width, s);
  }
};

// sum[d][:] += sum over a run's pairs of values[pair][d] . weights[pair][:], kVectors vectors of queries.
template <int kVectors>
struct AddValues {
  static constexpr int kRows = kVectors <= 2 ? 8 : 4;
  static_assert(kPanel % kRows == 0);
  const Run& run;
  float* sum;
  const uint32_t* weights;
  int64_t width, head_dim;

  template <bool kMasked>
  __attribute__((noinline)) void all() const {
    float* to = sum;
    for (int64_t d = 0; d < head_dim; d += kRows, to += kRows * width) {
      const uint32_t* values = run.panels + d / kPanel * run.panel_stride + d % kPanel;
      Vec<float> c[kRows][kVectors];
      clear<float, kVectors, kRows>(c);
      if constexpr (kMasked) {
        add_seen(c, values);
      } else {
        dot_add<kVectors, kRows>(c, values, 1, kPanel, weights, width, run.pairs());
      }
      __asm__ volatile("" ::: "memory");  // the sums are read here, not kept through the loop
      add_block<float, kVectors, kRows>(to, width, c);
    }
  }

  void add_seen(Vec<float> (&c)[kRows][kVectors], const uint32_t* values) const {
    const LaneMasks<float, kVectors> seen(run.lanes);
    const int pairs = run.pairs();
    for (int t = 0; t < pairs; ++t) {
      uint32_t halves = ~0u;
      if (t == 0 && run.odd) halves &= 0xffff0000u;
      if (t == pairs - 1 && (run.odd + run.count) % 2) halves &= 0xffffu;
      for (int m = 0; m < kRows; ++m)
        for (int j = 0; j < kVectors; ++j)
          c[m][j] = dot_pairs(c[m][j], (VecU32)seen.m[j] & (values[t * kPanel + m] & halves),
                              load_pairs(weights + t * width + j * kLanes<float>));
    }
  }
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

  // Scores of the run's keys into the chunk's rows from `row` on; minus infinity for queries that don't see them, and
  // in the outer half of a pair that the run cuts.
  void score(const Run& run, int row) {
    if (run.odd) hide(row, 0, kVectors);
    row += run.odd;
    float* to = scores + row * kWidth;
    const int skipped = run.first * kLanes<float>;
    with_pair_vectors(run.vectors * kLanes<float>, [&]<int kActive>() {
      const LaneMasks<float, kActive> seen(run.lanes);
      const Score<kActive> work{run, query + skipped, to + skipped, kWidth, head_dim, seen};
      for_tight_blocks<kPairRows<kActive>>(run.count, work);
    });
    if (run.vectors < kVectors) {
      for (int i = 0; i < run.count; ++i) {
        hide(row + i, 0, run.first);
        hide(row + i, run.first + run.vectors, kVectors);
      }
    }
    if ((run.odd + run.count) % 2) hide(row + run.count, 0, kVectors);
  }

  void hide(int row, int first, int last) {
    for (int j = first; j < last; ++j) store(scores + row * kWidth + j * kLanes<float>, splat(-__builtin_inff()));
  }

  // `row` is in pairs.
  void add(const Run& run, int row) {
    const int skipped = run.first * kLanes<float>;
    with_pair_vectors(run.vectors * kLanes<float>, [&]<int kActive>() {
      const AddValues<kActive> work{run, sum + skipped, weights + row * kWidth + skipped, kWidth, head_dim};
      run.unseen ? work.template all<true>() : work.template all<false>();
    });
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
  Run runs[kColumns / 2];
  int run_count = 0, filled = 0;
  const auto flush = [&] {
    state.weigh(filled);
    int row = 0;
    for (int i = 0; i < run_count; row += runs[i++].pairs()) state.add(runs[i], row);
    run_count = filled = 0;
  };
  for (int32_t index = tile.first; index < tile.last; ++index) {
    const TileSegment& segment = p.plan.segments[index];
    for (int64_t column = segment.begin; column < segment.end;) {
      Run& run = runs[run_count++];
      run.odd = head ? int(column & 1) : 0;
      const int64_t space = kColumns - filled - run.odd, left = segment.end - column;
      run.count = int(left < space ? left : space);
      choose_lanes<float>(run, segment.lanes, live, kVectors);
      if (head) {
        run.keys = head->keys + column * head->key_stride;
        run.key_stride = head->key_stride;
        run.panels = head->panels + column / 2 * kPanel;
        run.panel_stride = head->stride;
        const int64_t begin = column - run.odd, end = begin + 2 * run.pairs();
        run.unseen =
            (run.partial || run.cut()) && !all_of(head->finite, begin, end < p.shape.k_len ? end : p.shape.k_len);
      } else {
        run.keys = keys + column * p.k.row;
        run.key_stride = p.k.row;
        if (copies_keys) {
          copy_keys((bf16*)key_buffer, run.keys, p.k.row, run.count, width);
          run.keys = (const bf16*)key_buffer;
          run.key_stride = 2 * words;
        }
        uint32_t* packed = value_buffer + filled / 2 * kPanel;
        const bool finite =
            pack_pair_panels(packed, value_stride, values + column * p.v.row, p.v.row, run.count, width);
        run.panels = packed;
        run.panel_stride = value_stride;
        run.unseen = run.partial && !finite;
      }
      state.score(run, filled);
      filled += 2 * run.pairs();
      column += run.count;
      if (filled == kColumns) flush();
    }
  }
  if (filled) flush();

  float inverse[kWidth];
  float* lse = !p.lse ? nullptr : (float*)p.lse + (b * p.shape.heads + h) * p.shape.q_len + tile.begin;
  for (int i = 0; i < count; ++i) {
    const int j = i / kLanes<float>, lane = i % kLanes<float>;
    const float total = state.total[j][lane];
    inverse[i] = total == 0 ? 0 : 1 / state.rounded_total[j][lane];
    if (!lse) continue;
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
