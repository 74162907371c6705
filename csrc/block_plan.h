// RangeMask -> work lists for GPU kernels: tiles of rows, and for each the blocks of columns that it meets, aligned to
// where ranges begin. Nearly all blocks are full and need no mask; the others carry one word of bits for each row.
#pragma once

#include <cstdint>
#include <vector>

#include "planner.h"

namespace videoar {

constexpr int kMaxBlockTile = 128;

// Rows [begin, end) of a sample; its lists [first, last) in BlockPlan::full and BlockPlan::partial.
struct BlockTile {
  int32_t begin, end;
  int32_t full_first, full_last;
  int32_t partial_first, partial_last;
};
constexpr int kBlockTileInts = sizeof(BlockTile) / sizeof(int32_t);

// Columns [begin, end), at most a block; the rows' bits stand in pattern `pattern`.
struct PartialBlock {
  int32_t begin, end;
  int32_t pattern;
};
constexpr int kPartialBlockInts = sizeof(PartialBlock) / sizeof(int32_t);

struct BlockPlan {
  std::vector<BlockTile> tiles;       // every row in exactly one; those with most blocks first
  std::vector<int32_t> tile_ptr;      // sample b owns tiles tile_ptr[b] to tile_ptr[b + 1]
  std::vector<int32_t> full;          // first columns of blocks that every row of the tile sees whole
  std::vector<PartialBlock> partial;  // the other blocks
  std::vector<uint64_t> patterns;     // (patterns, words, tile): bit c % 64 of word c / 64 is column c of the block
};

// Tiles of at most `tile` queries (at most kMaxBlockTile) against blocks of `block` keys (at most 128);
// by_key: tiles of keys against blocks of queries. The mask is valid (see invalid()), or without arrays: full.
BlockPlan plan_blocks(const RangeMaskView& mask, int tile, int block, bool by_key);

}  // namespace videoar
