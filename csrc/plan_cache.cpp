#include "plan_cache.h"

#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <utility>
#include <vector>

namespace videoar {
namespace {

constexpr size_t kMostPlans = 64;
constexpr int64_t kMostBytes = int64_t(64) << 20;  // of all plans together; the newest stays whatever its size

struct Array {
  const int32_t* data;
  int64_t size;
};

std::array<Array, 4> arrays_of(const RangeMaskView& m) {
  if (!m.batch_ptr) return {};
  return {
      {{m.batch_ptr, m.samples + 1}, {m.q_ranges, 2 * m.rows}, {m.key_ptr, m.rows + 1}, {m.key_ranges, 2 * m.ranges}}};
}

// Tells requests apart cheaply: all sizes and a few dozen numbers. Equality is decided by comparing everything.
uint64_t fingerprint(const PlanRequest& request) {
  const RangeMaskView& m = request.mask;
  uint64_t hash = 0x9e3779b97f4a7c15;
  const auto mix = [&hash](uint64_t x) {
    hash = (hash ^ x) * 0xff51afd7ed558ccd;
    hash ^= hash >> 32;
  };
  for (int64_t x : {m.samples, m.rows, m.ranges, m.q_len, m.k_len, int64_t(2 * request.tile + request.by_key)}) mix(x);
  for (const Array& a : arrays_of(m)) {
    const int64_t step = a.size / 32 + 1;
    for (int64_t i = a.size - 1; i >= 0; i -= step) mix(uint32_t(a.data[i]));
  }
  return hash;
}

struct Entry {
  uint64_t hash;
  bool full;
  std::array<int64_t, 4> sizes{};
  std::array<int64_t, 3> lengths;
  std::vector<int32_t> content;
  TilePlan plan;
  int64_t bytes;
  std::atomic<uint64_t> used{0};

  Entry(const PlanRequest& request, uint64_t hash, TilePlan&& made)
      : hash(hash), full(!request.mask.batch_ptr), lengths(lengths_of(request)), plan(std::move(made)) {
    const auto arrays = arrays_of(request.mask);
    for (size_t i = 0; i < 4; ++i) {
      sizes[i] = arrays[i].size;
      content.insert(content.end(), arrays[i].data, arrays[i].data + arrays[i].size);
    }
    bytes = int64_t(content.size() * sizeof(int32_t) + plan.tiles.size() * sizeof(Tile) +
                    plan.tile_ptr.size() * sizeof(int32_t) + plan.segments.size() * sizeof(TileSegment));
  }

  static std::array<int64_t, 3> lengths_of(const PlanRequest& r) {
    return {r.mask.q_len, r.mask.k_len, 2 * r.tile + r.by_key};
  }

  bool serves(const PlanRequest& request, uint64_t wanted) const {
    if (hash != wanted || full != !request.mask.batch_ptr || lengths != lengths_of(request)) return false;
    const int32_t* held = content.data();
    const auto arrays = arrays_of(request.mask);
    for (size_t i = 0; i < 4; ++i) {
      if (arrays[i].size != sizes[i]) return false;
      if (sizes[i] && std::memcmp(held, arrays[i].data, size_t(sizes[i]) * sizeof(int32_t))) return false;
      held += sizes[i];
    }
    return true;
  }
};

struct Cache {
  std::shared_mutex mutex;
  std::vector<std::shared_ptr<Entry>> entries;
  std::atomic<uint64_t> clock{0};
  std::atomic<int64_t> hits{0}, misses{0};

  std::shared_ptr<Entry> find(const PlanRequest& request, uint64_t hash) {
    const std::shared_lock lock(mutex);
    for (const auto& entry : entries) {
      if (!entry->serves(request, hash)) continue;
      entry->used.store(++clock, std::memory_order_relaxed);
      return entry;
    }
    return nullptr;
  }

  void add(const PlanRequest& request, const std::shared_ptr<Entry>& fresh) {
    const std::unique_lock lock(mutex);
    for (const auto& entry : entries)
      if (entry->serves(request, fresh->hash)) return;  // another thread was quicker
    fresh->used.store(++clock, std::memory_order_relaxed);
    entries.push_back(fresh);
    int64_t bytes = 0;
    for (const auto& entry : entries) bytes += entry->bytes;
    while (entries.size() > 1 && (entries.size() > kMostPlans || bytes > kMostBytes)) {
      size_t oldest = 0;
      for (size_t i = 1; i < entries.size(); ++i)
        if (entries[i]->used.load(std::memory_order_relaxed) < entries[oldest]->used.load(std::memory_order_relaxed))
          oldest = i;
      bytes -= entries[oldest]->bytes;
      entries.erase(entries.begin() + int64_t(oldest));
    }
  }
};

Cache& cache() {
  static Cache* const one = new Cache;  // never destroyed: threads may outlive static objects
  return *one;
}

}  // namespace

std::shared_ptr<const TilePlan> cached_plan(const PlanRequest& request, const char*& reason) {
  Cache& c = cache();
  const uint64_t hash = fingerprint(request);
  std::shared_ptr<Entry> entry = c.find(request, hash);
  if (entry) {
    c.hits.fetch_add(1, std::memory_order_relaxed);
  } else {
    c.misses.fetch_add(1, std::memory_order_relaxed);
    reason = request.mask.batch_ptr ? invalid(request.mask) : nullptr;
    if (reason) return nullptr;
    entry = std::make_shared<Entry>(
        request, hash,
        request.by_key ? plan_keys(request.mask, request.tile) : plan_queries(request.mask, request.tile));
    c.add(request, entry);
  }
  return {entry, &entry->plan};
}

PlanCacheState plan_cache_state() {
  Cache& c = cache();
  const std::shared_lock lock(c.mutex);
  PlanCacheState state{c.hits, c.misses, int64_t(c.entries.size()), 0};
  for (const auto& entry : c.entries) state.bytes += entry->bytes;
  return state;
}

void clear_plan_cache() {
  Cache& c = cache();
  const std::unique_lock lock(c.mutex);
  c.entries.clear();
}

}  // namespace videoar
