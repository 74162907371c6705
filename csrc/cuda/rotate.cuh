// One head of one token in the registers of a few lanes: loaded, normed, rotated, stored. What rope, qk_norm_rope and
// the cache's append share.
#pragma once

#include "element.cuh"
#include "rope.h"

namespace videoar {
namespace cuda {

constexpr int kRopeThreads = 256;

template <class A>
struct Angle {
  A cosine, sine;
};

__device__ inline float reciprocal_root(float x) { return rsqrtf(x); }
__device__ inline double reciprocal_root(double x) { return rsqrt(x); }

__device__ inline double position_at(const Rotation& r, int64_t index) {
  switch (r.type) {
    case PositionType::i64: return double(((const int64_t*)r.positions)[index]);
    case PositionType::i32: return double(((const int32_t*)r.positions)[index]);
    case PositionType::f32: return double(((const float*)r.positions)[index]);
    default: return ((const double*)r.positions)[index];
  }
}

__device__ inline void put_angle(Angle<double>& to, double angle) { sincos(angle, &to.sine, &to.cosine); }

// Few GPUs compute quickly in float64, so that only brings the angle into one turn; what float32 cuts off of the rest
// is put back to first order.
__device__ inline void put_angle(Angle<float>& to, double angle) {
  constexpr double kTurn = 6.283185307179586, kTurnRest = 2.4492935982947064e-16, kFar = 1e8;
  if (!(fabs(angle) < kFar)) {
    Angle<double> exact;
    put_angle(exact, angle);
    to = {float(exact.cosine), float(exact.sine)};
    return;
  }
  const double turns = rint(angle * (1 / kTurn)), rest = fma(-turns, kTurnRest, fma(-turns, kTurn, angle));
  const float high = float(rest), low = float(rest - double(high));
  float sine, cosine;
  sincosf(high, &sine, &cosine);
  to = {cosine - low * sine, sine + low * cosine};
}

// Where pair `j` of unit `u` lies among a token's angles: what neighbouring lanes read at once lies together, or they
// would want the same banks of shared memory.
template <class A, int kPack>
__device__ inline int angle_place(int u, int j, int units) {
  constexpr int kWide = 16 / int(sizeof(Angle<A>)), kTogether = kWide < kPack ? kWide : kPack;
  return (j / kTogether * units + u) * kTogether + j % kTogether;
}

// The angles of `count` tokens from `first` on, tokens counted through all samples.
template <int kPack, class A>
__device__ inline void fill_angles(Angle<A>* angles, const Rotation& r, int64_t first, int count, int64_t length,
                                   int pairs) {
  for (int i = int(threadIdx.x); i < count * pairs; i += int(blockDim.x)) {
    const int pair = i % pairs, axis = (pair >= r.axis_end[0]) + (pair >= r.axis_end[1]);
    const int64_t token = first + i / pairs;
    const int64_t row = token / length * r.batch_stride + token % length;
    Angle<A> angle;
    put_angle(angle, position_at(r, row * 3 + axis) * r.inverse_frequency[pair]);
    angles[i - pair + angle_place<A, kPack>(pair / kPack, pair % kPack, pairs / kPack)] = {
        angle.cosine, r.inverse ? -angle.sine : angle.sine};
  }
}

// Lanes that share a head: a power of two. A unit is kPack pairs, two packs: neighbours where interleaved, else half a
// head apart. Lane `lane` holds units lane, lane + lanes, ... of `units`.
struct Lanes {
  int lanes, lane, units;

  __device__ Lanes(int dim, int pack, int per_lane) : lanes(1), units(dim / (2 * pack)) {
    while (lanes < kWarp && lanes * per_lane < units) lanes *= 2;
    lane = int(threadIdx.x) % lanes;
  }
  __device__ int group() const { return int(threadIdx.x) / lanes; }
  __device__ int groups() const { return int(blockDim.x) / lanes; }
};

// The sum over a head's lanes; every lane of the warp calls it.
template <class A>
__device__ inline A lanes_sum(A value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

template <class T, class A, int kPack, int kUnits, bool kInterleaved>
struct HeadCells {
  using P = Pack<T, kPack>;
  A value[kUnits][2 * kPack];

  // Element of the head that value[.][j] of unit u is.
  __device__ static int element(int u, int j, int half) {
    if constexpr (kInterleaved) return u * 2 * kPack + j;
    return j < kPack ? u * kPack + j : half + u * kPack + j - kPack;
  }

  // f(i, u) for the lane's units.
  template <class F>
  __device__ static void each_unit(const Lanes& at, const F& f) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int u = at.lane + i * at.lanes;
      if (u < at.units) f(i, u);
    }
  }

  // Packs as they lie in memory, in half the registers: what a thread has on its way while it works on another head.
  struct Raw {
    P pack[kUnits][2];

    // Zeros where the head is absent, so that sums may include it.
    __device__ void load(const T* head, const Lanes& at, int half, bool present) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) pack[i][0] = pack[i][1] = P{};
      if (!present) return;
      each_unit(at, [&](int i, int u) {
        pack[i][0] = *(const P*)(head + element(u, 0, half));
        pack[i][1] = *(const P*)(head + element(u, kPack, half));
      });
    }
    __device__ void store(T* head, const Lanes& at, int half) const {
      each_unit(at, [&](int i, int u) {
        *(P*)(head + element(u, 0, half)) = pack[i][0];
        *(P*)(head + element(u, kPack, half)) = pack[i][1];
      });
    }
  };

  __device__ void take(const Raw& raw) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i)
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        value[i][j] = widen<A>(raw.pack[i][0].value[j]);
        value[i][kPack + j] = widen<A>(raw.pack[i][1].value[j]);
      }
  }

  __device__ void load(const T* head, const Lanes& at, int half, bool present) {
    Raw raw;
    raw.load(head, at, half, present);
    take(raw);
  }

  __device__ void store(T* head, const Lanes& at, int half) const {
    each_unit(at, [&](int i, int u) {
      P low, high;
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        low.value[j] = narrow<T, A>(value[i][j]);
        high.value[j] = narrow<T, A>(value[i][kPack + j]);
      }
      *(P*)(head + element(u, 0, half)) = low;
      *(P*)(head + element(u, kPack, half)) = high;
    });
  }

  __device__ A squares() const {
    A sum = A(0);
#pragma unroll
    for (int i = 0; i < kUnits; ++i)
#pragma unroll
      for (int j = 0; j < 2 * kPack; ++j) sum += value[i][j] * value[i][j];
    return sum;
  }

  // value *= factor * weight.
  __device__ void scale(A factor, const A* weight, const Lanes& at, int half) {
    using W = Pack<A, kPack>;
    each_unit(at, [&](int i, int u) {
      const W low = *(const W*)(weight + element(u, 0, half)), high = *(const W*)(weight + element(u, kPack, half));
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        value[i][j] *= factor * low.value[j];
        value[i][kPack + j] *= factor * high.value[j];
      }
    });
  }

  __device__ void rotate(const Angle<A>* angles, const Lanes& at) {
    each_unit(at, [&](int i, int u) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const Angle<A> angle = angles[angle_place<A, kPack>(u, j, at.units)];
        const int first = kInterleaved ? 2 * j : j, second = kInterleaved ? 2 * j + 1 : kPack + j;
        const A a = value[i][first], b = value[i][second];
        value[i][first] = a * angle.cosine - b * angle.sine;
        value[i][second] = a * angle.sine + b * angle.cosine;
      }
    });
  }
};

// Which token of a block's kTokens a group of lanes takes, and which of its heads: every `groups`-th.
struct HeadTurns {
  int local, first, groups;

  __device__ explicit HeadTurns(const Lanes& at)
      : local(at.group() / (at.groups() / kTokens)),
        first(at.group() % (at.groups() / kTokens)),
        groups(at.groups() / kTokens) {}
};
static_assert(kRopeThreads / kWarp >= kTokens, "every token has a group of lanes");

// Whether heads of `dim` can be moved in packs of 16 bytes: the tensor and its strides are aligned.
template <class T>
inline bool packs_aligned(const void* data, const RopeSizes& size, const RopeStrides& stride) {
  bool aligned = size.dim % (2 * (16 / int64_t(sizeof(T)))) == 0 && aligned_to_16(data);
  const int64_t sizes[3] = {size.batch, size.heads, size.length},
                strides[3] = {stride.batch, stride.head, stride.token};
  for (int i = 0; i < 3; ++i)
    if (sizes[i] > 1) aligned = aligned && strides[i] * int64_t(sizeof(T)) % 16 == 0;
  return aligned;
}

// f.template operator()<kPack, kUnits>(): packs of 16 bytes where all is aligned, else element by element.
template <class T, class F>
inline void with_packs(bool aligned, const F& f) {
  constexpr int kPack = 16 / int(sizeof(T));
  if (aligned) return f.template operator()<kPack, sizeof(T) == 8 ? 2 : 1>();
  f.template operator()<1, 4>();
}

}  // namespace cuda
}  // namespace videoar
