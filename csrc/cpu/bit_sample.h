#pragma once

#include "bits.h"
#include "parallel.h"
#include "philox_fill.h"

namespace videoar {
namespace VIDEOAR_ISA {

void sample_bits(const SampleParams& p);

// Elements [first, first + count) of each of `rows` tokens from `row` on: whole tokens, or a piece of one.
struct Draw {
  int64_t row, rows, first, count;
};

// f(draw, words) for draws of at most kDrawElements elements that cover `rows` tokens of `dim`; pieces start at whole
// bytes. Draws run on all threads, each with its own words.
template <class F>
static inline void each_draw(int64_t rows, int64_t dim, const F& f, uint64_t offset, uint64_t seed) {
  if (dim == 0) return;
  // Eight tokens end with a whole vector if one ends with a whole byte.
  int64_t per_draw = dim >= kDrawElements ? 1 : kDrawElements / dim;
  if (per_draw >= 8) per_draw = per_draw / 8 * 8;
  // A word costs about as much as two bytes of traffic.
  parallel_ranges((rows + per_draw - 1) / per_draw, rows * dim * 2, [&](int64_t begin, int64_t end) {
    PhiloxWords words(offset, seed);
    const int64_t last = end * per_draw < rows ? end * per_draw : rows;
    for (int64_t row = begin * per_draw; row < last; row += per_draw) {
      const int64_t count = row + per_draw < last ? per_draw : last - row;
      for (int64_t first = 0; first < dim; first += kDrawElements) {
        f(Draw{row, count, first, dim - first < kDrawElements ? dim - first : kDrawElements}, words);
      }
    }
  });
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
