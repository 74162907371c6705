// Cross-entropy of packed bits, forward and backward. With t = -logit where the bit is one, else logit:
//   entropy = softplus(t) = max(t, 0) + log(1 + e^-|t|),  d entropy / d logit = +-sigmoid(t)
#include "bit_entropy.h"

#include <cmath>

#include "bit_blocks.h"
#include "parallel.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// e^-x to about 1 ulp for -87 <= x <= 87; beyond 87, where x is clamped, 1e-38. NaN stays.
inline Vec<float> exp_minus(Vec<float> x) {
  const Vec<float> magic = broadcast(12582912.0f);
  x = vmin<float>(broadcast(87.0f), x);
  // e^-x = 2^n 2^f with |f| <= 1/2; adding 1.5 * 2^23 rounds to the nearest integer.
  const Vec<float> shifted = x * -1.44269504f + magic, f = x * -1.44269504f - (shifted - magic);
  Vec<float> y = f * 0.0001535336195f + 0.00133988744f;
  y = y * f + 0.009618437357f;
  y = y * f + 0.05550332471f;
  y = y * f + 0.2402264791f;
  y = y * f + 0.6931472029f;
  y = y * f + 1.0f;
  return (Vec<float>)((Mask<float>)y + ((Mask<float>)shifted << 23));
}
inline Vec<double> exp_minus(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(-x[i]);
  return x;
}

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

// The bits of elements [j, j + lanes) as the lanes' signs, j a multiple of the lanes; every other bit is zero.
template <class A>
inline Mask<A> signs_at(const uint8_t* bits, int64_t j, int64_t dim) {
  using L = Lane<A>;
  if constexpr (kLanes<A> == 8 && sizeof(A) == 4) {
    // Bit i of the byte is bit 24 + i of every lane.
    const LaneVec<int8_t> spread = LaneVec<int8_t>{} + int8_t(bits[j / 8]);
    return Mask<A>((Mask<A>)spread << lanes_of<L>([](int i) { return 7 - i; })) & L(uint64_t(1) << 31);
  } else {
    return sign_lanes<L>(BlockBits(read_bits<A>(bits, j, dim)), 0);
  }
}

inline int64_t count_ones(uint32_t bits) {
#if defined(__POPCNT__)
  return __builtin_popcount(bits);
#else
  bits -= bits >> 1 & 0x5555;
  bits = (bits & 0x3333) + (bits >> 2 & 0x3333);
  bits = (bits + (bits >> 4)) & 0x0f0f;
  return (bits + (bits >> 8)) & 0xff;
#endif
}

// Several tokens side by side, so that their chains of sums overlap.
constexpr int kTokens = 4;
// Every factor at most doubles a product: so many of them stay far from overflow.
constexpr int64_t kMostFactors = 96;

template <class T>
struct Tokens {
  const T* logits[kTokens];
  const uint8_t* bits[kTokens];
};

// Of each token: the lanes' sums of max(t, 0), and s such that the logarithms' sum is log(1 + s). s takes y = e^-|t| in
// at a multiplication and stays precise where all y are tiny, so that a logarithm serves many elements.
template <class A>
inline void add_lanes(Vec<A>& above, Vec<A>& s, int64_t& wrong, Vec<A> x, Mask<A> signs, uint32_t bits) {
  const Vec<A> t = (Vec<A>)((Mask<A>)x ^ signs), y = exp_minus(magnitude<A>(t));
  above += vmax<A>(t, Vec<A>{});
  s = s * y + (s + y);
  wrong += count_ones(lanes_to_bits(Mask<A>(x > 0)) ^ bits);
}

template <class T>
inline void add_tokens(const Tokens<T>& tokens, int64_t dim, Vec<Accumulator<T>>* out_above, Vec<Accumulator<T>>* out_s,
                       int64_t* out_wrong) {
  using A = Accumulator<T>;
  constexpr int kN = kLanes<A>;
  Vec<A> above[kTokens], s[kTokens];
  int64_t wrong[kTokens];
  for (int i = 0; i < kTokens; ++i) above[i] = s[i] = Vec<A>{}, wrong[i] = 0;
  int64_t j = 0;
  while (j + kN <= dim) {
    const int64_t end = dim - j < kMostFactors * kN ? dim : j + kMostFactors * kN;
    for (; j + kN <= end; j += kN) {
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) {
        const uint8_t* bits = tokens.bits[i];
        const uint32_t packed = read_bits<A>(bits, j, dim) & ((1u << kN) - 1);
        add_lanes<A>(above[i], s[i], wrong[i], load(tokens.logits[i] + j), signs_at<A>(bits, j, dim), packed);
      }
    }
    if (end == dim) break;
    for (int i = 0; i < kTokens; ++i) {
      above[i] += vlog1p(s[i]);
      s[i] = Vec<A>{};
    }
  }
  for (int i = 0; i < kTokens; ++i) {
    if (j < dim) {
      // Lanes past the token hold a large logit of the right sign, which adds nothing.
      const Mask<A> inside = first_lanes<A>(int(dim - j));
      const uint8_t* bits = tokens.bits[i];
      const Vec<A> x = inside ? load_partial(tokens.logits[i] + j, int(dim - j)) : broadcast(A(-1e4));
      const uint32_t packed = read_bits<A>(bits, j, dim) & inside_bits<A>(dim - j);
      add_lanes<A>(above[i], s[i], wrong[i], x, signs_at<A>(bits, j, dim) & inside, packed);
    }
    out_above[i] = above[i], out_s[i] = s[i], out_wrong[i] = wrong[i];
  }
}

// Lane i of the result combines two lanes, kStep apart, of a (where i has no bit kStep) or of b.
template <class A, int kStep, class F>
inline Vec<A> fold(Vec<A> a, Vec<A> b, const F& f) {
  using L = Lane<A>;
  constexpr int kN = kLanes<A>;
  const Vec<A> low = __builtin_shuffle(a, b, lanes_of<L>([](int i) { return i & kStep ? kN + i - kStep : i; }));
  const Vec<A> high = __builtin_shuffle(a, b, lanes_of<L>([](int i) { return i & kStep ? kN + i : i + kStep; }));
  return f(low, high);
}

// The sums over lanes of kLanes vectors, as one vector, in the order of the vectors' numbers with bits reversed.
template <class A, int kStep = 1, class F>
inline Vec<A> fold_all(Vec<A>* v, const F& f) {
  if constexpr (kStep == kLanes<A>) {
    return v[0];
  } else {
    constexpr int kHalf = kLanes<A> / kStep / 2;
    for (int i = 0; i < kHalf; ++i) v[i] = fold<A, kStep>(v[i], v[i + kHalf], f);
    return fold_all<A, 2 * kStep>(v, f);
  }
}

// Groups of kLanes tokens whose logarithms are taken together, so that their latencies overlap.
constexpr int kGroups = 4;
template <class A>
constexpr int kBatch = kGroups * kLanes<A>;

template <class A>
struct BatchResult {
  A nats[kBatch<A>];
  int64_t wrong[kBatch<A>];
};

template <class T>
inline void batch_entropy(const T* logits, const uint8_t* bits, int64_t logits_stride, int64_t bits_stride,
                          int64_t tokens, int64_t dim, BatchResult<Accumulator<T>>& result) {
  using A = Accumulator<T>;
  constexpr int kN = kLanes<A>, kPadded = kN < kTokens ? kTokens : kN;
  const bool fits = dim <= kMostFactors;
  Vec<A> nats[kGroups], factors[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    if (g * kN >= tokens) break;
    Vec<A> above[kPadded], factor[kPadded];
    int64_t wrong[kPadded];
    for (int first = 0; first < kN; first += kTokens) {
      Tokens<T> four;
      for (int i = 0; i < kTokens; ++i) {
        // The last token stands in for those past it.
        const int64_t token = g * kN + first + i < tokens ? g * kN + first + i : tokens - 1;
        four.logits[i] = logits + token * logits_stride;
        four.bits[i] = bits + token * bits_stride;
      }
      add_tokens(four, dim, above + first, factor + first, wrong + first);
    }
    for (int i = 0; i < kN; ++i) {
      if (!fits) above[i] += vlog1p(factor[i]);
      result.wrong[g * kN + i] = wrong[i];
    }
    nats[g] = fold_all<A>(above, [](Vec<A> a, Vec<A> b) { return Vec<A>(a + b); });
    if (fits) factors[g] = fold_all<A>(factor, [](Vec<A> a, Vec<A> b) { return Vec<A>(a * b + (a + b)); });
  }
  for (int g = 0; g < kGroups; ++g) {
    if (g * kN >= tokens) break;
    if (fits) nats[g] += vlog1p(factors[g]);
    store(result.nats + g * kN, Vec<A>(__builtin_shuffle(nats[g], lanes_of<Lane<A>>([](int i) {
                                                           int lane = 0;
                                                           for (int bit = 1; bit < kN; bit *= 2)
                                                             lane = 2 * lane + (i / bit & 1);
                                                           return lane;
                                                         }))));
  }
}

inline int64_t scale_of(const int32_t* ids, int64_t row) { return ids == nullptr ? 0 : ids[row]; }

template <class T>
void entropy_chunk(const EntropyParams& p, int64_t begin, int64_t end, EntropySums* sums, bool* refused) {
  using A = Accumulator<T>;
  BatchResult<A> result;
  // Runs of tokens of one scale are summed in registers.
  int64_t scale = 0;
  EntropySums run{};
  const auto flush = [&] {
    if (scale < 0 || scale >= p.scales) {
      *refused = true;
      return;
    }
    EntropySums& to = sums[scale];
    to = {to.nats + run.nats, to.hits + run.hits, to.weight + run.weight};
    run = {};
  };
  for (int64_t first = begin; first < end; first += kBatch<A>) {
    const int64_t tokens = end - first < kBatch<A> ? end - first : kBatch<A>;
    batch_entropy((const T*)p.logits + first * p.logits_stride, p.bits + first * p.bits_stride, p.logits_stride,
                  p.bits_stride, tokens, p.dim, result);
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t row = first + i, own = scale_of(p.scale_ids, row);
      if (own != scale) {
        flush();
        scale = own;
      }
      const double weight = p.weight == nullptr ? 1.0 : p.weight[row];
      run.nats += weight * double(result.nats[i]);
      run.hits += weight * double(p.dim - result.wrong[i]);
      run.weight += weight;
    }
  }
  flush();
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

template <class T>
void entropy_backward_of(const EntropyBackwardParams& p) {
  using A = Accumulator<T>;
  constexpr int kN = kLanes<A>;
  parallel_ranges(p.rows, p.rows * p.dim * 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* logits = (const T*)p.logits + row * p.logits_stride;
      const uint8_t* bits = p.bits + row * p.bits_stride;
      T* grad = (T*)p.grad + row * p.dim;
      const double weight = p.weight == nullptr ? 1.0 : p.weight[row];
      const A coefficient = A(p.coefficient[scale_of(p.scale_ids, row)] * weight);
      const auto share = [&](Vec<A> x, int64_t j) {
        const Mask<A> signs = signs_at<A>(bits, j, p.dim);
        const Vec<A> t = (Vec<A>)((Mask<A>)x ^ signs);
        return (Vec<A>)((Mask<A>)(coefficient / (1 + exp_minus(vmax<A>(broadcast(A(-87)), t)))) ^ signs);
      };
      int64_t j = 0;
      for (; j + kN <= p.dim; j += kN) store(grad + j, share(load(logits + j), j));
      if (j < p.dim) store_partial(grad + j, share(load_partial(logits + j, int(p.dim - j)), j), int(p.dim - j));
    }
  });
}

}  // namespace

void entropy(const EntropyParams& p) { VIDEOAR_DISPATCH(p.dtype, entropy_of, p) }
void entropy_backward(const EntropyBackwardParams& p) { VIDEOAR_DISPATCH(p.dtype, entropy_backward_of, p) }

}  // namespace VIDEOAR_ISA
}  // namespace videoar
