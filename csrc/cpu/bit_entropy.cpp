// Cross-entropy of packed bits, forward and backward. With t = -logit where the bit is one, else logit:
//   entropy = softplus(t) = max(t, 0) + log(1 + e^-|t|),  d entropy / d logit = +-sigmoid(t)
#include "bit_entropy.h"

#include <cmath>

#include "bit_blocks.h"
#include "parallel.h"
#include "stream.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// log(1 + x) for 0 <= x < 2^126, to 2^-24 relative.
inline Vec<float> vlog1p(Vec<float> x) {
  // 1 + x = 2^k (1 + f) with -1/4 <= f < 1/2; f is exact where x is small.
  const Mask<float> k = ((Mask<float>)(x + 1.0f) - 0x3f400000) >> 23;
  const Vec<float> scale = (Vec<float>)(0x3f800000 - (k << 23));
  const Vec<float> f = x * scale + (scale - 1.0f);
  Vec<float> y = f * 0.05413249703f - 0.1206736927f;
  y = y * f + 0.1498391583f;
  y = y * f - 0.168228113f;
  y = y * f + 0.1997707729f;
  y = y * f - 0.2499344228f;
  y = y * f + 0.3333354855f;
  y = y * f - 0.5000006065f;
  return __builtin_convertvector(k, Vec<float>) * 0.693147181f + (y * f * f + f);
}
inline Vec<double> vlog1p(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::log1p(x[i]);
  return x;
}

template <class A>
inline Vec<A> magnitude(Vec<A> x) {
  using L = Lane<A>;
  return (Vec<A>)((Mask<A>)x & L(~(uint64_t(1) << (8 * sizeof(A) - 1))));
}

// Vectors that are taken together, so that their bits fill whole bytes and two chains of sums overlap.
template <class A>
constexpr int kVectors = kLanes<A> >= 4 ? 2 : 8 / kLanes<A>;
template <class A>
constexpr int kUnit = kVectors<A> * kLanes<A>;

// A large logit of the right sign for bit zero: adds nothing to any sum.
constexpr float kNothing = -1e4f;

// Logits of a unit as lanes: t is -logit where the bit is one. The first `skip` elements count for nothing.
template <class T>
struct Unit {
  using A = Accumulator<T>;
  using L = Lane<A>;
  LaneVec<L> signs[kVectors<A>];
  Vec<A> t[kVectors<A>];

  Unit(const T* logits, BlockBits bits, int skip = 0) {
    for (int u = 0; u < kVectors<A>; ++u) {
      Vec<A> x = load(logits + u * kLanes<A>);
      if (skip > 0) x = lane_numbers<A>() < skip - u * kLanes<A> ? broadcast(A(kNothing)) : x;
      signs[u] = sign_lanes<L>(bits, u);
      t[u] = (Vec<A>)((LaneVec<L>)x ^ signs[u]);
    }
  }
  void count_wrong(LaneVec<L>& wrong) const {
    for (int u = 0; u < kVectors<A>; ++u) {
      const LaneVec<L> positive = (LaneVec<L>)((Vec<A>)((LaneVec<L>)t[u] ^ signs[u]) > Vec<A>{});
      wrong -= LaneVec<L>(positive ^ signs[u]) >> (8 * sizeof(L) - 1);
    }
  }
  void store_signed(T* to, const Vec<A>* v) const {
    for (int u = 0; u < kVectors<A>; ++u) store(to + u * kLanes<A>, (Vec<A>)((LaneVec<L>)v[u] ^ signs[u]));
  }
};

// Neighbours share a word until arithmetic needs them apart: even ones in t[0], odd ones in t[1].
template <>
struct Unit<bf16> {
  using L = int16_t;
  LaneVec<L> signs, words;
  Vec<float> t[2];

  Unit(const bf16* logits, BlockBits bits, int skip = 0) : signs(sign_lanes<L>(bits, 0)), words(load_lanes<L>(logits)) {
    if (skip > 0) {
      words =
          lanes_of<L>([](int i) { return i; }) < L(skip) ? LaneVec<L>{} + L(from_float<bf16>(kNothing).bits) : words;
    }
    const VecU32 pairs = (VecU32)(words ^ signs);
    t[0] = (Vec<float>)(pairs << 16);
    t[1] = (Vec<float>)(pairs & 0xffff0000u);
  }
  void count_wrong(LaneVec<L>& wrong) const {
    const LaneVec<L> positive = LaneVec<L>(words > 0) & LaneVec<L>(words <= LaneOf<bf16>::infinity);
    wrong -= LaneVec<L>(positive ^ signs) >> 15;
  }
  void store_signed(bf16* to, const Vec<float>* v) const {
    LaneVec<L> rounded;
    store_pairs((bf16*)&rounded, {v[0], v[1]});
    rounded ^= signs;
    std::memcpy(to, &rounded, sizeof rounded);
  }
};

template <class A>
inline BlockBits unit_bits(const uint8_t* bits) {
  BlockBits value = 0;
  std::memcpy(&value, bits, kUnit<A> / 8);
  return value;
}

// memcpy of less than a unit, without a call.
inline void copy_few(void* to, const void* from, size_t bytes) {
  char* out = (char*)to;
  const char* in = (const char*)from;
  const auto move = [&](auto word) {
    std::memcpy(&word, in, sizeof word);
    std::memcpy(out, &word, sizeof word);
    in += sizeof word, out += sizeof word, bytes -= sizeof word;
  };
  while (bytes >= 8) move(uint64_t());
  if (bytes & 4) move(uint32_t());
  if (bytes & 2) move(uint16_t());
}

// The bits of the unit that ends with element n.
template <class A>
inline BlockBits last_bits(const uint8_t* bits, int64_t n) {
  const int64_t first = n - kUnit<A>;
  uint64_t value = 0;
  for (int64_t i = first / 8; i < packed_bytes(n); ++i) value |= uint64_t(bits[i]) << 8 * (i - first / 8);
  value >>= first % 8;
  return BlockBits(kUnit<A> == 64 ? value : value & ((uint64_t(1) << kUnit<A> % 64) - 1));
}

// A run of less than a unit. Elements past it have bit zero.
template <class T>
struct Short {
  T logits[kUnit<Accumulator<T>>];
  BlockBits bits;

  Short(const T* from, const uint8_t* from_bits, int64_t n) : bits(load_bits(from_bits, 0, n) & block_inside(n)) {
    for (T& logit : logits) logit = from_float<T>(Accumulator<T>(kNothing));
    copy_few(logits, from, size_t(n) * sizeof(T));
  }
};

// Sums of max(t, 0), and s such that the logarithms' sum is log(1 + s), in each lane. s takes y = e^-|t| in at a
// multiplication and stays precise where all y are tiny, so that a logarithm serves many elements.
template <class T>
struct LaneSums {
  using A = Accumulator<T>;
  // Every factor at most doubles a product: so many of them stay far from overflow.
  static constexpr int64_t kMostElements = 96 * kLanes<A>;

  Vec<A> above[kVectors<A>] = {}, s[kVectors<A>] = {};
  LaneVec<typename Unit<T>::L> wrong = {};

  void add(const T* logits, BlockBits bits, int skip = 0) {
    const Unit<T> unit(logits, bits, skip);
    for (int u = 0; u < kVectors<A>; ++u) {
      const Vec<A> y = exp_minus(magnitude<A>(unit.t[u]));
      above[u] += vmax<A>(unit.t[u], Vec<A>{});
      s[u] = s[u] * y + (s[u] + y);
    }
    unit.count_wrong(wrong);
  }
  double nats() const {
    Vec<A> sum = above[0], factor = s[0];
    for (int u = 1; u < kVectors<A>; ++u) {
      sum += above[u];
      factor = factor * s[u] + (factor + s[u]);
    }
    return double(reduce_add<A>(sum + vlog1p(factor)));
  }
  int64_t count() const {
    constexpr int kBits = 8 * sizeof(wrong[0]);
    uint64_t words[kVectorBytes / 8], total = 0;
    std::memcpy(words, &wrong, sizeof words);
    for (uint64_t word : words) total += word;
    if constexpr (kBits == 16) return int64_t(total * 0x0001000100010001u >> 48);
    return int64_t(kBits == 32 ? uint32_t(total) + (total >> 32) : total);
  }
};

// The sums of elements [begin, end) of a run of n; only its last piece ends within a unit.
template <class T>
inline LaneSums<T> piece_sums(const T* logits, const uint8_t* bits, int64_t begin, int64_t end, int64_t n) {
  using A = Accumulator<T>;
  constexpr int64_t kN = kUnit<A>;
  LaneSums<T> sums;
  int64_t i = begin;
  for (; i + kN <= end; i += kN) sums.add(logits + i, unit_bits<A>(bits + i / 8));
  if (i < end && n < kN) {
    const Short<T> all(logits, bits, n);
    sums.add(all.logits, all.bits);
  } else if (i < end) {
    const int skip = int(kN - (n - i));
    sums.add(logits + n - kN, BlockBits(last_bits<A>(bits, n) >> skip << skip), skip);
  }
  return sums;
}

inline int64_t scale_of(const int32_t* ids, int64_t row) { return ids == nullptr ? 0 : ids[row]; }

// How many rows from `row` on have the same scale and weight and make one run of elements and of bits.
template <class P>
inline int64_t rows_alike(const P& p, int64_t row, int64_t end) {
  if (p.weight != nullptr || p.dim % 8 != 0 || p.logits_stride != p.dim || p.bits_stride != p.dim / 8) return 1;
  if (p.scale_ids == nullptr) return end - row;
  int64_t next = row + 1;
  while (next < end && p.scale_ids[next] == p.scale_ids[row]) ++next;
  return next - row;
}

// Adds rows up; the lanes' sums of several pieces wait, so that the latencies of their logarithms overlap.
template <class T>
class ChunkSums {
 public:
  ChunkSums(const EntropyParams& p, EntropySums* to) : p_(p), to_(to) {}
  ~ChunkSums() { finish(); }

  void add(int64_t row, int64_t rows) {
    constexpr int64_t kMost = LaneSums<T>::kMostElements;
    const T* logits = (const T*)p_.logits + row * p_.logits_stride;
    const uint8_t* bits = p_.bits + row * p_.bits_stride;
    const double weight = p_.weight == nullptr ? 1.0 : p_.weight[row];
    EntropySums& to = to_[scale_of(p_.scale_ids, row)];
    const int64_t n = rows * p_.dim;
    to.weight += weight * double(rows);
    to.hits += weight * double(n);
    for (int64_t i = 0; i < n; i += kMost) {
      if (waiting_ == kWaiting) finish();
      weights_[waiting_] = weight;
      sums_[waiting_] = &to;
      lanes_[waiting_++] = piece_sums(logits, bits, i, n - i < kMost ? n : i + kMost, n);
    }
  }

 private:
  static constexpr int kWaiting = 16;

  void finish() {
    for (int i = 0; i < waiting_; ++i) {
      sums_[i]->nats += weights_[i] * lanes_[i].nats();
      sums_[i]->hits -= weights_[i] * double(lanes_[i].count());
    }
    waiting_ = 0;
  }

  const EntropyParams& p_;
  EntropySums* to_;
  int waiting_ = 0;
  double weights_[kWaiting];
  EntropySums* sums_[kWaiting];
  LaneSums<T> lanes_[kWaiting];
};

template <class T>
void entropy_chunk(const EntropyParams& p, int64_t begin, int64_t end, EntropySums* to, bool* refused) {
  ChunkSums<T> sums(p, to);
  for (int64_t row = begin, rows; row < end; row += rows) {
    const int64_t scale = scale_of(p.scale_ids, row);
    if (scale < 0 || scale >= p.scales) {
      *refused = true;
      return;
    }
    rows = rows_alike(p, row, end);
    sums.add(row, rows);
  }
}

template <class T>
void entropy_of(const EntropyParams& p) {
  const int64_t chunks = entropy_chunks(p.rows);
  parallel_ranges(chunks, p.rows * p.dim * 4, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      EntropySums* sums = p.sums + chunk * p.scales;
      for (int64_t s = 0; s < p.scales; ++s) sums[s] = {};
      entropy_chunk<T>(p, p.rows * chunk / chunks, p.rows * (chunk + 1) / chunks, sums, p.refused + chunk);
    }
  });
}

// coefficient * sigmoid(t), to the precision of T.
template <class T>
inline Vec<Accumulator<T>> share(Vec<Accumulator<T>> t, Vec<Accumulator<T>> coefficient) {
  if constexpr (sizeof(T) == 2) {
    return coefficient / (1 + coarse_exp2(t * -1.44269504f));
  } else {
    return coefficient / inverse_sigmoid(t);
  }
}

template <class T>
inline void unit_gradient(const T* logits, BlockBits bits, Vec<Accumulator<T>> coefficient, T* grad) {
  using A = Accumulator<T>;
  const Unit<T> unit(logits, bits);
  Vec<A> v[kVectors<A>];
  for (int u = 0; u < kVectors<A>; ++u) v[u] = share<T>(unit.t[u], coefficient);
  unit.store_signed(grad, v);
}

template <class T>
inline void run_gradient(const T* logits, const uint8_t* bits, int64_t n, Vec<Accumulator<T>> coefficient, T* grad) {
  using A = Accumulator<T>;
  constexpr int64_t kN = kUnit<A>;
  int64_t i = 0;
  for (; i + kN <= n; i += kN) unit_gradient(logits + i, unit_bits<A>(bits + i / 8), coefficient, grad + i);
  if (i == n) return;
  if (n >= kN) {
    // Some elements a second time.
    unit_gradient(logits + n - kN, last_bits<A>(bits, n), coefficient, grad + n - kN);
    return;
  }
  const Short<T> all(logits, bits, n);
  T result[kN];
  unit_gradient(all.logits, all.bits, coefficient, result);
  copy_few(grad, result, size_t(n) * sizeof(T));
}

template <class T>
void entropy_backward_of(const EntropyBackwardParams& p) {
  using A = Accumulator<T>;
  const bool streams = outgrows_cache(p.rows * p.dim * int64_t(sizeof(T)));
  parallel_ranges(p.rows, p.rows * p.dim * 4, [&](int64_t begin, int64_t end) {
    StreamWriter<T> writer(streams);
    for (int64_t row = begin, rows; row < end; row += rows) {
      rows = rows_alike(p, row, end);
      const T* logits = (const T*)p.logits + row * p.logits_stride;
      const uint8_t* bits = p.bits + row * p.bits_stride;
      T* grad = (T*)p.grad + row * p.dim;
      const double weight = p.weight == nullptr ? 1.0 : p.weight[row];
      const double exact = p.coefficient[scale_of(p.scale_ids, row)] * weight;
      const A coefficient = exact == exact ? A(exact) : A(NAN);  // rounding pairs asks for a NaN without payload
      each_piece<T>(rows * p.dim, [&](int64_t i, int64_t n) {
        run_gradient(logits + i, bits + i / 8, n, broadcast(coefficient), writer.at(grad + i));
        writer.done(grad + i, n);
      });
    }
  });
}

}  // namespace

void entropy(const EntropyParams& p) { VIDEOAR_DISPATCH(p.dtype, entropy_of, p) }
void entropy_backward(const EntropyBackwardParams& p) { VIDEOAR_DISPATCH(p.dtype, entropy_backward_of, p) }

}  // namespace VIDEOAR_ISA
}  // namespace videoar
