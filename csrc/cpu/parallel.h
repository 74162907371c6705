// Static-schedule loops over OpenMP threads (PyTorch's own runtime, so torch.set_num_threads holds here too).
#pragma once

#include <omp.h>

#include <cstdint>

namespace videoar {
namespace VIDEOAR_ISA {

// Below this much work (bytes or operations) waking a thread costs more than it gains.
constexpr int64_t kSerialWork = 32768;

static inline int thread_count(int64_t items, int64_t work) {
  if (items <= 1 || work < kSerialWork || omp_in_parallel()) return 1;
  const int64_t most = omp_get_max_threads();
  return int(items < most ? items : most);
}

// f(begin, end) over disjoint ranges that cover [0, items); `work` is the whole loop's cost in bytes or operations.
template <class F>
static inline void parallel_ranges(int64_t items, int64_t work, const F& f) {
  if (items <= 0) return;
  const int threads = thread_count(items, work);
  if (threads == 1) {
    f(int64_t(0), items);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int64_t n = omp_get_num_threads(), i = omp_get_thread_num();
    const int64_t begin = items * i / n, end = items * (i + 1) / n;
    if (begin < end) f(begin, end);
  }
}

// f(i) for every i, handed out one by one: for items of uneven cost, longest first.
template <class F>
static inline void parallel_items(int64_t items, int64_t work, const F& f) {
  const int threads = thread_count(items, work);
  if (threads == 1) {
    for (int64_t i = 0; i < items; ++i) f(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < items; ++i) f(i);
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
