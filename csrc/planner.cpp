#include "planner.h"

#include <algorithm>

namespace videoar {
namespace {

uint64_t lane_bits(int64_t begin, int64_t end) {
  const uint64_t up_to_end = end >= 64 ? ~uint64_t(0) : (uint64_t(1) << end) - 1;
  return up_to_end & ~((uint64_t(1) << begin) - 1);
}

// At this column the lanes in `lanes` start or stop to see; ranges of one row never touch, so a toggle is enough.
struct Event {
  int32_t column;
  uint64_t lanes;
};

// The toggles of several rows, each appended in ascending order of columns, become one ascending list. Neighbouring
// rows see much the same keys, so that most columns meet and the list stays short: quicker than sorting.
struct EventRuns {
  std::vector<Event> events, merged;
  std::vector<size_t> ends;  // of each row's events

  void clear() {
    events.clear();
    ends.clear();
  }
  void add(int32_t column, uint64_t lanes) { events.push_back({column, lanes}); }
  void end_row() { ends.push_back(events.size()); }

  void merge() {
    while (ends.size() > 1) {
      merged.clear();
      size_t runs = 0, begin = 0;
      for (size_t i = 0; i < ends.size(); i += 2) {
        const size_t middle = ends[i], end = i + 1 < ends.size() ? ends[i + 1] : middle;
        merge_two(begin, middle, end);
        ends[runs++] = merged.size();
        begin = end;
      }
      ends.resize(runs);
      events.swap(merged);
    }
  }

  void emit(std::vector<TileSegment>& segments) {
    merge();
    uint64_t lanes = 0;
    for (size_t i = 0; i < events.size(); ++i) {
      lanes ^= events[i].lanes;
      if (lanes) segments.push_back({events[i].column, events[i + 1].column, lanes});
    }
  }

 private:
  void merge_two(size_t a, const size_t middle, const size_t end) {
    size_t b = middle;
    while (a < middle && b < end) {
      const Event x = events[a], y = events[b];
      const bool takes_a = x.column <= y.column, takes_b = y.column <= x.column;
      merged.push_back({takes_a ? x.column : y.column, (takes_a ? x.lanes : 0) ^ (takes_b ? y.lanes : 0)});
      a += takes_a;
      b += takes_b;
    }
    merged.insert(merged.end(), events.begin() + int64_t(a), events.begin() + int64_t(middle));
    merged.insert(merged.end(), events.begin() + int64_t(b), events.begin() + int64_t(end));
  }
};

void finish_tile(TilePlan& plan, int64_t begin, int64_t end, int64_t first) {
  Tile tile{int32_t(begin), int32_t(end), int32_t(first), int32_t(plan.segments.size()), 0};
  for (int32_t s = tile.first; s < tile.last; ++s) tile.cost += plan.segments[s].end - plan.segments[s].begin;
  plan.tiles.push_back(tile);
}

void finish_sample(TilePlan& plan) {
  std::stable_sort(plan.tiles.begin() + plan.tile_ptr.back(), plan.tiles.end(),
                   [](const Tile& a, const Tile& b) { return a.cost > b.cost; });
  plan.tile_ptr.push_back(int32_t(plan.tiles.size()));
}

TilePlan plan_full(int64_t rows, int64_t columns, int tile) {
  TilePlan plan;
  plan.tile_ptr = {0};
  if (columns > 0) plan.segments.push_back({0, int32_t(columns), ~uint64_t(0)});
  for (int64_t begin = 0; begin < rows; begin += tile) finish_tile(plan, begin, std::min(begin + tile, rows), 0);
  finish_sample(plan);
  return plan;
}

}  // namespace

const char* invalid(const RangeMaskView& m) {
  if (m.batch_ptr[0] != 0 || m.batch_ptr[m.samples] != m.rows || m.key_ptr[0] != 0 || m.key_ptr[m.rows] != m.ranges)
    return "pointers that do not cover the ranges";
  for (int64_t b = 0; b < m.samples; ++b) {
    if (m.batch_ptr[b] > m.batch_ptr[b + 1] || m.batch_ptr[b + 1] > m.rows)
      return "batch_ptr decreases or is out of bounds";
    int32_t q = 0;
    for (int64_t r = m.batch_ptr[b]; r < m.batch_ptr[b + 1]; ++r) {
      if (m.q_ranges[2 * r] < q || m.q_ranges[2 * r] >= m.q_ranges[2 * r + 1] || m.q_ranges[2 * r + 1] > m.q_len)
        return "query ranges out of order or out of bounds";
      q = m.q_ranges[2 * r + 1];
      if (m.key_ptr[r] > m.key_ptr[r + 1] || m.key_ptr[r + 1] > m.ranges)
        return "key_ptr decreases or is out of bounds";
      int32_t k = -1;
      for (int64_t i = m.key_ptr[r]; i < m.key_ptr[r + 1]; ++i) {
        if (m.key_ranges[2 * i] <= k || m.key_ranges[2 * i] >= m.key_ranges[2 * i + 1] ||
            m.key_ranges[2 * i + 1] > m.k_len)
          return "key ranges out of order, touching or out of bounds";
        k = m.key_ranges[2 * i + 1];
      }
    }
  }
  return nullptr;
}

TilePlan plan_queries(const RangeMaskView& m, int tile) {
  if (!m.batch_ptr) return plan_full(m.q_len, m.k_len, tile);
  TilePlan plan;
  plan.tile_ptr = {0};
  EventRuns runs;
  for (int64_t b = 0; b < m.samples; ++b) {
    int64_t row = m.batch_ptr[b];
    int64_t shared_row = -1, shared_first = 0;  // tiles inside one row share its segments
    for (int64_t begin = 0; begin < m.q_len; begin += tile) {
      const int64_t end = std::min(begin + tile, m.q_len);
      while (row < m.batch_ptr[b + 1] && m.q_ranges[2 * row + 1] <= begin) ++row;
      const bool inside = row < m.batch_ptr[b + 1] && m.q_ranges[2 * row] <= begin && m.q_ranges[2 * row + 1] >= end;
      if (inside && row == shared_row) {
        const Tile& last = plan.tiles.back();
        plan.tiles.push_back({int32_t(begin), int32_t(end), int32_t(shared_first), last.last, last.cost});
        continue;
      }
      const int64_t first = int64_t(plan.segments.size());
      if (inside) {
        for (int32_t i = m.key_ptr[row]; i < m.key_ptr[row + 1]; ++i)
          plan.segments.push_back({m.key_ranges[2 * i], m.key_ranges[2 * i + 1], ~uint64_t(0)});
        shared_row = row;
        shared_first = first;
      } else {
        runs.clear();
        for (int64_t r = row; r < m.batch_ptr[b + 1] && m.q_ranges[2 * r] < end; ++r) {
          const uint64_t lanes = lane_bits(std::max<int64_t>(m.q_ranges[2 * r] - begin, 0),
                                           std::min<int64_t>(m.q_ranges[2 * r + 1], end) - begin);
          for (int64_t i = 2 * m.key_ptr[r]; i < 2 * m.key_ptr[r + 1]; ++i) runs.add(m.key_ranges[i], lanes);
          runs.end_row();
        }
        runs.emit(plan.segments);
      }
      finish_tile(plan, begin, end, first);
    }
    finish_sample(plan);
  }
  return plan;
}

TilePlan plan_keys(const RangeMaskView& m, int tile) {
  if (!m.batch_ptr) return plan_full(m.k_len, m.q_len, tile);
  TilePlan plan;
  plan.tile_ptr = {0};
  const int64_t tiles = (m.k_len + tile - 1) / tile;
  std::vector<std::vector<TileSegment>> lists(tiles);
  for (int64_t b = 0; b < m.samples; ++b) {
    for (auto& list : lists) list.clear();
    for (int64_t r = m.batch_ptr[b]; r < m.batch_ptr[b + 1]; ++r) {
      const int32_t q_begin = m.q_ranges[2 * r], q_end = m.q_ranges[2 * r + 1];
      for (int64_t i = m.key_ptr[r]; i < m.key_ptr[r + 1]; ++i) {
        const int64_t k_begin = m.key_ranges[2 * i], k_end = m.key_ranges[2 * i + 1];
        for (int64_t t = k_begin / tile; t * tile < k_end; ++t) {
          const uint64_t lanes =
              lane_bits(std::max<int64_t>(k_begin - t * tile, 0), std::min<int64_t>(k_end - t * tile, tile));
          std::vector<TileSegment>& list = lists[t];
          if (!list.empty() && list.back().begin == q_begin) {
            list.back().lanes |= lanes;
          } else {
            list.push_back({q_begin, q_end, lanes});
          }
        }
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = int64_t(plan.segments.size());
      for (const TileSegment& s : lists[t]) {
        if (int64_t(plan.segments.size()) > first && plan.segments.back().end == s.begin &&
            plan.segments.back().lanes == s.lanes) {
          plan.segments.back().end = s.end;
        } else {
          plan.segments.push_back(s);
        }
      }
      finish_tile(plan, t * tile, std::min((t + 1) * tile, m.k_len), first);
    }
    finish_sample(plan);
  }
  return plan;
}

}  // namespace videoar
