// Cosines and sines of a rotary embedding, once per distinct coordinate of each axis: a video of 100,000 tokens has
// a few hundred of them. Compiled once (never per instruction set); no torch header.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/rope.h"

namespace videoar {

// theta^(-2 j / dim) for the dim / 2 pairs of one axis.
inline std::vector<double> inverse_frequencies(int64_t dim, double theta) {
  std::vector<double> frequencies(size_t(dim / 2));
  for (int64_t j = 0; j < dim / 2; ++j) frequencies[size_t(j)] = std::pow(theta, -double(2 * j) / double(dim));
  return frequencies;
}

// Numbers distinct doubles in the order in which they are first seen (open addressing, doubled at half full).
class DistinctCoordinates {
 public:
  DistinctCoordinates() : slots_(64, -1) {}

  int32_t number(double value) {
    if (!values_.empty() && same(values_[size_t(last_)], value)) return last_;
    if (2 * values_.size() >= slots_.size()) grow();
    size_t at = slot(value);
    while (slots_[at] >= 0 && !same(values_[size_t(slots_[at])], value)) at = (at + 1) & (slots_.size() - 1);
    if (slots_[at] < 0) {
      slots_[at] = int32_t(values_.size());
      values_.push_back(value);
    }
    return last_ = slots_[at];
  }

  const std::vector<double>& values() const { return values_; }

 private:
  static uint64_t bits(double value) {
    uint64_t out;
    std::memcpy(&out, &value, sizeof out);
    return out;
  }
  static bool same(double a, double b) { return bits(a) == bits(b); }
  size_t slot(double value) const { return size_t(bits(value) * 0x9e3779b97f4a7c15u >> 32) & (slots_.size() - 1); }

  void grow() {
    slots_.assign(2 * slots_.size(), -1);
    for (size_t i = 0; i < values_.size(); ++i) {
      size_t at = slot(values_[i]);
      while (slots_[at] >= 0) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = int32_t(i);
    }
  }

  std::vector<int32_t> slots_;
  std::vector<double> values_;
  int32_t last_ = 0;
};

// The table for `tokens` positions (tokens, 3), in the layout that cpu/rope.cpp reads: with `spread` a value for every
// element, else one for every pair. A is the accumulator type.
template <class A>
class RopeTable {
 public:
  template <class P>
  RopeTable(const P* positions, int64_t tokens, const int64_t dims[3], double theta, bool spread, bool inverse)
      : index_(size_t(3 * tokens)) {
    for (int axis = 0; axis < 3; ++axis) {
      DistinctCoordinates distinct;
      for (int64_t i = 0; i < tokens; ++i) {
        index_[size_t(3 * i + axis)] = distinct.number(double(positions[3 * i + axis]));
      }
      width_[axis] = spread ? dims[axis] : dims[axis] / 2;
      fill(rows_[axis], distinct.values(), inverse_frequencies(dims[axis], theta), spread, inverse);
    }
  }

  // `batch_stride`: positions between samples, 0 where all samples share them.
  RopeTableView view(int64_t batch_stride) const {
    return {{rows_[0].data(), rows_[1].data(), rows_[2].data()},
            {width_[0], width_[1], width_[2]},
            index_.data(),
            batch_stride};
  }

 private:
  static constexpr size_t kReadAhead = 64;  // kernels copy rows in whole vectors

  // A NaN without a payload: kernels round to bfloat16 by adding to the bits.
  static A plain(A value) { return value == value ? value : std::numeric_limits<A>::quiet_NaN(); }

  static void fill(std::vector<A>& rows, const std::vector<double>& values, const std::vector<double>& frequencies,
                   bool spread, bool inverse) {
    const int64_t pairs = int64_t(frequencies.size()), copies = spread ? 2 : 1, width = copies * pairs;
    const int64_t count = int64_t(values.size());
    rows.resize(size_t(count * 2 * width) + kReadAhead);
    // One sine costs tens of nanoseconds, so a few thousand of them are worth waking the threads for.
#pragma omp parallel for schedule(static) if (count * pairs > 4096 && !omp_in_parallel())
    for (int64_t row = 0; row < count; ++row) {
      A* cosines = rows.data() + row * 2 * width;
      A* sines = cosines + width;
      for (int64_t j = 0; j < pairs; ++j) {
        const double angle = values[size_t(row)] * frequencies[size_t(j)];
        const A c = plain(A(std::cos(angle))), s = plain(A(inverse ? -std::sin(angle) : std::sin(angle)));
        if (spread) {
          // x * cosines + (pairs of x swapped) * sines is the rotation.
          cosines[2 * j] = cosines[2 * j + 1] = c;
          sines[2 * j] = -s;
          sines[2 * j + 1] = s;
        } else {
          cosines[j] = c;
          sines[j] = s;
        }
      }
    }
  }

  std::vector<A> rows_[3];
  int64_t width_[3];
  std::vector<int32_t> index_;
};

// What a table is made of.
struct RopeTableKey {
  const void* positions;
  int64_t tokens, bytes;
  int position_type;
  int64_t dims[3];
  double theta;
  bool spread, inverse;
};

// The tables used last. The layers of a model ask for the same one, by positions of equal content: comparing them
// costs far less than the sines.
template <class A>
class RopeTableCache {
 public:
  using Table = std::shared_ptr<const RopeTable<A>>;

  // The table of `key`; build() makes it where it is new.
  template <class F>
  Table get(const RopeTableKey& key, const F& build) {
    if (key.bytes > kLargest) return std::make_shared<const RopeTable<A>>(build());
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (Entry& entry : entries_) {
        if (entry.table == nullptr || !same(entry, key)) continue;
        entry.used = ++clock_;
        return entry.table;
      }
    }
    const char* data = (const char*)key.positions;
    Entry fresh{key, std::vector<char>(data, data + key.bytes), std::make_shared<const RopeTable<A>>(build()), 0};
    const Table table = fresh.table;
    const std::lock_guard<std::mutex> lock(mutex_);
    Entry* oldest = entries_;
    for (Entry& entry : entries_) oldest = entry.used < oldest->used ? &entry : oldest;
    fresh.used = ++clock_;
    std::swap(*oldest, fresh);
    return table;
  }

 private:
  static constexpr int64_t kLargest = 32 << 20;  // bytes of positions

  struct Entry {
    RopeTableKey key;
    std::vector<char> positions;
    Table table;
    uint64_t used;
  };

  static bool same(const Entry& entry, const RopeTableKey& key) {
    const RopeTableKey& k = entry.key;
    return k.bytes == key.bytes && k.position_type == key.position_type && std::equal(k.dims, k.dims + 3, key.dims) &&
           k.theta == key.theta && k.spread == key.spread && k.inverse == key.inverse &&
           std::memcmp(entry.positions.data(), key.positions, size_t(key.bytes)) == 0;
  }

  std::mutex mutex_;
  Entry entries_[8] = {};
  uint64_t clock_ = 0;
};

}  // namespace videoar
