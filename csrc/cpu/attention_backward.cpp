// Backward in one pass of five products: lanes are keys, a task owns the key tiles of one key head (or a fixed share of
// them) and sums dQ as it goes, so nothing is atomic and the result does not depend on the number of threads.
#include "attention_backward.h"

#include "attention_tile.h"
#include "parallel.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

constexpr int kColumns = 64;      // queries whose weights are kept before they meet their rows
constexpr int64_t kMinTasks = 8;  // fewer key heads than this are split into shares of their key tiles
constexpr double kLog2E = 1.4426950408889634;

thread_local Workspace workspace;

// All that one query head brings, in the accumulator's type.
template <class A>
struct QueryHead {
  const A* q;
  const A* grad_out;
  int64_t q_stride, grad_stride;
  A* lse;     // [q_len], base 2
  A* delta;   // [q_len]
  A* grad_q;  // [q_len][head_dim], before the scale
};

template <class A, int kVectors>
struct KeyTile {
  static constexpr int kWidth = kVectors * kLanes<A>;
  const A* key;    // [head_dim][kWidth], scaled for base 2
  const A* value;  // [head_dim][kWidth]
  A* weights;      // [kColumns][kWidth]
  A* slopes;       // [kColumns][kWidth], gradients of the scores
  int64_t head_dim;

  // The block of queries at hand.
  const QueryHead<A>* head;
  int64_t query;
  int offset;
  const LaneMasks<A, kVectors>* seen;

  template <int kRows>
  void block(int64_t start) {
    const int64_t row = query + start;
    A* w = weights + (offset + start) * kWidth;
    A* g = slopes + (offset + start) * kWidth;
    {
      Vec<A> s[kRows][kVectors];
      clear<A, kVectors, kRows>(s);
      multiply_add<A, kVectors, kRows>(s, head->q + row * head->q_stride, head->q_stride, 1, key, kWidth, head_dim);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
          Vec<A> weight = exp2_weight(s[m][j] - splat(head->lse[row + m]));
          if (seen) weight = seen->m[j] ? weight : Vec<A>{};
          store(w + m * kWidth + j * kLanes<A>, weight);
        }
    }
    Vec<A> s[kRows][kVectors];
    clear<A, kVectors, kRows>(s);
    multiply_add<A, kVectors, kRows>(s, head->grad_out + row * head->grad_stride, head->grad_stride, 1, value, kWidth,
                                     head_dim);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        Vec<A> slope = load(w + m * kWidth + j * kLanes<A>) * (s[m][j] - splat(head->delta[row + m]));
        if (seen) slope = seen->m[j] ? slope : Vec<A>{};
        store(g + m * kWidth + j * kLanes<A>, slope);
      }
  }
};

// grad_q[row][:] += sum over keys of slopes[row][key] * keys[key][:], kVectors vectors of head_dim at a time.
template <class A, int kVectors>
struct QueryGradient {
  A* grad_q;
  const A* slopes;
  const A* keys;
  int64_t head_dim, slope_stride, key_stride, key_count;

  template <int kRows>
  void block(int64_t row) {
    Vec<A> c[kRows][kVectors];
    load_block<A, kVectors, kRows>(c, grad_q + row * head_dim, head_dim);
    multiply_add<A, kVectors, kRows>(c, slopes + row * slope_stride, slope_stride, 1, keys, key_stride, key_count);
    store_block<A, kVectors, kRows>(grad_q + row * head_dim, head_dim, c);
  }
};

template <class A>
void add_query_gradient(A* grad_q, const A* slopes, int64_t slope_stride, const A* keys, int64_t key_stride,
                        int64_t key_count, int64_t rows, int64_t width) {
  int64_t d = 0;
  for (; d + 2 * kLanes<A> <= width; d += 2 * kLanes<A>) {
    QueryGradient<A, 2> work{grad_q + d, slopes, keys + d, width, slope_stride, key_stride, key_count};
    for_blocks<kBlockRows<2>>(0, rows, work);
  }
  for (; d + kLanes<A> <= width; d += kLanes<A>) {
    QueryGradient<A, 1> work{grad_q + d, slopes, keys + d, width, slope_stride, key_stride, key_count};
    for_blocks<kBlockRows<1>>(0, rows, work);
  }
  for (; d < width; ++d)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t t = 0; t < key_count; ++t)
        grad_q[i * width + d] += slopes[i * slope_stride + t] * keys[t * key_stride + d];
}

// The same where some lane must not see a NaN or infinity in its key.
template <class A>
void add_seen_query_gradient(A* grad_q, const A* slopes, int64_t slope_stride, const A* keys, int64_t key_stride,
                             int64_t key_count, int64_t rows, int64_t width, uint64_t lanes) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t t = 0; t < key_count; ++t) {
      if (!(lanes >> t & 1)) continue;
      for (int64_t d = 0; d < width; ++d)
        grad_q[i * width + d] += slopes[i * slope_stride + t] * keys[t * key_stride + d];
    }
}

// Adds one key tile's share to every grad_q of its group, and writes its grad_k and grad_v.
template <class T, int kVectors>
void differentiate(const AttentionBackwardParams& p, const Tile& tile, int64_t b, int64_t kv_head,
                   const QueryHead<Accumulator<T>>* heads, Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  constexpr int kWidth = kVectors * kLanes<A>;
  const int64_t width = p.shape.head_dim, group = p.shape.heads / p.shape.kv_heads;
  const int count = tile.end - tile.begin;
  Carver<A> memory{scratch};
  A* key = memory.take(width * kWidth);
  A* value = memory.take(width * kWidth);
  A* grad_key = memory.take(width * kWidth);
  A* grad_value = memory.take(width * kWidth);
  A* weights = memory.take(kColumns * kWidth);
  A* slopes = memory.take(kColumns * kWidth);
  A* key_rows = memory.take(kWidth * width);
  const T* k = rows_of<T>(p.k, b, kv_head) + tile.begin * p.k.row;
  pack(key, kWidth, k, p.k.row, count, width, A(p.shape.scale * kLog2E));
  pack(value, kWidth, rows_of<T>(p.v, b, kv_head) + tile.begin * p.v.row, p.v.row, count, width, A(1));
  int64_t key_stride = p.k.row;
  const A* keys = widen(k, key_stride, count, width, key_rows);
  const bool keys_finite = all_finite(keys, key_stride, count, width);
  for (int64_t i = 0; i < width * kWidth; ++i) grad_key[i] = grad_value[i] = 0;

  KeyTile<A, kVectors> state{key, value, weights, slopes, width, nullptr, 0, 0, nullptr};
  const uint64_t live = live_lanes(tile);
  Run<A> q_runs[kColumns], grad_runs[kColumns];
  int run_count = 0, filled = 0;
  const auto flush = [&] {
    accumulate<A, kVectors>(grad_value, weights, grad_runs, run_count, width);
    accumulate<A, kVectors>(grad_key, slopes, q_runs, run_count, width);
    run_count = filled = 0;
  };
  for (int64_t g = 0; g < group; ++g) {
    const QueryHead<A>& head = heads[g];
    state.head = &head;
    for (int32_t index = tile.first; index < tile.last; ++index) {
      const TileSegment& segment = p.plan.segments[index];
      const LaneMasks<A, kVectors> seen(segment.lanes);
      const bool partial = (segment.lanes & live) != live;
      state.seen = partial ? &seen : nullptr;
      for (int64_t row = segment.begin; row < segment.end;) {
        const int n = int(segment.end - row < kColumns - filled ? segment.end - row : kColumns - filled);
        state.query = row;
        state.offset = filled;
        for_blocks<kBlockRows<kVectors>>(0, n, state);
        const A* q = head.q + row * head.q_stride;
        const A* grad_out = head.grad_out + row * head.grad_stride;
        q_runs[run_count] = {q, head.q_stride, n, segment.lanes, partial && !all_finite(q, head.q_stride, n, width)};
        grad_runs[run_count] = {grad_out, head.grad_stride, n, segment.lanes,
                                partial && !all_finite(grad_out, head.grad_stride, n, width)};
        ++run_count;
        A* grad_q = head.grad_q + row * width;
        const A* run_slopes = slopes + filled * kWidth;
        if (partial && !keys_finite) {
          add_seen_query_gradient<A>(grad_q, run_slopes, kWidth, keys, key_stride, count, n, width, segment.lanes);
        } else {
          add_query_gradient<A>(grad_q, run_slopes, kWidth, keys, key_stride, count, n, width);
        }
        filled += n;
        row += n;
        if (filled == kColumns) flush();
      }
    }
  }
  if (filled) flush();
  A factors[kWidth];
  for (A& factor : factors) factor = A(p.shape.scale);
  unpack(rows_of<T>(p.grad_k, b, kv_head) + tile.begin * p.grad_k.row, p.grad_k.row, grad_key, kWidth, count, width,
         factors);
  for (A& factor : factors) factor = 1;
  unpack(rows_of<T>(p.grad_v, b, kv_head) + tile.begin * p.grad_v.row, p.grad_v.row, grad_value, kWidth, count, width,
         factors);
}

// lse in base 2, and delta = rowsum(grad_out * out) - grad_lse.
template <class T>
void prepare(const AttentionBackwardParams& p, int64_t b, int64_t h, const QueryHead<Accumulator<T>>& head,
             Accumulator<T>* row_buffer) {
  using A = Accumulator<T>;
  const int64_t start = (b * p.shape.heads + h) * p.shape.q_len, width = p.shape.head_dim;
  const T* out = rows_of<T>(p.out, b, h);
  for (int64_t i = 0; i < p.shape.q_len; ++i) {
    int64_t stride = p.out.row;
    const A* o = widen(out + i * p.out.row, stride, 1, width, row_buffer);
    const A* g = head.grad_out + i * head.grad_stride;
    Vec<A> sum{};
    A rest = 0;
    int64_t d = 0;
    for (; d + kLanes<A> <= width; d += kLanes<A>) sum += load(o + d) * load(g + d);
    for (; d < width; ++d) rest += o[d] * g[d];
    head.delta[i] = reduce_add<A>(sum) + rest - (p.grad_lse ? ((const A*)p.grad_lse)[start + i] : A(0));
    head.lse[i] = ((const A*)p.lse)[start + i] * A(kLog2E);
  }
}

template <class T>
void write_query_gradient(const AttentionBackwardParams& p, int64_t b, int64_t h, const Accumulator<T>* grad_q,
                          int64_t shares, int64_t share_stride, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const int64_t width = p.shape.head_dim;
  T* rows = rows_of<T>(p.grad_q, b, h);
  const A scale = A(p.shape.scale);
  for (int64_t i = begin; i < end; ++i) {
    const A* from = grad_q + i * width;
    T* to = rows + i * p.grad_q.row;
    int64_t d = 0;
    for (; d + kLanes<A> <= width; d += kLanes<A>) {
      Vec<A> sum = load(from + d);
      for (int64_t c = 1; c < shares; ++c) sum += load(from + c * share_stride + d);
      store(to + d, sum * scale);
    }
    for (; d < width; ++d) {
      A sum = from[d];
      for (int64_t c = 1; c < shares; ++c) sum += from[c * share_stride + d];
      to[d] = from_float<T>(sum * scale);
    }
  }
}

template <class T>
void backward(const AttentionBackwardParams& p) {
  using A = Accumulator<T>;
  const AttentionShape& shape = p.shape;
  constexpr int kWidth = kTileRows<A>;
  const int64_t width = shape.head_dim, group = shape.heads / shape.kv_heads, pairs = shape.batch * shape.kv_heads;
  const int64_t tiles = p.plan.tile_ptr[1] - p.plan.tile_ptr[0];  // the same in every sample
  if (pairs == 0) return;
  int64_t shares = pairs >= kMinTasks ? 1 : (kMinTasks + pairs - 1) / pairs;
  if (shares > tiles) shares = tiles > 0 ? tiles : 1;

  const bool converts = sizeof(T) != sizeof(A);
  const int64_t head_size = Carver<A>::rounded(shape.q_len * width), line_size = Carver<A>::rounded(shape.q_len);
  const int64_t tile_size = 5 * Carver<A>::rounded(width * kWidth) + 2 * Carver<A>::rounded(kColumns * kWidth);
  const int64_t task_size =
      group * (head_size * ((shares == 1) + 2 * converts) + 2 * line_size) + tile_size + Carver<A>::rounded(width);
  A* partial = nullptr;  // [shares][batch][heads][q_len][head_dim]
  const int64_t share_size = shape.batch * shape.heads * head_size;
  if (shares > 1) partial = (A*)std::aligned_alloc(64, size_t(shares * share_size) * sizeof(A) + 64);

  const int64_t work = shape.batch * shape.heads * shape.q_len * shape.k_len * width;
  parallel_items(pairs * shares, work, [&](int64_t task) {
    const int64_t share = task % shares, b = task / shares / shape.kv_heads, kv_head = task / shares % shape.kv_heads;
    Carver<A> memory{(A*)workspace.reserve(sizeof(A) * size_t(task_size) + sizeof(QueryHead<A>) * size_t(group) + 64)};
    QueryHead<A>* heads = (QueryHead<A>*)(memory.next + task_size);
    A* row_buffer = memory.take(width);
    for (int64_t g = 0; g < group; ++g) {
      const int64_t h = kv_head * group + g;
      QueryHead<A>& head = heads[g];
      head.q_stride = p.q.row;
      head.grad_stride = p.grad_out.row;
      head.q = widen(rows_of<T>(p.q, b, h), head.q_stride, shape.q_len, width, memory.take(converts ? head_size : 0));
      head.grad_out = widen(rows_of<T>(p.grad_out, b, h), head.grad_stride, shape.q_len, width,
                            memory.take(converts ? head_size : 0));
      head.lse = memory.take(shape.q_len);
      head.delta = memory.take(shape.q_len);
      head.grad_q =
          partial ? partial + share * share_size + (b * shape.heads + h) * head_size : memory.take(shape.q_len * width);
      for (int64_t i = 0; i < shape.q_len * width; ++i) head.grad_q[i] = 0;
      prepare<T>(p, b, h, head, row_buffer);
    }
    A* scratch = memory.take(tile_size);
    const int32_t first = p.plan.tile_ptr[p.plan.samples == 1 ? 0 : b];
    for (int64_t i = share; i < tiles; i += shares) {
      const Tile& tile = p.plan.tiles[first + i];
      with_vectors<A>(tile.end - tile.begin,
                      [&]<int kVectors>() { differentiate<T, kVectors>(p, tile, b, kv_head, heads, scratch); });
    }
    if (!partial) {
      for (int64_t g = 0; g < group; ++g)
        write_query_gradient<T>(p, b, kv_head * group + g, heads[g].grad_q, 1, 0, 0, shape.q_len);
    }
    workspace.trim();
  });
  if (!partial) return;
  parallel_ranges(shape.batch * shape.heads * shape.q_len, work, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pair = i / shape.q_len, row = i % shape.q_len;
      write_query_gradient<T>(p, pair / shape.heads, pair % shape.heads, partial + pair * head_size, shares, share_size,
                              row, row + 1);
    }
  });
  std::free(partial);
}

}  // namespace

void attention_backward(const AttentionBackwardParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, backward, p) }

}  // namespace VIDEOAR_ISA
}  // namespace videoar
