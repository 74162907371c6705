#include "block_plan.h"

#include <algorithm>
#include <string>
#include <unordered_map>

namespace videoar {
namespace {

// A tile that ends where a range ends instead of a few rows later spares that range's rows the next one's mask.
constexpr int kLostRowsDivisor = 16;

struct Lanes {
  uint64_t word[2] = {0, 0};

  static Lanes range(int64_t begin, int64_t end) {
    Lanes lanes;
    for (int64_t i = begin; i < end; ++i) lanes.word[i / 64] |= uint64_t(1) << (i % 64);
    return lanes;
  }
  bool operator==(const Lanes& o) const { return word[0] == o.word[0] && word[1] == o.word[1]; }
  bool any() const { return word[0] | word[1]; }
  bool has(int64_t i) const { return word[i / 64] >> (i % 64) & 1; }
  void toggle(const Lanes& o) {
    word[0] ^= o.word[0];
    word[1] ^= o.word[1];
  }
};

// The rows in `lanes` see columns [begin, end), the others don't.
struct Run {
  int32_t begin, end;
  Lanes lanes;
};

// One sample's mask, by row: sorted disjoint row ranges, each with sorted, disjoint, never adjacent column ranges.
struct Rows {
  std::vector<int32_t> row_ranges, column_ptr, column_ranges;

  int64_t size() const { return int64_t(row_ranges.size()) / 2; }
  int64_t begin(int64_t r) const { return row_ranges[2 * r]; }
  int64_t end(int64_t r) const { return row_ranges[2 * r + 1]; }
};

Rows rows_of(const RangeMaskView& m, int64_t sample) {
  if (!m.batch_ptr) {
    if (m.q_len == 0 || m.k_len == 0) return {{}, {0}, {}};
    return {{0, int32_t(m.q_len)}, {0, 1}, {0, int32_t(m.k_len)}};
  }
  const int32_t first = m.batch_ptr[sample], last = m.batch_ptr[sample + 1];
  Rows rows;
  rows.row_ranges.assign(m.q_ranges + 2 * first, m.q_ranges + 2 * last);
  for (int32_t r = first; r <= last; ++r) rows.column_ptr.push_back(m.key_ptr[r] - m.key_ptr[first]);
  rows.column_ranges.assign(m.key_ranges + 2 * int64_t(m.key_ptr[first]), m.key_ranges + 2 * int64_t(m.key_ptr[last]));
  return rows;
}

Rows transposed(const Rows& rows) {
  struct Edge {
    int32_t column, row;
  };
  std::vector<Edge> edges;
  for (int64_t r = 0; r < rows.size(); ++r)
    for (int64_t i = 2 * int64_t(rows.column_ptr[r]); i < 2 * int64_t(rows.column_ptr[r + 1]); ++i)
      edges.push_back({rows.column_ranges[i], int32_t(r)});
  std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.column < b.column; });
  Rows result;
  result.column_ptr = {0};
  std::vector<int32_t> seeing;  // rows that see the columns from here on, sorted
  for (size_t i = 0; i < edges.size();) {
    const int32_t column = edges[i].column;
    for (; i < edges.size() && edges[i].column == column; ++i) {
      const auto place = std::lower_bound(seeing.begin(), seeing.end(), edges[i].row);
      if (place != seeing.end() && *place == edges[i].row) {
        seeing.erase(place);
      } else {
        seeing.insert(place, edges[i].row);
      }
    }
    if (seeing.empty()) continue;
    result.row_ranges.insert(result.row_ranges.end(), {column, edges[i].column});
    const size_t first = result.column_ranges.size();
    for (const int32_t r : seeing) {
      const int32_t begin = int32_t(rows.begin(r)), end = int32_t(rows.end(r));
      if (result.column_ranges.size() > first && result.column_ranges.back() == begin) {
        result.column_ranges.back() = end;
      } else {
        result.column_ranges.insert(result.column_ranges.end(), {begin, end});
      }
    }
    result.column_ptr.push_back(int32_t(result.column_ranges.size() / 2));
  }
  return result;
}

class Builder {
 public:
  Builder(int tile, int block) : tile_(tile), block_(block), words_((block + 63) / 64) { plan_.tile_ptr = {0}; }

  void sample(const Rows& rows, int64_t length) {
    const size_t first_tile = plan_.tiles.size();
    int64_t row = 0, shared_row = -1;
    BlockTile shared{};
    for (int64_t begin = 0, end; begin < length; begin = end) {
      while (row < rows.size() && rows.end(row) <= begin) ++row;
      end = tile_end(rows, row, begin, length);
      const bool inside = row < rows.size() && rows.begin(row) <= begin && rows.end(row) >= end;
      BlockTile tile = shared;
      if (!inside || row != shared_row || end - begin != shared.end - shared.begin) {
        find_runs(rows, row, begin, end);
        tile = blocks(int(end - begin));
      }
      tile.begin = int32_t(begin);
      tile.end = int32_t(end);
      if (inside) {  // tiles of one size inside one row see the same columns
        shared_row = row;
        shared = tile;
      }
      plan_.tiles.push_back(tile);
    }
    std::stable_sort(plan_.tiles.begin() + first_tile, plan_.tiles.end(),
                     [](const BlockTile& a, const BlockTile& b) { return cost(a) > cost(b); });
    plan_.tile_ptr.push_back(int32_t(plan_.tiles.size()));
  }

  BlockPlan finish() { return std::move(plan_); }

 private:
  static int64_t cost(const BlockTile& t) { return t.full_last - t.full_first + t.partial_last - t.partial_first; }

  int64_t tile_end(const Rows& rows, int64_t row, int64_t begin, int64_t length) const {
    const int64_t longest = std::min(begin + tile_, length);
    int64_t end = longest;
    for (int64_t r = row; r < rows.size() && rows.end(r) <= longest; ++r)
      if (longest - rows.end(r) <= tile_ / kLostRowsDivisor) end = rows.end(r);
    return end;
  }

  // runs_: what the rows [begin, end) see, from row range `row` on.
  void find_runs(const Rows& rows, int64_t row, int64_t begin, int64_t end) {
    struct Event {
      int32_t column;
      Lanes lanes;
    };
    std::vector<Event> events;
    for (int64_t r = row; r < rows.size() && rows.begin(r) < end; ++r) {
      const Lanes lanes =
          Lanes::range(std::max<int64_t>(rows.begin(r) - begin, 0), std::min<int64_t>(rows.end(r), end) - begin);
      for (int64_t i = 2 * int64_t(rows.column_ptr[r]); i < 2 * int64_t(rows.column_ptr[r + 1]); ++i)
        events.push_back({rows.column_ranges[i], lanes});
    }
    std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.column < b.column; });
    runs_.clear();
    Lanes lanes;
    for (size_t i = 0; i < events.size();) {
      const int32_t column = events[i].column;
      for (; i < events.size() && events[i].column == column; ++i) lanes.toggle(events[i].lanes);
      if (!lanes.any()) continue;
      if (!runs_.empty() && runs_.back().end == column && runs_.back().lanes == lanes) {
        runs_.back().end = events[i].column;
      } else {
        runs_.push_back({column, events[i].column, lanes});
      }
    }
  }

  // Covers runs_ with as few blocks as there can be.
  BlockTile blocks(int rows) {
    const Lanes all = Lanes::range(0, rows);
    BlockTile tile{};
    tile.full_first = int32_t(plan_.full.size());
    tile.partial_first = int32_t(plan_.partial.size());
    int64_t column = 0;
    for (size_t i = 0; i < runs_.size();) {
      column = std::max<int64_t>(column, runs_[i].begin);
      if (runs_[i].end <= column) {
        ++i;
      } else if (runs_[i].lanes == all && column + block_ <= runs_[i].end) {
        for (; column + block_ <= runs_[i].end; column += block_) plan_.full.push_back(int32_t(column));
      } else {
        plan_.partial.push_back(partial(i, column, rows));
        column += block_;
      }
    }
    tile.full_last = int32_t(plan_.full.size());
    tile.partial_last = int32_t(plan_.partial.size());
    return tile;
  }

  PartialBlock partial(size_t run, int64_t column, int rows) {
    pattern_.assign(size_t(words_) * tile_, 0);
    int64_t end = column;
    for (; run < runs_.size() && runs_[run].begin < column + block_; ++run) {
      end = std::min<int64_t>(runs_[run].end, column + block_);
      const Lanes bits = Lanes::range(std::max<int64_t>(runs_[run].begin - column, 0), end - column);
      for (int i = 0; i < rows; ++i)
        if (runs_[run].lanes.has(i))
          for (int w = 0; w < words_; ++w) pattern_[size_t(w) * tile_ + i] |= bits.word[w];
    }
    std::string key(reinterpret_cast<const char*>(pattern_.data()), pattern_.size() * sizeof(uint64_t));
    const auto [found, is_new] = known_.try_emplace(std::move(key), int32_t(known_.size()));
    if (is_new) plan_.patterns.insert(plan_.patterns.end(), pattern_.begin(), pattern_.end());
    return {int32_t(column), int32_t(end), found->second};
  }

  const int tile_, block_, words_;
  BlockPlan plan_;
  std::vector<Run> runs_;
  std::vector<uint64_t> pattern_;
  std::unordered_map<std::string, int32_t> known_;
};

}  // namespace

BlockPlan plan_blocks(const RangeMaskView& mask, int tile, int block, bool by_key) {
  Builder builder(tile, block);
  const int64_t samples = mask.batch_ptr ? mask.samples : 1;
  for (int64_t b = 0; b < samples; ++b) {
    const Rows rows = rows_of(mask, b);
    if (by_key) {
      builder.sample(transposed(rows), mask.k_len);
    } else {
      builder.sample(rows, mask.q_len);
    }
  }
  return builder.finish();
}

}  // namespace videoar
