// RangeMask -> work lists of tiles. A tile is a block of queries (or, transposed, of keys) that fill the lanes of a
// few SIMD vectors; its segments say which keys (or queries) it meets, and which of its lanes see them.
#pragma once

#include <cstdint>
#include <vector>

#include "tiles.h"

namespace videoar {

// A RangeMask's arrays; see videoar_kernels/masks.py. A null batch_ptr stands for the full mask.
struct RangeMaskView {
  const int32_t* batch_ptr;   // samples + 1
  const int32_t* q_ranges;    // (rows, 2)
  const int32_t* key_ptr;     // rows + 1
  const int32_t* key_ranges;  // (ranges, 2)
  int64_t samples, rows, ranges;
  int64_t q_len, k_len;
};

struct TilePlan {
  std::vector<Tile> tiles;
  std::vector<int32_t> tile_ptr;
  std::vector<TileSegment> segments;

  TileView view() const { return {tiles.data(), tile_ptr.data(), segments.data(), int64_t(tile_ptr.size()) - 1}; }
};

// The first thing that is wrong with the arrays, or null: ranges out of bounds, unsorted, or pointers that decrease.
const char* invalid(const RangeMaskView& mask);

// Tiles of `tile` queries; columns are keys.
TilePlan plan_queries(const RangeMaskView& mask, int tile);

// Tiles of `tile` keys; columns are queries.
TilePlan plan_keys(const RangeMaskView& mask, int tile);

}  // namespace videoar
