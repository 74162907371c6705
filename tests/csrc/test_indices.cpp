// Index arithmetic that CPU and GPU kernels share, against what it is defined to be.
#include <cstdio>
#include <initializer_list>

#define VIDEOAR_HAS_PORTABLE
#include "../../csrc/cpu/kv_cache.h"
#include "../../csrc/cpu/norm.h"
#include "../../csrc/resample_taps.h"

using namespace videoar;

namespace videoar {
Isa active_isa() { return Isa::portable; }
}  // namespace videoar

static int failures = 0;

static void expect(bool ok, const char* what, int64_t a, int64_t b, int64_t c) {
  if (ok) return;
  std::printf("failed: %s (%lld, %lld, %lld)\n", what, (long long)a, (long long)b, (long long)c);
  ++failures;
}

static void resampling(int n, int m) {
  for (int j = 0; j < m; ++j) {
    const Bin<int> bins = area_bins_of(j, n, m);
    for (int i = 0; i < n; ++i) {
      const Bin<int> bin = area_bin(i, n, m);
      expect(0 <= bin.begin && bin.begin < bin.end && bin.end <= m, "a bin lies inside", i, n, m);
      const bool held = bin.begin <= j && j < bin.end, named = bins.begin <= i && i < bins.end;
      expect(held == named, "area_bins_of names the bins that hold an input", j, n, m);
    }
  }
  for (int i = 0; i < m; ++i) {
    const Tap<float, int> tap = bilinear_tap<float>(i, n, m);
    expect(0 <= tap.first && tap.first <= tap.second && tap.second < n, "taps lie inside", i, n, m);
    float sum = 0;
    for (int j = 0; j < n; ++j) {
      const float share = tap_share(tap, j);
      const Bin<int> reach = bilinear_reach(j, n, m);
      sum += share;
      expect(share == 0 || (reach.begin <= i && i < reach.end), "bilinear_reach holds what reads an input", i, n, m);
    }
    expect(sum > 0.999999f && sum < 1.000001f, "shares add up to one", i, n, m);
  }
}

// Every row is in one task, in order; a group of tokens lies in one task, or a task in one group.
static void tasks_cover(int64_t batch, int64_t length, int64_t tokens, int64_t most) {
  const NormTasks tasks = norm_tasks({batch, length, 8}, tokens, tokens, most);
  int64_t row = 0;
  for (int64_t task = 0; task < tasks.count; ++task) {
    const int64_t begin = task_begin(tasks, task), end = task_end(tasks, task);
    expect(begin == row && begin < end, "tasks follow each other", length, tokens, most);
    const bool whole = begin % tokens == 0 && end % tokens == 0, inside = begin / tokens == (end - 1) / tokens;
    expect(tokens < kGroupInTask ? whole : inside, "tasks keep groups together", length, tokens, most);
    row = end;
  }
  expect(row == batch * length, "tasks cover all rows", length, tokens, most);
}

static void slots(int64_t sink, int64_t capacity) {
  for (int64_t i = 0; i < 3 * capacity; ++i) {
    const int64_t slot = kv_slot(i, sink, capacity);
    expect(0 <= slot && slot < capacity && (i >= sink || slot == i), "slots lie inside", i, sink, capacity);
    expect(i < sink || slot >= sink, "the ring leaves the sink alone", i, sink, capacity);
    const int64_t ring = capacity - sink;
    expect(i < sink || kv_slot(i + ring, sink, capacity) == slot, "the ring comes round", i, sink, capacity);
  }
}

int main() {
  for (int m = 1; m <= 33; ++m)
    for (int n = 1; n <= m; ++n) resampling(n, m);
  resampling(3, 16384), resampling(127, 16384);
  for (int64_t batch : {1, 3})
    for (int64_t length : {1, 60, 64, 1000, 4096})
      for (int64_t tokens = 1; tokens <= length; ++tokens)
        for (int64_t most : {1, 128, 1024})
          if (length % tokens == 0) tasks_cover(batch, length, tokens, most);
  for (int64_t capacity = 1; capacity < 12; ++capacity)
    for (int64_t sink = 0; sink < capacity; ++sink) slots(sink, capacity);
  return failures != 0;
}
