// Backward in one pass of five products: lanes are keys, and the weights of a block of queries are used where they are
// made. Storage types narrower than float are widened once per head.
#include "attention_backward.h"

#include "attention_backward_schedule.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

constexpr int kColumns = kManyRegisters ? 72 : 60;  // queries whose weights are kept; whole blocks of 4, 6, 8 and 12
constexpr double kLog2E = 1.4426950408889634;

// Keys of a register block, and of a tile: two blocks, so that a row of grad_q is fetched half as often.
template <class A>
constexpr int kBlockKeys = (sizeof(A) == 8 ? 1 : 3) * kLanes<A>;
template <class A>
constexpr int kKeys = kBackwardTile<A>;
static_assert(kKeys<float> % kBlockKeys<float> == 0 && kKeys<double> % kBlockKeys<double> == 0);

// One query head, its rows padded with zeros to whole vectors.
template <class A>
struct QueryRows {
  int64_t stride;
  A* q;         // [q_len][stride], times scale and log2(e), rounded as forward does
  A* grad_out;  // [q_len][stride]
  A* grad_q;    // [q_len][stride], before the scale
  A* lse;       // [q_len], base 2
  A* lse_rest;  // [q_len], what lse lost in rounding: scores may be large
  A* delta;     // [q_len]
  A* odd;       // [q_len], not zero where q or grad_out holds a NaN or infinity
};

// Weights and their gradients for kRows queries and a block of keys.
template <class A, int kVectors>
struct Weigh {
  const A* key;    // [head_dim][kBlockKeys]
  const A* value;  // [head_dim][kBlockKeys]
  A* weights;      // [][kKeys]
  A* slopes;       // [][kKeys]
  int64_t head_dim;
  const QueryRows<A>* rows;
  int64_t row;
  LaneMasks<A, kVectors> seen;

  template <int kRows>
  void block(int64_t start) {
    const int64_t stride = rows->stride, first = row + start;
    A* w = weights + start * kKeys<A>;
    A* g = slopes + start * kKeys<A>;
    {
      const A* lse = rows->lse + first;
      const A* rest = rows->lse_rest + first;
      Vec<A> s[kRows][kVectors];
      clear<A, kVectors, kRows>(s);
      multiply_add<A, kVectors, kRows>(s, rows->q + first * stride, stride, 1, key, kBlockKeys<A>, head_dim);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
          const Vec<A> weight = exp2_weight((s[m][j] - splat(lse[m])) - splat(rest[m]));
          store(w + m * kKeys<A> + j * kLanes<A>, (Vec<A>)(seen.m[j] & (Mask<A>)weight));
        }
    }
    const A* delta = rows->delta + first;
    Vec<A> s[kRows][kVectors];
    clear<A, kVectors, kRows>(s);
    multiply_add<A, kVectors, kRows>(s, rows->grad_out + first * stride, stride, 1, value, kBlockKeys<A>, head_dim);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        const Vec<A> slope = load(w + m * kKeys<A> + j * kLanes<A>) * (s[m][j] - splat(delta[m]));
        store(g + m * kKeys<A> + j * kLanes<A>, (Vec<A>)(seen.m[j] & (Mask<A>)slope));
      }
  }
};

// grad_q[row][:] += sum over keys of slopes[row][key] * keys[key][:], kVectors vectors of head_dim at a time.
template <class A, int kVectors>
struct AddToQueries {
  A* grad_q;
  const A* slopes;
  const A* keys;
  int64_t stride, key_count;

  template <int kRows>
  void block(int64_t row) {
    Vec<A> c[kRows][kVectors];
    clear<A, kVectors, kRows>(c);
    multiply_add<A, kVectors, kRows>(c, slopes + row * kKeys<A>, kKeys<A>, 1, keys, stride, key_count);
    add_block<A, kVectors, kRows>(grad_q + row * stride, stride, c);
  }
};

template <class A>
void add_to_queries(A* grad_q, const A* slopes, const A* keys, int64_t key_count, int64_t rows, int64_t stride,
                    int64_t width) {
  int64_t d = 0;
  for (; d + kLanes<A> < width; d += 2 * kLanes<A>) {
    AddToQueries<A, 2> work{grad_q + d, slopes, keys + d, stride, key_count};
    for_blocks<kBlockRows<2>>(0, rows, work);
  }
  if (d < width) {
    AddToQueries<A, 1> work{grad_q + d, slopes, keys + d, stride, key_count};
    for_blocks<kBlockRows<1>>(0, rows, work);
  }
}

// Rows whose weights stand one after another.
template <class A>
struct RowRun {
  const A* data;
  int64_t count;
};

// sums[d][:] += sum over rows of rows[row][d] * weights[row][:].
template <class A, int kVectors>
struct AddToKeys {
  A* sums;  // [head_dim][kBlockKeys]
  const A* weights;
  const RowRun<A>* runs;
  int run_count;
  int64_t stride;

  template <int kRows>
  void block(int64_t d) {
    Vec<A> c[kRows][kVectors];
    clear<A, kVectors, kRows>(c);
    const A* w = weights;
    for (int i = 0; i < run_count; ++i) {
      multiply_add<A, kVectors, kRows>(c, runs[i].data + d, 1, stride, w, kKeys<A>, runs[i].count);
      w += runs[i].count * kKeys<A>;
    }
    add_block<A, kVectors, kRows>(sums + d * kBlockKeys<A>, kBlockKeys<A>, c);
  }
};

// What a query that holds a NaN or infinity brings to the keys that see it; the sums over rows take zeros in its place,
// so that it does not reach the others.
template <class A>
void add_to_seeing_keys(A* grad_key, A* grad_value, const A* q, const A* grad_out, const A* weights, const A* slopes,
                        int64_t head_dim, int key_count, uint64_t lanes) {
  for (int t = 0; t < key_count; ++t) {
    if (!(lanes >> t & 1)) continue;
    const int64_t column = t / kBlockKeys<A> * head_dim * kBlockKeys<A> + t % kBlockKeys<A>;
    for (int64_t d = 0; d < head_dim; ++d) {
      grad_key[column + d * kBlockKeys<A>] += slopes[t] * q[d];
      grad_value[column + d * kBlockKeys<A>] += weights[t] * grad_out[d];
    }
  }
}

// A row times `factor`, padded with zeros; returns 0, or NaN if an element is not finite.
template <class T>
inline Accumulator<T> copy_row(Accumulator<T>* to, const T* from, int64_t width, Accumulator<T> factor) {
  using A = Accumulator<T>;
  Vec<A> odd{};
  int64_t d = 0;
  for (; d + kLanes<A> <= width; d += kLanes<A>) {
    const Vec<A> x = load(from + d) * factor;
    odd += x * A(0);
    store(to + d, x);
  }
  if (d < width) {
    const Vec<A> x = load_partial(from + d, int(width - d)) * factor;
    odd += x * A(0);
    store(to + d, x);
  }
  return reduce_add<A>(odd);
}

template <class T>
class WideBackward {
  using A = Accumulator<T>;
  static constexpr int kTile = kKeys<A>, kBlock = kBlockKeys<A>;

 public:
  static size_t head_bytes(const AttentionShape& s) {
    return size_t(3 * Carver<A>::rounded(s.q_len * stride_of(s)) + 4 * Carver<A>::rounded(s.q_len)) * sizeof(A);
  }
  static size_t sums_bytes(const AttentionShape& s) {
    return size_t(2 * Carver<A>::rounded(s.head_dim * kTile)) * sizeof(A);
  }
  static size_t scratch_bytes(const AttentionShape& s) {
    return size_t(2 * Carver<A>::rounded(s.head_dim * kTile) + 2 * Carver<A>::rounded(stride_of(s) * kTile) +
                  2 * Carver<A>::rounded(kColumns * kTile) + 2 * Carver<A>::rounded(kColumns * stride_of(s))) *
           sizeof(A);
  }

  WideBackward(const AttentionShape& s, void* head) {
    Carver<A> memory{(A*)head};
    const int64_t size = s.q_len * stride_of(s);
    rows_ = {stride_of(s),         memory.take(size),    memory.take(size),    memory.take(size),
             memory.take(s.q_len), memory.take(s.q_len), memory.take(s.q_len), memory.take(s.q_len)};
  }

  void prepare(const BackwardTask& t, int64_t begin, int64_t end, void* scratch) const {
    const AttentionBackwardParams& p = t.p;
    const int64_t width = p.shape.head_dim, stride = rows_.stride;
    const T* q = rows_of<T>(p.q, t.b, t.head());
    const T* grad_out = rows_of<T>(p.grad_out, t.b, t.head());
    const int64_t start = (t.b * p.shape.heads + t.head()) * p.shape.q_len;
    for (int64_t i = begin; i < end; ++i) {
      const A odd = copy_row(rows_.q + i * stride, q + i * p.q.row, width, A(p.shape.scale * kLog2E));
      rows_.odd[i] = odd + copy_row(rows_.grad_out + i * stride, grad_out + i * p.grad_out.row, width, A(1));
      std::memset(rows_.grad_q + i * stride, 0, size_t(stride) * sizeof(A));
      const double lse = ((const A*)p.lse)[start + i] * kLog2E;
      rows_.lse[i] = A(lse);
      rows_.lse_rest[i] = lse - lse == 0 ? A(lse - double(A(lse))) : A(0);
    }
    row_deltas<T>(t, begin, end, rows_.delta, (A*)scratch);
  }

  void add_tile(const BackwardTask& t, const Tile& tile, void* sums, Turn& turn, void* scratch) const {
    const AttentionBackwardParams& p = t.p;
    const int64_t width = p.shape.head_dim, stride = rows_.stride;
    const int count = tile.end - tile.begin;
    Carver<A> memory{(A*)scratch};
    A* key = memory.take(width * kTile);
    A* value = memory.take(width * kTile);
    A* keys = memory.take(stride * kTile);
    A* weights = memory.take(kColumns * kTile);
    A* slopes = memory.take(kColumns * kTile);
    A* seen_keys = memory.take(stride * kTile);
    A* seen_q = memory.take(kColumns * stride);
    A* seen_grad = memory.take(kColumns * stride);
    A* grad_key = (A*)sums;
    A* grad_value = grad_key + Carver<A>::rounded(width * kTile);
    if (t.first()) std::memset(sums, 0, sums_bytes(p.shape));

    const T* k = rows_of<T>(p.k, t.b, t.kv_head) + tile.begin * p.k.row;
    const T* v = rows_of<T>(p.v, t.b, t.kv_head) + tile.begin * p.v.row;
    A odd_keys = 0;
    for (int i = 0; i < count; ++i) odd_keys += copy_row(keys + i * stride, k + i * p.k.row, width, A(1));
    for (int first = 0; first < count; first += kBlock) {
      const int n = count - first < kBlock ? count - first : kBlock;
      pack(key + first * width, kBlock, keys + first * stride, stride, n, width, A(1));
      pack(value + first * width, kBlock, v + first * p.v.row, p.v.row, n, width, A(1));
    }

    const uint64_t live = live_lanes(tile);
    RowRun<A> q_runs[kColumns], grad_runs[kColumns];
    int run_count = 0, filled = 0;
    const auto flush = [&] {
      if (!filled) return;
      each_block(count, [&]<int kVectors>(int first) {
        AddToKeys<A, kVectors> work{grad_value + first * width, weights + first, grad_runs, run_count, stride};
        for_blocks<kBlockRows<kVectors>>(0, width, work);
      });
      each_block(count, [&]<int kVectors>(int first) {
        AddToKeys<A, kVectors> work{grad_key + first * width, slopes + first, q_runs, run_count, stride};
        for_blocks<kBlockRows<kVectors>>(0, width, work);
      });
      run_count = filled = 0;
    };
    for (int32_t index = tile.first; index < tile.last; ++index) {
      const TileSegment& segment = p.plan.segments[index];
      const bool partial = (segment.lanes & live) != live;
      for (int64_t row = segment.begin; row < segment.end;) {
        const int room = kColumns - filled;
        const int n = int(segment.end - row < room ? segment.end - row : room);
        each_block(count, [&]<int kVectors>(int first) {
          Weigh<A, kVectors> work{key + first * width,
                                  value + first * width,
                                  weights + filled * kTile + first,
                                  slopes + filled * kTile + first,
                                  width,
                                  &rows_,
                                  row,
                                  LaneMasks<A, kVectors>(segment.lanes >> first)};
          for_blocks<kBlockRows<kVectors>>(0, n, work);
        });
        turn.take(int32_t(row), int32_t(row + n));
        const A* run_keys = keys;
        const A* q = rows_.q + row * stride;
        const A* grad_out = rows_.grad_out + row * stride;
        if (partial && odd_keys != 0) {
          run_keys = seen_keys;
          for (int i = 0; i < count; ++i)
            copy_or_clear(seen_keys + i * stride, keys + i * stride, stride, segment.lanes >> i & 1);
        }
        A odd = 0;
        for (int i = 0; partial && i < n; ++i) odd += rows_.odd[row + i];
        if (odd != 0) {
          for (int i = 0; i < n; ++i) {
            const bool fine = rows_.odd[row + i] == 0;
            const int64_t at = (filled + i) * kTile;
            copy_or_clear(seen_q + (filled + i) * stride, q + i * stride, stride, fine);
            copy_or_clear(seen_grad + (filled + i) * stride, grad_out + i * stride, stride, fine);
            if (!fine)
              add_to_seeing_keys(grad_key, grad_value, q + i * stride, grad_out + i * stride, weights + at, slopes + at,
                                 width, count, segment.lanes);
          }
          q = seen_q + filled * stride;
          grad_out = seen_grad + filled * stride;
        }
        add_to_queries<A>(rows_.grad_q + row * stride, slopes + filled * kTile, run_keys, count, n, stride, width);
        q_runs[run_count] = {q, n};
        grad_runs[run_count++] = {grad_out, n};
        filled += n;
        row += n;
        if (filled == kColumns) flush();
      }
    }
    flush();
    if (t.last()) write_key_gradients<T>(t, tile, grad_key, A(1 / kLog2E), grad_value, kBlock);
  }

  void finish(const BackwardTask& t, int64_t begin, int64_t end) const {
    write_query_gradient<T>(t, begin, end, rows_.grad_q, rows_.stride);
  }

 private:
  static void copy_or_clear(A* to, const A* from, int64_t stride, bool copy) {
    copy ? std::memcpy(to, from, size_t(stride) * sizeof(A)) : std::memset(to, 0, size_t(stride) * sizeof(A));
  }
  // An odd number of cache lines: rows at a power of two apart would meet in few sets of the cache.
  static int64_t stride_of(const AttentionShape& s) { return Carver<A>::rounded(s.head_dim) | Carver<A>::rounded(1); }

  // f.template operator()<vectors>(first key) for the register blocks of a tile of `count` keys.
  template <class F>
  static void each_block(int count, const F& f) {
    for (int first = 0; first < count; first += kBlock)
      with_vectors<A>(count - first, [&]<int kVectors>() { f.template operator()<kVectors>(first); });
  }

  QueryRows<A> rows_;
};

template <class T>
void backward(const AttentionBackwardParams& p) {
  Backward<WideBackward<T>>(p).run();
}
#if defined(VIDEOAR_BF16_DOT)
template <>
void backward<bf16>(const AttentionBackwardParams& p) {
  attention_backward_pairs(p);
}
#endif

}  // namespace

void attention_backward(const AttentionBackwardParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, backward, p) }

}  // namespace VIDEOAR_ISA
}  // namespace videoar
