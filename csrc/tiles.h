// A plan's work lists as plain data, for kernels on any device; planner.h makes them.
#pragma once

#include <cstdint>

namespace videoar {

constexpr int kMaxTile = 64;

// Columns [begin, end) are seen by the lanes set in `lanes` (bit i: the tile's i-th row).
struct TileSegment {
  int32_t begin, end;
  uint64_t lanes;
};

// Rows [begin, end), at most kMaxTile, with segments [first, last) in ascending order of columns.
struct Tile {
  int32_t begin, end;
  int32_t first, last;
  int64_t cost;  // columns over all segments
};

// Sample b owns tiles tile_ptr[b] to tile_ptr[b + 1]: every row in exactly one, costly tiles first.
struct TileView {
  const Tile* tiles;
  const int32_t* tile_ptr;
  const TileSegment* segments;
  int64_t samples;  // 1 where every sample of the batch has the same mask
};

}  // namespace videoar
