// Forward: online softmax over one tile of queries. Scores stay in registers until they are weights 2^(s - m); the
// reference m is raised only when a score exceeds it by more than 2^kHeadroom, so that rescaling is rare.
#include "attention.h"

#include "attention_backward.h"
#include "attention_tile.h"
#include "parallel.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

constexpr int kColumns = 128;     // keys whose weights are kept before they meet their values
constexpr double kHeadroom = 32;  // 2^32 times the longest sequence is far from overflow
constexpr double kNothingSeen = -1e30;
constexpr double kLog2E = 1.4426950408889634;

thread_local Workspace workspace;

// One tile's running state, kVectors vectors of queries wide.
template <class A, int kVectors>
struct QueryTile {
  static constexpr int kWidth = kVectors * kLanes<A>;
  const A* query;  // [head_dim][kWidth], scaled for base 2
  A* sum;          // [head_dim][kWidth], weighted values
  A* weights;      // [kColumns][kWidth]
  int64_t head_dim;
  Vec<A> reference[kVectors], total[kVectors];

  // The block being scored.
  const A* keys;
  int64_t stride;
  int offset;  // where its weights go
  const LaneMasks<A, kVectors>* seen;

  template <int kRows>
  void block(int64_t start) {
    Vec<A> s[kRows][kVectors];
    clear<A, kVectors, kRows>(s);
    multiply_add<A, kVectors, kRows>(s, keys + start * stride, stride, 1, query, kWidth, head_dim);
    if (seen) {
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) s[m][j] = seen->m[j] ? s[m][j] : splat(-A(__builtin_inf()));
    }
    Vec<A> top[kVectors];
    Mask<A> exceeds{};
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      top[j] = s[0][j];
#pragma GCC unroll 16
      for (int m = 1; m < kRows; ++m) top[j] = vmax<A>(top[j], s[m][j]);
      exceeds |= top[j] > reference[j] + A(kHeadroom);
    }
    if (__builtin_expect(any(exceeds), 0)) raise(top, offset + int(start));
    A* w = weights + (offset + start) * kWidth;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      Vec<A> added{};
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const Vec<A> weight = exp2_weight(s[m][j] - reference[j]);
        added += weight;
        store(w + m * kWidth + j * kLanes<A>, weight);
      }
      total[j] += added;
    }
  }

  // Raises the reference of the lanes that need it and rescales all that was summed under the old one.
  __attribute__((noinline)) void raise(const Vec<A> (&tops)[kVectors], int rows) {
    for (int j = 0; j < kVectors; ++j) {
      const Vec<A> top = tops[j];
      const Mask<A> higher = top > reference[j] + A(kHeadroom);
      const Vec<A> factor = higher ? exp2_weight(reference[j] - top) : splat(A(1));
      reference[j] = higher ? top : reference[j];
      total[j] *= factor;
      for (int i = 0; i < rows; ++i) {
        A* w = weights + i * kWidth + j * kLanes<A>;
        store(w, load(w) * factor);
      }
      for (int64_t d = 0; d < head_dim; ++d) {
        A* x = sum + d * kWidth + j * kLanes<A>;
        store(x, load(x) * factor);
      }
    }
  }
};

template <class T, int kVectors>
void attend(const AttentionParams& p, const Tile& tile, int64_t b, int64_t h) {
  using A = Accumulator<T>;
  constexpr int kWidth = kVectors * kLanes<A>;
  const int64_t width = p.shape.head_dim, kv_head = h / (p.shape.heads / p.shape.kv_heads);
  const bool converts = sizeof(T) != sizeof(A);
  const int64_t rows_size = converts ? Carver<A>::rounded(kColumns * width) : 0;
  Carver<A> memory{(A*)workspace.reserve(sizeof(A) * size_t(2 * Carver<A>::rounded(width * kWidth) +
                                                            Carver<A>::rounded(kColumns * kWidth) + 2 * rows_size))};
  A* query = memory.take(width * kWidth);
  QueryTile<A, kVectors> state{};
  state.query = query;
  state.sum = memory.take(width * kWidth);
  state.weights = memory.take(kColumns * kWidth);
  state.head_dim = width;
  A* key_buffer = memory.take(rows_size);
  A* value_buffer = memory.take(rows_size);
  const int count = tile.end - tile.begin;
  pack(query, kWidth, rows_of<T>(p.q, b, h) + tile.begin * p.q.row, p.q.row, count, width, A(p.shape.scale * kLog2E));
  for (int64_t i = 0; i < width * kWidth; ++i) state.sum[i] = 0;
  for (int j = 0; j < kVectors; ++j) state.reference[j] = splat(A(kNothingSeen));

  const T* keys = rows_of<T>(p.k, b, kv_head);
  const T* values = rows_of<T>(p.v, b, kv_head);
  const uint64_t live = live_lanes(tile);
  Run<A> runs[kColumns];
  int run_count = 0, filled = 0;
  for (int32_t index = tile.first; index < tile.last; ++index) {
    const TileSegment& segment = p.plan.segments[index];
    const LaneMasks<A, kVectors> seen(segment.lanes);
    const bool partial = (segment.lanes & live) != live;
    state.seen = partial ? &seen : nullptr;
    for (int64_t column = segment.begin; column < segment.end;) {
      const int n = int(segment.end - column < kColumns - filled ? segment.end - column : kColumns - filled);
      state.stride = p.k.row;
      state.keys = widen(keys + column * p.k.row, state.stride, n, width, key_buffer);
      state.offset = filled;
      for_blocks<kBlockRows<kVectors>>(0, n, state);
      Run<A>& run = runs[run_count++];
      run = {nullptr, p.v.row, n, segment.lanes, false};
      run.data = widen(values + column * p.v.row, run.stride, n, width, value_buffer + filled * width);
      run.unseen = partial && !all_finite(run.data, run.stride, n, width);
      filled += n;
      column += n;
      if (filled == kColumns) {
        accumulate<A, kVectors>(state.sum, state.weights, runs, run_count, width);
        run_count = filled = 0;
      }
    }
  }
  if (filled) accumulate<A, kVectors>(state.sum, state.weights, runs, run_count, width);

  A inverse[kWidth];
  A* lse = (A*)p.lse + (b * p.shape.heads + h) * p.shape.q_len + tile.begin;
  for (int i = 0; i < count; ++i) {
    const A total = state.total[i / kLanes<A>][i % kLanes<A>];
    const A reference = state.reference[i / kLanes<A>][i % kLanes<A>];
    inverse[i] = total == 0 ? 0 : 1 / total;
    lse[i] = total == 0 ? -A(__builtin_inf()) : (reference + A(__builtin_log2(total))) * A(1 / kLog2E);
  }
  for (int i = count; i < kWidth; ++i) inverse[i] = 0;
  unpack(rows_of<T>(p.out, b, h) + tile.begin * p.out.row, p.out.row, state.sum, kWidth, count, width, inverse);
}

template <class T>
void forward(const AttentionParams& p) {
  using A = Accumulator<T>;
  const AttentionShape& shape = p.shape;
  const int64_t first_tiles = p.plan.tile_ptr[1] - p.plan.tile_ptr[0];  // the same in every sample
  const int64_t tasks = shape.batch * shape.heads * first_tiles;
  parallel_items(tasks, tasks * shape.head_dim * (shape.k_len + 1), [&](int64_t task) {
    const int64_t b = task / (shape.heads * first_tiles), h = task / first_tiles % shape.heads;
    const Tile& tile = p.plan.tiles[p.plan.tile_ptr[p.plan.samples == 1 ? 0 : b] + task % first_tiles];
    with_vectors<A>(tile.end - tile.begin, [&]<int kVectors>() { attend<T, kVectors>(p, tile, b, h); });
  });
}

void forward_any(const AttentionParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, forward, p) }

}  // namespace

const AttentionKernels attention_kernels = {{kTileRows<float>, kTileRows<double>, kTileRows<float>, kTileRows<float>},
                                            {kTileRows<float>, kTileRows<double>, kTileRows<float>, kTileRows<float>},
                                            forward_any,
                                            attention_backward};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
