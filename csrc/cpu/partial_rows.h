// A gradient summed by tasks, a row of partial sums each: added up in the order of tasks, whatever runs them.
#pragma once

#include "parallel.h"
#include "sweep.h"

namespace videoar {
namespace VIDEOAR_ISA {

// write(sums, count, group, column) gets the sums of `count` columns over the `tasks` rows of a group; rows are
// `stride` elements apart, and one group's follow another's.
template <class A, class F>
static inline void add_partials(const A* partial, int64_t stride, int64_t groups, int64_t tasks, int64_t width,
                                const F& write) {
  constexpr int64_t kColumns = 256;
  const int64_t blocks = (width + kColumns - 1) / kColumns;
  parallel_ranges(groups * blocks, groups * tasks * width * int64_t(sizeof(A)), [&](int64_t begin, int64_t end) {
    alignas(64) A sums[kColumns];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / blocks, column = item % blocks * kColumns;
      const int64_t count = width - column < kColumns ? width - column : kColumns;
      const A* first = partial + group * tasks * stride + column;
      sweep<A>(count, [&](int64_t i, int n) {
        Vec<A> sum{};
        for (int64_t task = 0; task < tasks; ++task) sum += load_upto(first + task * stride + i, n);
        store_upto(sums + i, sum, n);
      });
      write(sums, count, group, column);
    }
  });
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
