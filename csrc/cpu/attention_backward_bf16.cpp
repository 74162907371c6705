// Backward of bfloat16 by products of pairs. All five products multiply what is stored, and weights and slopes rounded
// to bfloat16, and sum in float32. Pairs are neighbours of head_dim (scores), queries (grad_k, grad_v) or keys
// (grad_q).
#include "attention_backward.h"
#include "attention_backward_schedule.h"
#include "attention_pairs.h"

namespace videoar {
namespace VIDEOAR_ISA {

#if defined(VIDEOAR_BF16_DOT)
namespace {

constexpr int kTile = kBackwardTile<bf16>;
constexpr int kPairs = 32;  // pairs of queries whose weights are kept
constexpr double kLog2E = 1.4426950408889634;
static_assert(kTile == 4 * kLanes<float>);

// One query head. Queries are paired (0, 1), (2, 3) and so on; an odd one out meets a row of zeros.
struct QueryPairs {
  int64_t words, wide;       // from row to row: of q and grad_out, of all else
  uint32_t *q, *grad_out;    // [q_len + 1][words], pairs of head_dim
  uint32_t *q2, *grad_out2;  // [pairs][wide], pairs of queries
  float* grad_q;             // [q_len][wide], before the scale
  float *lse, *delta;        // [q_len + 1]; lse in base 2
  float* odd;                // [q_len + 1], not zero where q or grad_out holds a NaN or infinity
};

// Weights and slopes of kRows queries and a tile of keys.
template <int kVectors>
struct WeighPairs {
  const uint32_t *key, *value;  // [pairs of head_dim][kTile]
  uint32_t *weights, *slopes;   // [pairs of queries][kTile]
  bf16* slope_rows;             // [queries][kTile]
  int64_t steps;
  float scale;
  const QueryPairs* rows;
  LaneMasks<float, kVectors> seen;

  // Queries from `row` on, the first of them at `pair`.
  template <int kRows>
  void block(int64_t row, int64_t pair) const {
    {
      Vec<float> s[kRows][kVectors];
      clear<float, kVectors, kRows>(s);
      dot_add<kVectors, kRows>(s, rows->q + row * rows->words, rows->words, 1, key, kTile, steps);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; m += 2)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
          const Vec<float> low = exp2_weight(s[m][j] * scale - splat(rows->lse[row + m]));
          const Vec<float> high = exp2_weight(s[m + 1][j] * scale - splat(rows->lse[row + m + 1]));
          store_pairs(weights + (pair + m / 2) * kTile + j * kLanes<float>, to_pairs(low, high) & (VecU32)seen.m[j]);
        }
    }
    Vec<float> s[kRows][kVectors];
    clear<float, kVectors, kRows>(s);
    dot_add<kVectors, kRows>(s, rows->grad_out + row * rows->words, rows->words, 1, value, kTile, steps);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m += 2)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        const int64_t at = (pair + m / 2) * kTile + j * kLanes<float>;
        const VecU32 weight = load_pairs(weights + at);
        const Vec<float> low = (Vec<float>)(weight << 16) * (s[m][j] - splat(rows->delta[row + m]));
        const Vec<float> high = (Vec<float>)(weight & 0xffff0000u) * (s[m + 1][j] - splat(rows->delta[row + m + 1]));
        const VecU32 pairs = to_pairs(low, high) & (VecU32)seen.m[j];
        store_pairs(slopes + at, pairs);
        bf16* to = slope_rows + (2 * pair + m) * kTile + j * kLanes<float>;
        const VecU16 first = __builtin_convertvector(pairs, VecU16);
        const VecU16 second = __builtin_convertvector(pairs >> 16, VecU16);
        std::memcpy(to, &first, sizeof first);
        std::memcpy(to + kTile, &second, sizeof second);
      }
  }
};

template <int kVectors>
__attribute__((noinline)) void weigh(const WeighPairs<kVectors>& work, int64_t row, int64_t pair, int64_t count) {
  constexpr int kRows = kPairRows<kVectors>;
  for (; count >= kRows; count -= kRows, row += kRows, pair += kRows / 2) work.template block<kRows>(row, pair);
  for (; count > 0; count -= 2, row += 2, ++pair) work.template block<2>(row, pair);
}

// c[row][:] += sum over pairs of a[row] . b[:], kVectors vectors wide; for grad_q and for grad_k and grad_v.
template <int kVectors>
struct AddPairs {
  float* sums;
  int64_t sums_stride;
  const uint32_t* left;
  int64_t row, step;
  const uint32_t* right;
  int64_t right_stride, steps;

  template <int kRows>
  void block(int64_t start) {
    Vec<float> c[kRows][kVectors];
    load_block<float, kVectors, kRows>(c, sums + start * sums_stride, sums_stride);
    dot_add<kVectors, kRows>(c, left + start * row, row, step, right, right_stride, steps);
    store_block<float, kVectors, kRows>(sums + start * sums_stride, sums_stride, c);
  }
};

// Pairs of queries whose weights stand one after another.
struct PairRun {
  const uint32_t* data;
  int64_t count;
};

class PairBackward {
  using Words = Carver<uint32_t>;

 public:
  static size_t head_bytes(const AttentionShape& s) {
    const int64_t rows = s.q_len + 1;
    return sizeof(float) * size_t(2 * Words::rounded(rows * words_of(s)) + 2 * Words::rounded(rows / 2 * wide_of(s)) +
                                  Words::rounded(s.q_len * wide_of(s)) + 3 * Words::rounded(rows));
  }
  static size_t sums_bytes(const AttentionShape& s) { return sizeof(float) * size_t(2 * s.head_dim * kTile); }
  static size_t scratch_bytes(const AttentionShape& s) {
    return sizeof(float) * size_t(2 * pair_width(s.head_dim) * kTile + kTile * wide_of(s) + 3 * kPairs * kTile +
                                  2 * kPairs * wide_of(s) + 2 * s.head_dim * kLanes<float>);
  }

  PairBackward(const AttentionShape& s, void* head) {
    const int64_t rows = s.q_len + 1;
    Words memory{(uint32_t*)head};
    r_.words = words_of(s);
    r_.wide = wide_of(s);
    r_.q = memory.take(rows * r_.words);
    r_.grad_out = memory.take(rows * r_.words);
    r_.q2 = memory.take(rows / 2 * r_.wide);
    r_.grad_out2 = memory.take(rows / 2 * r_.wide);
    r_.grad_q = (float*)memory.take(s.q_len * r_.wide);
    r_.lse = (float*)memory.take(rows);
    r_.delta = (float*)memory.take(rows);
    r_.odd = (float*)memory.take(rows);
  }

  void prepare(const BackwardTask& t, int64_t begin, int64_t end, void* scratch) const {
    const AttentionBackwardParams& p = t.p;
    const int64_t width = p.shape.head_dim, last = end == p.shape.q_len ? end + 1 : end;
    const bf16* q = rows_of<bf16>(p.q, t.b, t.head());
    const bf16* grad_out = rows_of<bf16>(p.grad_out, t.b, t.head());
    const float* lse = (const float*)p.lse + (t.b * p.shape.heads + t.head()) * p.shape.q_len;
    for (int64_t i = begin; i < last; ++i) {
      const bf16* q_row = i < end ? q + i * p.q.row : nullptr;
      const bf16* grad_row = i < end ? grad_out + i * p.grad_out.row : nullptr;
      r_.odd[i] = copy_row(r_.q + i * r_.words, q_row, width) + copy_row(r_.grad_out + i * r_.words, grad_row, width);
      r_.lse[i] = i < end ? float(lse[i] * kLog2E) : 0;
      if (i == end) r_.delta[i] = 0;
      if (i < end) std::memset(r_.grad_q + i * r_.wide, 0, size_t(r_.wide) * sizeof(float));
    }
    for (int64_t i = begin; i < end; i += 2) {
      const auto at = [&](const bf16* rows, int64_t stride, int64_t row) {
        return row < end ? rows + row * stride : nullptr;
      };
      pair_rows(r_.q2 + i / 2 * r_.wide, at(q, p.q.row, i), at(q, p.q.row, i + 1), width);
      pair_rows(r_.grad_out2 + i / 2 * r_.wide, at(grad_out, p.grad_out.row, i), at(grad_out, p.grad_out.row, i + 1),
                width);
    }
    row_deltas<bf16>(t, begin, end, r_.delta, (float*)scratch);
  }

  void add_tile(const BackwardTask& t, const Tile& tile, void* sums, Turn& turn, void* scratch) const {
    const int count = tile.end - tile.begin;
    with_pair_vectors(
        count, [&]<int kVectors>() { add_tile<kVectors>(t, tile, count, (float*)sums, turn, (uint32_t*)scratch); });
  }

  void finish(const BackwardTask& t, int64_t begin, int64_t end) const {
    write_query_gradient<bf16>(t, begin, end, r_.grad_q, r_.wide);
  }

 private:
  // An odd number of cache lines; see attention_backward.cpp.
  static int64_t words_of(const AttentionShape& s) {
    return Words::rounded(pair_width(s.head_dim)) | Words::rounded(1);
  }
  static int64_t wide_of(const AttentionShape& s) { return Words::rounded(s.head_dim) | Words::rounded(1); }

  // Returns 0, or NaN if an element is not finite; a null row counts as zeros.
  static float copy_row(uint32_t* to, const bf16* from, int64_t width) {
    std::memset(to, 0, size_t(pair_width(width)) * sizeof(uint32_t));
    if (!from) return 0;
    std::memcpy(to, from, size_t(width) * sizeof(bf16));
    return not_finite(from, width);
  }
  static float not_finite(const bf16* row, int64_t width) {
    Vec<float> odd{};
    int64_t d = 0;
    for (; d + kLanes<float> <= width; d += kLanes<float>) odd += load(row + d) * 0.0f;
    if (d < width) odd += load_partial(row + d, int(width - d)) * 0.0f;
    return reduce_add<float>(odd);
  }

  template <int kVectors>
  void add_tile(const BackwardTask& t, const Tile& tile, int count, float* sums, Turn& turn, uint32_t* scratch) const {
    const AttentionBackwardParams& p = t.p;
    const int64_t width = p.shape.head_dim, steps = pair_width(width);
    uint32_t* key = scratch;
    uint32_t* value = key + steps * kTile;
    uint32_t* keys = value + steps * kTile;  // [pairs of keys][wide]
    uint32_t* weights = keys + kTile / 2 * r_.wide;
    uint32_t* slopes = weights + kPairs * kTile;
    bf16* slope_rows = (bf16*)(slopes + kPairs * kTile);
    uint32_t* seen_keys = slopes + 2 * kPairs * kTile;
    uint32_t* seen_q = seen_keys + kTile / 2 * r_.wide;
    uint32_t* seen_grad = seen_q + kPairs * r_.wide;
    float* grad_key = sums;
    float* grad_value = sums + width * kTile;
    if (t.first()) std::memset(sums, 0, sums_bytes(p.shape));

    const bf16* k = rows_of<bf16>(p.k, t.b, t.kv_head) + tile.begin * p.k.row;
    const bf16* v = rows_of<bf16>(p.v, t.b, t.kv_head) + tile.begin * p.v.row;
    pack_pairs(key, kTile, k, p.k.row, count, width);
    pack_pairs(value, kTile, v, p.v.row, count, width);
    float odd_keys = 0;
    for (int i = 0; i < count; ++i) odd_keys += not_finite(k + i * p.k.row, width);
    for (int i = 0; i < kTile; i += 2)
      pair_rows(keys + i / 2 * r_.wide, i < count ? k + i * p.k.row : nullptr,
                i + 1 < count ? k + (i + 1) * p.k.row : nullptr, width);

    const uint64_t live = live_lanes(tile);
    PairRun q_runs[kPairs], grad_runs[kPairs];
    int run_count = 0, filled = 0;
    const auto flush = [&] {
      add_to_keys<kVectors>(grad_value, weights, grad_runs, run_count, width);
      add_to_keys<kVectors>(grad_key, slopes, q_runs, run_count, width);
      run_count = filled = 0;
    };
    for (int32_t index = tile.first; index < tile.last; ++index) {
      const TileSegment& segment = p.plan.segments[index];
      const uint64_t lanes = segment.lanes & live;
      const WeighPairs<kVectors> work{key,
                                      value,
                                      weights,
                                      slopes,
                                      slope_rows,
                                      steps,
                                      float(p.shape.scale * kLog2E),
                                      &r_,
                                      LaneMasks<float, kVectors>(lanes)};
      for (int64_t row = segment.begin; row < segment.end;) {
        const int64_t first = row / 2, room = 2 * (first + kPairs - filled);
        const int64_t end = segment.end < room ? segment.end : room, pairs = (end + 1) / 2 - first;
        weigh(work, 2 * first, filled, 2 * pairs);
        // A query whose partner belongs to another run, or to none.
        if (row % 2) clear_row(weights, slopes, filled, 0xffff0000u);
        if (end % 2) clear_row(weights, slopes, filled + int(pairs) - 1, 0xffffu);
        turn.take(int32_t(row), int32_t(end));
        const uint32_t* run_keys = keys;
        const uint32_t* q = r_.q2 + first * r_.wide;
        const uint32_t* grad_out = r_.grad_out2 + first * r_.wide;
        if (lanes != live && odd_keys != 0) {
          run_keys = seen_keys;
          for (int i = 0; i < kTile; i += 2)
            copy_halves(seen_keys + i / 2 * r_.wide, keys + i / 2 * r_.wide, lanes >> i & 1, lanes >> i & 2, width);
        }
        float odd = 0;
        for (int64_t i = 2 * first; i < 2 * (first + pairs); ++i) odd += r_.odd[i];
        if (odd != 0 && (lanes != live || row % 2 || end % 2)) {
          for (int64_t i = 0; i < pairs; ++i) {
            const int64_t at = filled + i, query = 2 * (first + i);
            const bool low = r_.odd[query] == 0, high = r_.odd[query + 1] == 0;
            copy_halves(seen_q + at * r_.wide, q + i * r_.wide, low, high, width);
            copy_halves(seen_grad + at * r_.wide, grad_out + i * r_.wide, low, high, width);
            for (int half = 0; half < 2; ++half)
              if (!(half ? high : low) && query + half >= row && query + half < end)
                add_to_seeing_keys(grad_key, grad_value, q + i * r_.wide, grad_out + i * r_.wide, weights + at * kTile,
                                   slopes + at * kTile, half, width, count, lanes);
          }
          q = seen_q + filled * r_.wide;
          grad_out = seen_grad + filled * r_.wide;
        }
        add_to_queries(slope_rows + (2 * filled + row % 2) * kTile, run_keys, row, end - row, width, count);
        q_runs[run_count] = {q, pairs};
        grad_runs[run_count++] = {grad_out, pairs};
        filled += int(pairs);
        row = end;
        if (filled == kPairs) flush();
      }
    }
    if (filled) flush();
    if (t.last()) write_key_gradients<bf16>(t, tile, grad_key, float(p.shape.scale), grad_value, kTile);
  }

  static void clear_row(uint32_t* weights, uint32_t* slopes, int pair, uint32_t keep) {
    for (int i = pair * kTile; i < (pair + 1) * kTile; ++i) {
      weights[i] &= keep;
      slopes[i] &= keep;
    }
  }

  template <int kVectors>
  void add_to_keys(float* sums, const uint32_t* weights, const PairRun* runs, int run_count, int64_t width) const {
    for (const PairRun* run = runs; run < runs + run_count; weights += run->count * kTile, ++run) {
      AddPairs<kVectors> work{sums, kTile, run->data, 1, r_.wide, weights, kTile, run->count};
      for_blocks<kPairRows<kVectors>>(0, width, work);
    }
  }

  void add_to_queries(const bf16* slopes, const uint32_t* keys, int64_t row, int64_t rows, int64_t width,
                      int count) const {
    for (int64_t d = 0; d < width; d += kTile)
      with_pair_vectors(int(width - d < kTile ? width - d : kTile), [&]<int kVectors>() {
        AddPairs<kVectors> work{r_.grad_q + row * r_.wide + d,
                                r_.wide,
                                (const uint32_t*)slopes,
                                kTile / 2,
                                1,
                                keys + d,
                                r_.wide,
                                (count + 1) / 2};
        for_blocks<kPairRows<kVectors>>(0, rows, work);
      });
  }

  static void copy_halves(uint32_t* to, const uint32_t* from, bool low, bool high, int64_t width) {
    const uint32_t kept = (low ? 0xffffu : 0) | (high ? 0xffff0000u : 0);
    for (int64_t d = 0; d < width; ++d) to[d] = from[d] & kept;
  }

  // As in attention_backward.cpp, for one query of a pair.
  static void add_to_seeing_keys(float* grad_key, float* grad_value, const uint32_t* q, const uint32_t* grad_out,
                                 const uint32_t* weights, const uint32_t* slopes, int half, int64_t width, int count,
                                 uint64_t lanes) {
    const auto value = [half](uint32_t pair) { return to_float(bf16{uint16_t(half ? pair >> 16 : pair)}); };
    for (int k = 0; k < count; ++k) {
      if (!(lanes >> k & 1)) continue;
      for (int64_t d = 0; d < width; ++d) {
        grad_key[d * kTile + k] += value(slopes[k]) * value(q[d]);
        grad_value[d * kTile + k] += value(weights[k]) * value(grad_out[d]);
      }
    }
  }

  QueryPairs r_;
};

}  // namespace

void attention_backward_pairs(const AttentionBackwardParams& p) { Backward<PairBackward>(p).run(); }
#endif

}  // namespace VIDEOAR_ISA
}  // namespace videoar
