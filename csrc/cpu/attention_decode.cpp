// Forward for few queries against many keys: each byte of the cache is read once, for all queries and all heads of a
// group. Keys are split into chunks, one task each, so that one head keeps every thread busy; the last task of a head
// merges its chunks in their order. The split depends on k_len alone: bits don't depend on threads or batch.
#include "attention_decode.h"

#include "attention_pairs.h"
#include "decode_rows.h"
#include "parallel.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

constexpr int kBlock = 64;       // keys that are scored before they meet their values: all stays in the nearest cache
constexpr int kRowLanes = 6;     // from so many rows on, lanes are rows
constexpr int64_t kChunk = 512;  // keys of a chunk; merging shorter ones would show
constexpr int64_t kMostChunks = 32;  // beyond, chunks grow instead
constexpr double kLog2E = 1.4426950408889634;

thread_local Workspace workspace, partials;

template <class A>
constexpr A kLowest = A(sizeof(A) == 8 ? -1.7976931348623157e308 : -3.4028234663852886e38);

// The rows of one key head: row i * group + g is query i of the group's head g, so that rows which see the same keys
// lie together.
struct Problem {
  int64_t group, rows, width, row_stride, chunk, chunks;

  template <class A>
  static Problem of(const AttentionShape& s) {
    Problem p;
    p.group = s.heads / s.kv_heads;
    p.rows = p.group * s.q_len;
    p.width = (s.head_dim + kPair<A> - 1) / kPair<A> * kPair<A>;
    p.row_stride = Carver<A>::rounded(p.rows + kMostRows);
    p.chunk = kChunk * ((s.k_len + kMostChunks * kChunk - 1) / (kMostChunks * kChunk));
    p.chunks = s.k_len == 0 ? 1 : (s.k_len + p.chunk - 1) / p.chunk;
    return p;
  }
};

// What a chunk found for each row: the highest score (in base 2), and sums of weights 2^(score - highest) and of
// values. Where weights are rounded before they meet values, `total` is of the rounded ones, so that errors cancel, and
// `exact`, which lse is made of, is not.
template <class A>
struct Partial {
  A *top, *total, *exact, *sum;

  static int64_t size(const Problem& p) { return 3 * Carver<A>::rounded(p.rows) + p.rows * p.width; }
  Partial(A* memory, const Problem& p)
      : top(memory),
        total(top + Carver<A>::rounded(p.rows)),
        exact(total + Carver<A>::rounded(p.rows)),
        sum(exact + Carver<A>::rounded(p.rows)) {}
};

// S: how keys and values are stored when they are met, T or, where a row is no whole number of vectors, A.
template <class S>
struct Chunk {
  using A = Accumulator<S>;
  static constexpr int kN = kLanes<A>;
  const Problem& problem;
  Partial<A> found;
  A* query;        // [rows][width], scaled for base 2
  A* query_lanes;  // [width][row_stride], the same; with dots pairs [width / 2][row_stride], as they came
  A* scores;       // [row][kBlock] where lanes are keys, else [kBlock][kMostRows]
  A* keys;         // [kBlock][width], keys for lanes that are rows; with dots pairs of values
  A scale;

  void meet(int64_t first, int rows, const S* k, int64_t k_stride, const S* v, int64_t v_stride, int count) const {
    const Ahead values(v, v_stride, problem.width, count);
    const Ahead next_keys(k + kBlock * k_stride, k_stride, problem.width, count);
    if (rows < kRowLanes) {
      score_few(first, rows, k, k_stride, count, values);
      for (int r = 0; r < rows; ++r) weigh_row(first + r, scores + r * kBlock, count);
      add<kBlock, 1>(first, rows, v, v_stride, count, next_keys);
    } else {
      if constexpr (kDots<S>) {
        score_pairs(first, rows, k, k_stride, count, values);
      } else {
        score_many(first, rows, k, k_stride, count, values);
      }
      for (int r = 0; r < rows; r += kN) weigh_lanes(first + r, rows - r < kN ? rows - r : kN, scores + r, count);
      if constexpr (kDots<S>) {
        add_pairs(first, rows, v, v_stride, count, next_keys);
      } else {
        add<1, kMostRows>(first, rows, v, v_stride, count, next_keys);
      }
    }
  }

 private:
  void score_few(int64_t first, int rows, const S* k, int64_t stride, int count, Ahead values) const {
    const A* q = query + first * problem.width;
    int r = 0;
    const auto take = [&]<int kRows>() {
      score_along_head<S, kRows>(q + r * problem.width, k, stride, count, problem.width, scores + r * kBlock, kBlock,
                                 r == 0 ? values : Ahead());
      r += kRows;
    };
    if constexpr (kN >= 4)
      while (r + 4 <= rows) take.template operator()<4>();
    while (r + 2 <= rows) take.template operator()<2>();
    while (r < rows) take.template operator()<1>();
  }

  void score_many(int64_t first, int rows, const S* k, int64_t stride, int count, Ahead values) const {
    const int64_t width = problem.width;
    const A* rows_of_keys = (const A*)k;
    if constexpr (sizeof(S) != sizeof(A)) {
      for (int key = 0; key < count; ++key)
        for (int64_t d = 0; d < width; d += kPair<A>) {
          const VectorPair<A> x = load_pair(k + key * stride + d);
          store(keys + key * width + d, x.first);
          store(keys + key * width + d + kN, x.second);
        }
      rows_of_keys = keys;
      stride = width;
    }
    const int vectors = (rows + kN - 1) / kN;
    for (int j = 0; j < vectors;) {
      const auto take = [&]<int kVectors>() {
        ScoreAlongRows<A, kVectors> work{query_lanes + first + j * kN,
                                         problem.row_stride,
                                         rows_of_keys,
                                         stride,
                                         width,
                                         scores + j * kN,
                                         int(kMostRows),
                                         j == 0 ? values : Ahead()};
        for_blocks<kBlockRows<kVectors>>(0, count, work);
        j += kVectors;
      };
      const int left = vectors - j;
      left == 1   ? take.template operator()<1>()
      : left == 3 ? take.template operator()<3>()
                  : take.template operator()<2>();
    }
  }

#if defined(VIDEOAR_BF16_DOT)
  void score_pairs(int64_t first, int rows, const S* k, int64_t stride, int count, Ahead values) const {
    const uint32_t* q = (const uint32_t*)query_lanes + first;
    const int vectors = (rows + kN - 1) / kN;
    for (int j = 0; j < vectors;) {
      const auto take = [&]<int kVectors>() {
        ScorePairs<kVectors> work{
            q + j * kN, problem.row_stride,       k, stride, problem.width, scores + j * kN, kMostRows,
            scale,      j == 0 ? values : Ahead()};
        for_blocks<kPairRows<kVectors>>(0, count, work);
        j += kVectors;
      };
      vectors - j == 1 ? take.template operator()<1>() : take.template operator()<2>();
    }
  }

  void add_pairs(int64_t first, int rows, const S* v, int64_t stride, int count, Ahead next_keys) const {
    uint32_t* pairs = (uint32_t*)keys;
    for (int key = 0; key < count; key += 2) {
      pair_values(pairs + key / 2 * problem.width, v + key * stride, key + 1 < count ? v + (key + 1) * stride : nullptr,
                  problem.width);
      next_keys.ask(key);
      next_keys.ask(key + 1);
    }
    const int parts = (rows + kValueRows - 1) / kValueRows;
    for (int part = 0; part < parts; ++part) {
      const int begin = rows * part / parts, n = rows * (part + 1) / parts - begin;
      with_rows(n, [&]<int kRows>() {
        add_value_pairs<kRows>(found.sum + (first + begin) * problem.width, problem.width,
                               (const uint32_t*)scores + begin, kMostRows, pairs, (count + 1) / 2);
      });
    }
  }

  void weigh_pairs(A* s, int count, Vec<A> top, Vec<A>& total, Vec<A>& exact) const {
    for (int i = 0; i < count; i += 2) {
      const Vec<A> low = exp2_weight(load(s + i * kMostRows) - top);
      const Vec<A> high = i + 1 < count ? exp2_weight(load(s + (i + 1) * kMostRows) - top) : Vec<A>{};
      const VecU32 pair = to_pairs(low, high);
      store_pairs((uint32_t*)s + i / 2 * kMostRows, pair);
      total += (Vec<A>)(pair << 16) + (Vec<A>)(pair & 0xffff0000u);
      exact += low + high;
    }
  }
#endif

  // Scores become weights; with dots, of pairs of keys.
  void weigh_row(int64_t row, A* s, int count) const {
    const int end = (count + kN - 1) / kN * kN;
    for (int i = count; i < end; ++i) s[i] = -A(__builtin_inf());
    Vec<A> highest = splat(found.top[row]);
    for (int i = 0; i < end; i += kN) highest = vmax<A>(highest, load(s + i));
    const A top = reduce_max<A>(highest);
    if (top > found.top[row]) raise(row, top, reduce_max<A>(exp2_weight(splat(found.top[row] - top))));
    const Vec<A> reference = splat(found.top[row]);
    Vec<A> total{};
    for (int i = 0; i < end; i += kN) {
      const Vec<A> weight = exp2_weight(load(s + i) - reference);
      total += weight;
      store(s + i, weight);
    }
    const A sum = reduce_add<A>(total);
    found.total[row] += sum;
    found.exact[row] += sum;
  }

  // The same for the rows [first, first + rows) in the lanes of one vector.
  void weigh_lanes(int64_t first, int rows, A* s, int count) const {
    const Vec<A> before = load_partial(found.top + first, rows);
    Vec<A> top = before;
    for (int i = 0; i < count; ++i) top = vmax<A>(top, load(s + i * kMostRows));
    if (any(top > before)) {
      const Vec<A> factor = exp2_weight(before - top);
      for (int r = 0; r < rows; ++r)
        if (top[r] > before[r]) raise(first + r, top[r], factor[r]);
    }
    Vec<A> total{}, exact{};
    if constexpr (kDots<S>) {
      weigh_pairs(s, count, top, total, exact);
    } else {
      for (int i = 0; i < count; ++i) {
        const Vec<A> weight = exp2_weight(load(s + i * kMostRows) - top);
        total += weight;
        store(s + i * kMostRows, weight);
      }
      exact = total;
    }
    for (int r = 0; r < rows; ++r) {
      found.total[first + r] += total[r];
      found.exact[first + r] += exact[r];
    }
  }

  void raise(int64_t row, A top, A factor) const {
    found.top[row] = top;
    found.total[row] *= factor;
    found.exact[row] *= factor;
    A* sum = found.sum + row * problem.width;
    for (int64_t d = 0; d < problem.width; d += kN) store(sum + d, load(sum + d) * factor);
  }

  template <int kWeightRow, int kWeightKey>
  void add(int64_t first, int rows, const S* v, int64_t stride, int count, Ahead next_keys) const {
    const int parts = (rows + kValueRows - 1) / kValueRows;
    for (int part = 0; part < parts; ++part) {
      const int begin = rows * part / parts, n = rows * (part + 1) / parts - begin;
      with_rows(n, [&]<int kRows>() {
        add_values<S, kRows, kWeightRow, kWeightKey>(found.sum + (first + begin) * problem.width, problem.width,
                                                     scores + begin * kWeightRow, v, stride, count,
                                                     next_keys.share(part, part + 1, parts));
      });
    }
  }
};

template <class T, class S>
void attend(const AttentionParams& p, const Problem& problem, int64_t b, int64_t kv_head, int64_t chunk,
            Partial<Accumulator<T>> found) {
  using A = Accumulator<T>;
  const int64_t width = problem.width, head_dim = p.shape.head_dim;
  const bool copies = width != head_dim, many = problem.rows >= kRowLanes;
  const int64_t query_size = Carver<A>::rounded(problem.rows * width);
  const int64_t lanes_size = many ? Carver<A>::rounded(problem.row_stride * width) : 0;
  const int64_t rows_size = Carver<A>::rounded(kBlock * width);
  Carver<A> memory{(A*)workspace.reserve(
      sizeof(A) * size_t(query_size + lanes_size + Carver<A>::rounded(kBlock * kMostRows) + 3 * rows_size))};
  Chunk<S> work{problem,
                found,
                memory.take(query_size),
                memory.take(lanes_size),
                memory.take(kBlock * kMostRows),
                memory.take(rows_size),
                A(p.shape.scale * kLog2E)};
  A* key_copy = memory.take(rows_size);
  A* value_copy = memory.take(rows_size);

  for (int64_t r = 0; r < problem.rows; ++r) {
    const T* q = rows_of<T>(p.q, b, kv_head * problem.group + r % problem.group) + r / problem.group * p.q.row;
    pack_row<T, S>(work.query + r * width, q, head_dim, width, work.scale);
    if constexpr (kDots<S>) {
      if (many)
        for (int64_t d = 0; d < width; d += 2) std::memcpy(work.query_lanes + d / 2 * problem.row_stride + r, q + d, 4);
    }
  }
  if (many) {
    for (int64_t d = 0; d < (kDots<S> ? width / 2 : width); ++d) {
      A* lanes = work.query_lanes + d * problem.row_stride;
      if constexpr (!kDots<S>)
        for (int64_t r = 0; r < problem.rows; ++r) lanes[r] = work.query[r * width + d];
      for (int64_t r = problem.rows; r < problem.row_stride; ++r) lanes[r] = 0;
    }
  }
  for (int64_t r = 0; r < problem.rows; ++r) {
    found.top[r] = kLowest<A>;
    found.total[r] = found.exact[r] = 0;
  }
  for (int64_t i = 0; i < problem.rows * width; ++i) found.sum[i] = 0;

  const T* keys = rows_of<T>(p.k, b, kv_head);
  const T* values = rows_of<T>(p.v, b, kv_head);
  const int64_t chunk_begin = chunk * problem.chunk, chunk_end = chunk_begin + problem.chunk;
  const Tile& tile = p.plan.tiles[p.plan.tile_ptr[p.plan.samples == 1 ? 0 : b]];
  const uint64_t live = live_lanes(tile);
  for (int32_t index = tile.first; index < tile.last; ++index) {
    const TileSegment& segment = p.plan.segments[index];
    const int64_t begin = segment.begin > chunk_begin ? segment.begin : chunk_begin;
    const int64_t end = segment.end < chunk_end ? segment.end : chunk_end;
    for (int64_t key = begin; key < end; key += kBlock) {
      const int count = int(end - key < kBlock ? end - key : kBlock);
      const S* k = (const S*)(keys + key * p.k.row);
      const S* v = (const S*)(values + key * p.v.row);
      int64_t k_stride = p.k.row, v_stride = p.v.row;
      if (copies) {
        for (int i = 0; i < count; ++i) {
          pack_row<T, A>(key_copy + i * width, keys + (key + i) * p.k.row, head_dim, width, A(1));
          pack_row<T, A>(value_copy + i * width, values + (key + i) * p.v.row, head_dim, width, A(1));
        }
        k = (const S*)key_copy;
        v = (const S*)value_copy;
        k_stride = v_stride = width;
      }
      for_rows<A>(segment.lanes & live, problem.group,
                  [&](int64_t first, int rows) { work.meet(first, rows, k, k_stride, v, v_stride, count); });
    }
  }
}

// The chunks of one key head, in their order.
template <class T, class S>
void merge(const AttentionParams& p, const Problem& problem, int64_t b, int64_t kv_head, Accumulator<T>* chunks) {
  using A = Accumulator<T>;
  const int64_t size = Partial<A>::size(problem), width = problem.width;
  const Partial<A> all(chunks, problem);
  for (int64_t r = 0; r < problem.rows; ++r) {
    A top = all.top[r];
    for (int64_t c = 1; c < problem.chunks; ++c) top = all.top[c * size + r] > top ? all.top[c * size + r] : top;
    A total = 0, exact = 0;
    A* sum = all.sum + r * width;
    for (int64_t c = 0; c < problem.chunks; ++c) {
      const A factor = exp2_weight(splat(all.top[c * size + r] - top))[0];
      total += factor * all.total[c * size + r];
      exact += factor * all.exact[c * size + r];
      const A* x = sum + c * size;
      for (int64_t d = 0; d < width; d += kLanes<A>) {
        const Vec<A> added = load(x + d) * factor;
        store(sum + d, c == 0 ? added : load(sum + d) + added);
      }
    }
    const int64_t head = kv_head * problem.group + r % problem.group, i = r / problem.group;
    unpack_row<T, S>(rows_of<T>(p.out, b, head) + i * p.out.row, sum, p.shape.head_dim, total == 0 ? A(0) : 1 / total);
    if (!p.lse) continue;
    ((A*)p.lse)[(b * p.shape.heads + head) * p.shape.q_len + i] =
        exact == 0 ? -A(__builtin_inf()) : (top + A(__builtin_log2(exact))) * A(1 / kLog2E);
  }
}

template <class T, class S>
void decode_stored(const AttentionParams& p, const Problem& problem) {
  using A = Accumulator<T>;
  const int64_t heads = p.shape.batch * p.shape.kv_heads, tasks = heads * problem.chunks;
  const int64_t size = Partial<A>::size(problem), counters = Carver<A>::rounded(heads * 4);
  A* memory = (A*)partials.reserve(sizeof(A) * size_t(tasks * size + counters));
  int* unfinished = (int*)(memory + tasks * size);
  for (int64_t i = 0; i < heads; ++i) unfinished[i] = int(problem.chunks);
  parallel_items(tasks, heads * problem.rows * p.shape.k_len * p.shape.head_dim, [&](int64_t task) {
    const int64_t head = task / problem.chunks, chunk = task % problem.chunks;
    const int64_t b = head / p.shape.kv_heads, kv_head = head % p.shape.kv_heads;
    A* chunks = memory + head * problem.chunks * size;
    attend<T, S>(p, problem, b, kv_head, chunk, Partial<A>(chunks + chunk * size, problem));
    if (__atomic_sub_fetch(unfinished + head, 1, __ATOMIC_ACQ_REL) == 0) merge<T, S>(p, problem, b, kv_head, chunks);
  });
  workspace.trim();
  partials.trim();
}

template <class T>
void decode(const AttentionParams& p) {
  using A = Accumulator<T>;
  if (p.shape.q_len == 0) return;
  const Problem problem = Problem::of<A>(p.shape);
  if (problem.width == p.shape.head_dim) {
    decode_stored<T, T>(p, problem);
  } else {
    decode_stored<T, A>(p, problem);
  }
}

}  // namespace

void attention_decode(const AttentionParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, decode, p) }

}  // namespace VIDEOAR_ISA
}  // namespace videoar
