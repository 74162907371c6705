// Forward: online softmax over one tile of queries, a chunk of keys at a time: scores, then weights 2^(s - m), then
// weighted values. The reference m is raised only when a score exceeds it by more than kHeadroom, so that rescaling is
// rare.
#include "attention.h"

#include "attention_backward.h"
#include "attention_decode.h"
#include "attention_heads.h"
#include "attention_pairs.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

constexpr int kColumns = 128;     // keys of a chunk
constexpr double kHeadroom = 32;  // 2^32 times the longest sequence is far from overflow
constexpr double kNothingSeen = -1e30;
constexpr double kLog2E = 1.4426950408889634;

thread_local Workspace workspace, head_workspace;

// Some keys of a chunk, and the queries that see them: vectors [first, first + vectors) of the tile, and among their
// lanes those in `lanes`.
template <class A>
struct Run {
  const A* keys;
  int64_t key_stride;
  const A* panels;
  int64_t panel_stride;
  int count;
  int first, vectors;
  uint64_t lanes;  // from the first vector on
  bool partial;    // not all of those lanes see the keys
  bool unseen;     // and the values hold a NaN or infinity that 0 * x would let through
};

// Scores of a run, kVectors vectors of queries: into rows of the chunk, `width` apart.
template <class A, int kVectors>
struct Score {
  const Run<A>& run;
  const A* query;
  A* scores;
  int64_t width, head_dim;
  LaneMasks<A, kVectors> seen;

  template <int kRows>
  void block(int start) const {
    Vec<A> s[kRows][kVectors];
    clear<A, kVectors, kRows>(s);
    multiply_add<A, kVectors, kRows>(s, run.keys + start * run.key_stride, run.key_stride, 1, query, width, head_dim);
    if (run.partial) {
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) s[m][j] = seen.m[j] ? s[m][j] : splat(-A(__builtin_inf()));
    }
    store_block<A, kVectors, kRows>(scores + start * width, width, s);
  }
};

// sum[d][:] += sum over a run's keys of value[key][d] * weights[key][:], kVectors vectors of queries.
template <class A, int kVectors>
struct AddValues {
  static constexpr int kRows = kManyRegisters || kVectors == 1 ? 8 : 4;
  static_assert(kPanel % kRows == 0);
  const Run<A>& run;
  A* sum;
  const A* weights;
  int64_t width, head_dim;

  template <bool kMasked>
  __attribute__((noinline)) void all() const {
    A* to = sum;
    for (int64_t d = 0; d < head_dim; d += kRows, to += kRows * width) {
      const A* values = run.panels + d / kPanel * run.panel_stride + d % kPanel;
      Vec<A> c[kRows][kVectors];
      clear<A, kVectors, kRows>(c);
      if constexpr (kMasked) {
        add_seen(c, values);
      } else {
        multiply_add<A, kVectors, kRows>(c, values, 1, kPanel, weights, width, run.count);
      }
      __asm__ volatile("" ::: "memory");  // the sums are read here, not kept through the loop
      add_block<A, kVectors, kRows>(to, width, c);
    }
  }

  void add_seen(Vec<A> (&c)[kRows][kVectors], const A* values) const {
    const LaneMasks<A, kVectors> seen(run.lanes);
    for (int t = 0; t < run.count; ++t)
      for (int m = 0; m < kRows; ++m)
        for (int j = 0; j < kVectors; ++j)
          c[m][j] +=
              (Vec<A>)(seen.m[j] & (Mask<A>)splat(values[t * kPanel + m])) * load(weights + t * width + j * kLanes<A>);
  }
};

// One tile's running state, kVectors vectors of queries wide.
template <class A, int kVectors>
struct QueryTile {
  static constexpr int kWidth = kVectors * kLanes<A>;
  const A* query;  // [head_dim][kWidth], scaled for base 2
  A* sum;          // [head_dim up to a whole panel][kWidth], weighted values
  A* weights;      // [kColumns][kWidth], scores at first
  int64_t head_dim;
  Vec<A> reference[kVectors], total[kVectors];

  // Scores of the run's keys into the chunk's rows from `row` on; minus infinity for queries that don't see them.
  void score(const Run<A>& run, int row) {
    A* scores = weights + row * kWidth;
    const int skipped = run.first * kLanes<A>;
    with_vectors<A>(run.vectors * kLanes<A>, [&]<int kActive>() {
      const LaneMasks<A, kActive> seen(run.lanes);
      const Score<A, kActive> work{run, query + skipped, scores + skipped, kWidth, head_dim, seen};
      for_tight_blocks<kBlockRows<kActive>>(run.count, work);
    });
    if (run.vectors == kVectors) return;
    for (int i = 0; i < run.count; ++i)
      for (int j = 0; j < kVectors; ++j)
        if (j < run.first || j >= run.first + run.vectors)
          store(scores + i * kWidth + j * kLanes<A>, splat(-A(__builtin_inf())));
  }

  void add(const Run<A>& run, int row) {
    const int skipped = run.first * kLanes<A>;
    with_vectors<A>(run.vectors * kLanes<A>, [&]<int kActive>() {
      const AddValues<A, kActive> work{run, sum + skipped, weights + row * kWidth + skipped, kWidth, head_dim};
      run.unseen ? work.template all<true>() : work.template all<false>();
    });
  }

  // Turns the chunk's scores into weights. A pass of its own: straight from the score's registers, the latency of one
  // block's exponentials is not hidden behind the next block.
  __attribute__((noinline)) void weigh(int count) {
    Vec<A> top[kVectors];
    for (int j = 0; j < kVectors; ++j) top[j] = load(weights + j * kLanes<A>);
    for (int i = 1; i < count; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) top[j] = vmax<A>(top[j], load(weights + i * kWidth + j * kLanes<A>));
    Mask<A> exceeds{};
    for (int j = 0; j < kVectors; ++j) exceeds |= top[j] > reference[j] + A(kHeadroom);
    if (any(exceeds)) raise(top);
    Vec<A> from[kVectors], added[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      from[j] = reference[j];
      added[j] = Vec<A>{};
    }
    A* row = weights;
    for (int i = 0; i < count; ++i, row += kWidth)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        A* at = row + j * kLanes<A>;
        const Vec<A> weight = exp2_weight(load(at) - from[j]);
        added[j] += weight;
        store(at, weight);
      }
    for (int j = 0; j < kVectors; ++j) total[j] += added[j];
  }

  // Raises the reference of the lanes that need it and rescales all that was summed under the old one.
  __attribute__((noinline)) void raise(const Vec<A> (&tops)[kVectors]) {
    for (int j = 0; j < kVectors; ++j) {
      const Mask<A> higher = tops[j] > reference[j] + A(kHeadroom);
      const Vec<A> factor = higher ? exp2_weight(reference[j] - tops[j]) : splat(A(1));
      reference[j] = higher ? tops[j] : reference[j];
      total[j] *= factor;
      for (int64_t d = 0; d < head_dim; ++d) {
        A* x = sum + d * kWidth + j * kLanes<A>;
        store(x, load(x) * factor);
      }
    }
  }
};

template <class T, int kVectors>
void attend(const AttentionParams& p, const Tile& tile, int64_t b, int64_t h, const Head<Accumulator<T>>* head) {
  using A = Accumulator<T>;
  constexpr int kWidth = kVectors * kLanes<A>;
  const int64_t width = p.shape.head_dim, full_width = panels(width) * kPanel;
  const int64_t kv_head = h / (p.shape.heads / p.shape.kv_heads);
  const int64_t key_size = !head && sizeof(T) != sizeof(A) ? Carver<A>::rounded(kColumns * width) : 0;
  const int64_t value_stride = panel_stride<A>(kColumns), value_size = head ? 0 : panels(width) * value_stride;
  Carver<A> memory{(A*)workspace.reserve(
      sizeof(A) * size_t(Carver<A>::rounded(width * kWidth) + Carver<A>::rounded(full_width * kWidth) +
                         Carver<A>::rounded(kColumns * kWidth) + key_size + value_size))};
  A* query = memory.take(width * kWidth);
  QueryTile<A, kVectors> state{};
  state.query = query;
  state.sum = memory.take(full_width * kWidth);
  state.weights = memory.take(kColumns * kWidth);
  state.head_dim = width;
  A* key_buffer = memory.take(key_size);
  A* value_buffer = memory.take(value_size);
  const int count = tile.end - tile.begin;
  pack(query, kWidth, rows_of<T>(p.q, b, h) + tile.begin * p.q.row, p.q.row, count, width, A(p.shape.scale * kLog2E));
  for (int64_t i = 0; i < full_width * kWidth; ++i) state.sum[i] = 0;
  for (int j = 0; j < kVectors; ++j) state.reference[j] = splat(A(kNothingSeen));

  const T* keys = rows_of<T>(p.k, b, kv_head);
  const T* values = rows_of<T>(p.v, b, kv_head);
  const uint64_t live = live_lanes(tile);
  Run<A> runs[kColumns];
  int run_count = 0, filled = 0;
  const auto flush = [&] {
    state.weigh(filled);
    int row = 0;
    for (int i = 0; i < run_count; row += runs[i++].count) state.add(runs[i], row);
    run_count = filled = 0;
  };
  for (int32_t index = tile.first; index < tile.last; ++index) {
    const TileSegment& segment = p.plan.segments[index];
    for (int64_t column = segment.begin; column < segment.end;) {
      const int n = int(segment.end - column < kColumns - filled ? segment.end - column : kColumns - filled);
      Run<A>& run = runs[run_count++];
      run.count = n;
      choose_lanes<A>(run, segment.lanes, live, kVectors);
      if (head) {
        run.keys = head->keys + column * head->key_stride;
        run.key_stride = head->key_stride;
        run.panels = head->panels + column * kPanel;
        run.panel_stride = head->stride;
        run.unseen = run.partial && !all_of(head->finite, column, column + n);
      } else {
        run.key_stride = p.k.row;
        run.keys = widen(keys + column * p.k.row, run.key_stride, n, width, key_buffer);
        A* packed = value_buffer + filled * kPanel;
        const bool finite = pack_panels(packed, value_stride, values + column * p.v.row, p.v.row, n, width);
        run.panels = packed;
        run.panel_stride = value_stride;
        run.unseen = run.partial && !finite;
      }
      state.score(run, filled);
      filled += n;
      column += n;
      if (filled == kColumns) flush();
    }
  }
  if (filled) flush();

  A inverse[kWidth];
  A* lse = !p.lse ? nullptr : (A*)p.lse + (b * p.shape.heads + h) * p.shape.q_len + tile.begin;
  for (int i = 0; i < count; ++i) {
    const A total = state.total[i / kLanes<A>][i % kLanes<A>];
    const A reference = state.reference[i / kLanes<A>][i % kLanes<A>];
    inverse[i] = total == 0 ? 0 : 1 / total;
    if (lse) lse[i] = total == 0 ? -A(__builtin_inf()) : A((reference + __builtin_log2(double(total))) / kLog2E);
  }
  for (int i = count; i < kWidth; ++i) inverse[i] = 0;
  unpack(rows_of<T>(p.out, b, h) + tile.begin * p.out.row, p.out.row, state.sum, kWidth, count, width, inverse);
}

template <class T>
void forward(const AttentionParams& p) {
  using A = Accumulator<T>;
  HeadStore<T> store(p);
  for_tiles(p, store, head_workspace, [&](const Tile& tile, int64_t b, int64_t h, const Head<A>* head) {
    with_vectors<A>(tile.end - tile.begin, [&]<int kVectors>() { attend<T, kVectors>(p, tile, b, h, head); });
  });
}

#if defined(VIDEOAR_BF16_DOT)
template <>
void forward<bf16>(const AttentionParams& p) {
  attention_forward_pairs(p);
}
constexpr int kBf16Tile = kPairTile;
#else
constexpr int kBf16Tile = kTileRows<float>;
#endif

void forward_any(const AttentionParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, forward, p) }

}  // namespace

const AttentionKernels attention_kernels = {
    {kTileRows<float>, kTileRows<double>, kBf16Tile, kTileRows<float>},
    {kBackwardTile<float>, kBackwardTile<double>, kBackwardTile<bf16>, kBackwardTile<f16>},
    kDecodeQueries,
    forward_any,
    attention_decode,
    attention_backward};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
