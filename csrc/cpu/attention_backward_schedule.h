// Who computes what in attention's backward. A task is one key tile under one query head: it owns grad_k and grad_v of
// its keys and adds to the grad_q of every query that sees them. Tiles add to a row of grad_q in the plan's order, so
// nothing depends on the number of threads, and no thread needs a copy of grad_q:
// - a thread that has a key head to itself takes its tiles one after another;
// - threads that share key heads take tiles in turn, each one a block of rows behind the tile before it.
#pragma once

#include <sched.h>

#include <climits>
#include <cstdint>

#include "attention_tile.h"
#include "parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

inline void pause_briefly(int& spins) {
  if (++spins % 1024 == 0) sched_yield();
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Lets a tile add to rows of grad_q only after every earlier tile has. Waiting cannot deadlock: tiles are taken in
// order, and the first unfinished one never waits.
class Turn {
 public:
  Turn() = default;
  Turn(int32_t* reached, int64_t tile) : reached_(reached), tile_(tile) {}

  // Returns when rows [begin, end) are this tile's to add to; it will not come back to rows before `begin`.
  void take(int32_t begin, int32_t end) {
    if (!reached_) return;
    __atomic_store_n(&reached_[tile_], begin, __ATOMIC_RELEASE);
    while (open_ < tile_ && __atomic_load_n(&reached_[open_], __ATOMIC_ACQUIRE) == INT32_MAX) ++open_;
    for (int64_t i = open_; i < tile_; ++i)
      for (int spins = 0; __atomic_load_n(&reached_[i], __ATOMIC_ACQUIRE) < end;) pause_briefly(spins);
  }
  void finish() {
    if (reached_) __atomic_store_n(&reached_[tile_], INT32_MAX, __ATOMIC_RELEASE);
  }

 private:
  int32_t* reached_ = nullptr;   // by tile: rows before this are done
  int64_t tile_ = 0, open_ = 0;  // no tile before open_ is at work
};

// Where and for whom a task works.
struct BackwardTask {
  const AttentionBackwardParams& p;
  int64_t b, kv_head, group;  // query head kv_head * (heads / kv_heads) + group
  int64_t head() const { return kv_head * (p.shape.heads / p.shape.kv_heads) + group; }
  bool first() const { return group == 0; }
  bool last() const { return group + 1 == p.shape.heads / p.shape.kv_heads; }
};

// delta = rowsum(grad_out * out) - grad_lse, summed in the order of the products it is subtracted from: they cancel
// where one key has all the weight. `scratch` holds 2 * head_dim vectors.
template <class T>
void row_deltas(const BackwardTask& t, int64_t begin, int64_t end, Accumulator<T>* delta, Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  const AttentionBackwardParams& p = t.p;
  const int64_t width = p.shape.head_dim;
  const T* grad_out = rows_of<T>(p.grad_out, t.b, t.head());
  const T* out = rows_of<T>(p.out, t.b, t.head());
  const A* grad_lse = (const A*)p.grad_lse + (t.b * p.shape.heads + t.head()) * p.shape.q_len;
  A* left = scratch;
  A* right = left + width * kLanes<A>;
  for (int64_t i = begin; i < end; i += kLanes<A>) {
    const int64_t count = end - i < kLanes<A> ? end - i : kLanes<A>;
    pack(left, kLanes<A>, grad_out + i * p.grad_out.row, p.grad_out.row, count, width, A(1));
    pack(right, kLanes<A>, out + i * p.out.row, p.out.row, count, width, A(1));
    Vec<A> sum{};
    for (int64_t d = 0; d < width; ++d) sum += load(left + d * kLanes<A>) * load(right + d * kLanes<A>);
    for (int64_t r = 0; r < count; ++r) delta[i + r] = sum[r] - (p.grad_lse ? grad_lse[i + r] : A(0));
  }
}

// Rows [begin, end) of grad_q from their sums [q_len][stride].
template <class T>
void write_query_gradient(const BackwardTask& t, int64_t begin, int64_t end, const Accumulator<T>* sums,
                          int64_t stride) {
  using A = Accumulator<T>;
  const int64_t width = t.p.shape.head_dim;
  const A scale = A(t.p.shape.scale);
  T* rows = rows_of<T>(t.p.grad_q, t.b, t.head());
  for (int64_t i = begin; i < end; ++i) {
    const A* from = sums + i * stride;
    T* to = rows + i * t.p.grad_q.row;
    int64_t d = 0;
    for (; d + kLanes<A> <= width; d += kLanes<A>) store(to + d, load(from + d) * scale);
    if (d < width) store_partial(to + d, load(from + d) * scale, int(width - d));
  }
}

// A tile of grad_k and grad_v from their sums: blocks of [head_dim][block], for `block` keys each.
template <class T>
void write_key_gradients(const BackwardTask& t, const Tile& tile, const Accumulator<T>* grad_key,
                         Accumulator<T> key_factor, const Accumulator<T>* grad_value, int block) {
  using A = Accumulator<T>;
  const int64_t width = t.p.shape.head_dim;
  A factors[kMaxTile];
  const auto write = [&](const HeadRows<void*>& to, const A* sums, A factor) {
    for (A& f : factors) f = factor;
    for (int begin = tile.begin; begin < tile.end; begin += block, sums += block * width) {
      const int count = tile.end - begin < block ? tile.end - begin : block;
      unpack(rows_of<T>(to, t.b, t.kv_head) + begin * to.row, to.row, sums, block, count, width, factors);
    }
  };
  write(t.p.grad_k, grad_key, key_factor);
  write(t.p.grad_v, grad_value, A(1));
}

// A Method computes; all its memory is counted in bytes, multiples of 64, and starts at a multiple of 64:
//   head_bytes(shape)     one query head: copies of its rows, grad_q
//   sums_bytes(shape)     grad_k and grad_v of one tile, kept from one query head of a group to the next
//   scratch_bytes(shape)  of a thread
//   Method(shape, void* head)
//   prepare(task, begin, end, scratch)        rows [begin, end) of a query head
//   add_tile(task, tile, sums, turn, scratch)
//   finish(task, begin, end)                  writes rows of grad_q
template <class Method>
class Backward {
 public:
  explicit Backward(const AttentionBackwardParams& p)
      : p_(p),
        pairs_(p.shape.batch * p.shape.kv_heads),
        group_(p.shape.heads / p.shape.kv_heads),
        tiles_(p.plan.tile_ptr[1] - p.plan.tile_ptr[0]),  // the same in every sample
        head_bytes_(Method::head_bytes(p.shape)),
        sums_bytes_(Method::sums_bytes(p.shape) * (group_ == 1 ? 1 : tiles_)) {}

  void run() {
    if (pairs_ == 0) return;
    const AttentionShape& s = p_.shape;
    const int64_t units = pairs_ * (tiles_ > 0 ? tiles_ : 1);
    const int threads = thread_count(units, s.batch * s.heads * s.q_len * (s.k_len + 1) * s.head_dim);
    const int64_t alone = pairs_ - pairs_ % threads;
    if (alone > 0) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
      for (int64_t pair = 0; pair < alone; ++pair) run_alone(pair);
    }
    if (alone < pairs_) run_together(alone, threads);
  }

 private:
  BackwardTask task(int64_t pair, int64_t group) const {
    return {p_, pair / p_.shape.kv_heads, pair % p_.shape.kv_heads, group};
  }
  const Tile& tile(int64_t b, int64_t i) const {
    return p_.plan.tiles[p_.plan.tile_ptr[p_.plan.samples == 1 ? 0 : b] + i];
  }
  // grad_k and grad_v of a tile: apart from others' only where they outlive the task.
  char* sums_of(char* sums, int64_t i) const {
    return group_ == 1 ? sums : sums + i * (sums_bytes_ / (tiles_ ? tiles_ : 1));
  }

  void run_alone(int64_t pair) {
    thread_local Workspace workspace;
    char* head = (char*)workspace.reserve(head_bytes_ + sums_bytes_ + Method::scratch_bytes(p_.shape));
    char* sums = head + head_bytes_;
    char* scratch = sums + sums_bytes_;
    const Method method(p_.shape, head);
    for (int64_t g = 0; g < group_; ++g) {
      const BackwardTask t = task(pair, g);
      method.prepare(t, 0, p_.shape.q_len, scratch);
      Turn turn;
      for (int64_t i = 0; i < tiles_; ++i) method.add_tile(t, tile(t.b, i), sums_of(sums, i), turn, scratch);
      method.finish(t, 0, p_.shape.q_len);
    }
    workspace.trim();
  }

  void run_together(int64_t first_pair, int threads) {
    const int64_t pairs = pairs_ - first_pair, rows = p_.shape.q_len, blocks = (rows + kRowBlock - 1) / kRowBlock;
    const size_t kept = group_ == 1 ? 0 : sums_bytes_, own = group_ == 1 ? sums_bytes_ : 0;
    const size_t turn_bytes = sizeof(int32_t) * size_t(pairs * tiles_);
    char* heads = (char*)std::aligned_alloc(64, (size_t(pairs) * (head_bytes_ + kept) + turn_bytes + 63) / 64 * 64);
    char* sums = heads + pairs * head_bytes_;
    int32_t* reached = (int32_t*)(sums + pairs * kept);
    const auto method = [&](int64_t pair) { return Method(p_.shape, heads + pair * head_bytes_); };
    for (int64_t g = 0; g < group_; ++g) {
      std::memset(reached, 0, turn_bytes);
      int64_t next = 0;
#pragma omp parallel num_threads(threads)
      {
        thread_local Workspace workspace;
        char* scratch = (char*)workspace.reserve(Method::scratch_bytes(p_.shape) + own);
        const auto each_block = [&](const auto& f) {
#pragma omp for schedule(static)
          for (int64_t i = 0; i < pairs * blocks; ++i) {
            const int64_t pair = i / blocks, begin = i % blocks * kRowBlock, end = begin + kRowBlock;
            f(method(pair), task(first_pair + pair, g), begin, end < rows ? end : rows);
          }
        };
        each_block([&](const Method& m, const BackwardTask& t, int64_t begin, int64_t end) {
          m.prepare(t, begin, end, scratch);
        });
        for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < pairs * tiles_;) {
          const int64_t pair = i % pairs, index = i / pairs;
          const BackwardTask t = task(first_pair + pair, g);
          Turn turn(reached + pair * tiles_, index);
          char* tile_sums = own ? scratch + Method::scratch_bytes(p_.shape) : sums_of(sums + pair * kept, index);
          method(pair).add_tile(t, tile(t.b, index), tile_sums, turn, scratch);
          turn.finish();
        }
#pragma omp barrier
        each_block(
            [&](const Method& m, const BackwardTask& t, int64_t begin, int64_t end) { m.finish(t, begin, end); });
        workspace.trim();
      }
    }
    std::free(heads);
  }

  static constexpr int64_t kRowBlock = 64;
  const AttentionBackwardParams& p_;
  const int64_t pairs_, group_, tiles_;
  const size_t head_bytes_, sums_bytes_;
};

}  // namespace
}  // namespace VIDEOAR_ISA
}  // namespace videoar
