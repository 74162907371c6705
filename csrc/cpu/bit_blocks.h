// Packed bits a block at a time: as many elements of any type as a vector has bytes, one bit each.
#pragma once

#include "bit_lanes.h"

namespace videoar {
namespace VIDEOAR_ISA {

constexpr int64_t kBlock = kVectorBytes;

template <int kBytes>
struct BitsOf;
template <>
struct BitsOf<16> {
  using type = uint16_t;
};
template <>
struct BitsOf<32> {
  using type = uint32_t;
};
template <>
struct BitsOf<64> {
  using type = uint64_t;
};
using BlockBits = BitsOf<kVectorBytes>::type;

// Integers of an element's size: comparing, selecting and storing needs no more.
template <class T>
struct LaneOf;
template <>
struct LaneOf<bf16> {
  using type = int16_t;
  static constexpr int16_t infinity = 0x7f80;
};
template <>
struct LaneOf<f16> {
  using type = int16_t;
  static constexpr int16_t infinity = 0x7c00;
};
template <>
struct LaneOf<float> {
  using type = int32_t;
};
template <>
struct LaneOf<double> {
  using type = int64_t;
};
template <class T>
using Lane = typename LaneOf<T>::type;

template <class L>
struct LaneVecOf {
  typedef L type __attribute__((vector_size(kVectorBytes)));
};
template <class L>
using LaneVec = typename LaneVecOf<L>::type;
template <class L>
constexpr int kLaneCount = kVectorBytes / int(sizeof(L));

template <class L>
static inline LaneVec<L> load_lanes(const void* p) {
  LaneVec<L> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class L>
struct LaneTable {
  L value[kLaneCount<L>];
};

// Lane i holds f(i), computed by the compiler; f captures nothing.
template <class L, class F>
static inline LaneVec<L> lanes_of(F) {
  constexpr LaneTable<L> table = [] {
    LaneTable<L> t{};
    for (int i = 0; i < kLaneCount<L>; ++i) t.value[i] = L(F{}(i));
    return t;
  }();
  return load_lanes<L>(table.value);
}

// One bit per byte, from bytes that are all ones or all zeros.
static inline BlockBits bytes_to_bits(LaneVec<int8_t> m) {
#if defined(__AVX512F__)
  return _mm512_movepi8_mask((__m512i)m);
#elif defined(__AVX2__) && defined(VIDEOAR_WIDE)
  __m256i half[2];
  std::memcpy(half, &m, sizeof m);
  return uint32_t(_mm256_movemask_epi8(half[0])) | uint64_t(uint32_t(_mm256_movemask_epi8(half[1]))) << 32;
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_epi8((__m256i)m));
#elif defined(__x86_64__)
  return uint16_t(_mm_movemask_epi8((__m128i)m));
#else
  BlockBits bits = 0;
  for (int i = 0; i < kBlock; ++i) bits |= BlockBits(BlockBits(m[i] & 1) << i);
  return bits;
#endif
}

// The same of a block of lanes, which take sizeof(L) vectors.
static inline BlockBits block_bits(const LaneVec<int16_t>* m) {
#if defined(__AVX512F__)
  return _mm512_movepi16_mask((__m512i)m[0]) | uint64_t(_mm512_movepi16_mask((__m512i)m[1])) << 32;
#elif defined(__AVX2__) && !defined(VIDEOAR_WIDE)
  const __m256i narrow = _mm256_packs_epi16((__m256i)m[0], (__m256i)m[1]);
  return uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(narrow, 0xd8)));
#elif defined(__x86_64__) && !defined(VIDEOAR_WIDE)
  return uint16_t(_mm_movemask_epi8(_mm_packs_epi16((__m128i)m[0], (__m128i)m[1])));
#else
  BlockBits bits = 0;
  for (int i = 0; i < kBlock; ++i) {
    bits |= BlockBits(BlockBits(m[i / kLaneCount<int16_t>][i % kLaneCount<int16_t>] & 1) << i);
  }
  return bits;
#endif
}
static inline BlockBits block_bits(const LaneVec<int32_t>* m) {
  BlockBits bits = 0;
  for (int u = 0; u < 4; ++u) bits |= BlockBits(BlockBits(lanes_to_bits((Mask<float>)m[u])) << kLaneCount<int32_t> * u);
  return bits;
}
static inline BlockBits block_bits(const LaneVec<int64_t>* m) {
  BlockBits bits = 0;
  for (int u = 0; u < 8; ++u) {
    bits |= BlockBits(BlockBits(lanes_to_bits((Mask<double>)m[u])) << kLaneCount<int64_t> * u);
  }
  return bits;
}

// The bits of the u-th vector of a block as the lanes' signs; every other bit is zero.
template <class L>
static inline LaneVec<L> sign_lanes(BlockBits bits, int u) {
  constexpr int kN = kLaneCount<L>, kLast = 8 * int(sizeof(L)) - 1;
  const LaneVec<L> sign = LaneVec<L>{} + L(uint64_t(1) << kLast);
  if constexpr (sizeof(L) >= sizeof(BlockBits) && kVectorBytes > 16) {
    // A lane holds all of the block's bits, so that one broadcast serves every vector.
    return LaneVec<L>((LaneVec<L>{} + L(bits)) << (lanes_of<L>([](int i) { return kLast - i; }) - L(kN * u))) & sign;
  }
  const uint64_t own = uint64_t(bits) >> kN * u;
  const LaneVec<L> spread = LaneVec<L>{} + L(own);
  if constexpr (sizeof(L) == 2) {
    // A product shifts a bit up to the sign; lanes past the sixteenth look at the bits' upper half.
    const LaneVec<L> first = lanes_of<L>([](int i) { return i < 16 ? -1 : 0; });
    const LaneVec<L> half = kN <= 16 ? spread : (spread & first) | ((LaneVec<L>{} + L(own >> 16)) & ~first);
    return LaneVec<L>(half * lanes_of<L>([](int i) { return uint64_t(1) << (kLast - i % 16); })) & sign;
  } else if constexpr (kVectorBytes > 16) {
    return LaneVec<L>(spread << lanes_of<L>([](int i) { return kLast - i; })) & sign;
  } else {
    const LaneVec<L> bit = lanes_of<L>([](int i) { return uint64_t(1) << i; });
    return LaneVec<L>((spread & bit) == bit) & sign;
  }
}

// The pattern of -amplitude in T's format.
template <class T>
static inline Lane<T> minus_code(int64_t dim) {
  const T minus = from_float<T>(Accumulator<T>(-1.0 / __builtin_sqrt(double(dim))));
  Lane<T> bits;
  std::memcpy(&bits, &minus, sizeof bits);
  return bits;
}

// The code of kVectors vectors of elements.
template <class T, int kVectors = int(sizeof(T))>
static inline void store_codes(T* code, BlockBits bits, Lane<T> minus) {
  using L = Lane<T>;
  for (int u = 0; u < kVectors; ++u) {
    const LaneVec<L> v = sign_lanes<L>(bits, u) ^ minus;
    std::memcpy(code + kLaneCount<L> * u, &v, sizeof v);
  }
}

// All ones where the element is above zero: not for NaN.
template <class T>
static inline LaneVec<Lane<T>> positive_lanes(const T* x) {
  const LaneVec<Lane<T>> v = load_lanes<Lane<T>>(x);
  if constexpr (sizeof(T) == 2) {
    constexpr int16_t kInfinity = LaneOf<T>::infinity;
    return LaneVec<int16_t>(v > 0) & LaneVec<int16_t>(v <= kInfinity);
  } else {
    return LaneVec<Lane<T>>((Vec<T>)v > Vec<T>{});
  }
}

// Eight bits to eight bytes, zero or one.
static inline uint64_t unpack8(uint8_t bits) {
  const uint64_t spread = (bits * 0x0101010101010101u) & 0x8040201008040201u;
  return ((spread + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
}

// A block's bits as bytes, zero or one.
static inline void unpack_block(uint8_t* ones, BlockBits bits) {
#if defined(__AVX512F__) || (defined(__AVX2__) && !defined(VIDEOAR_WIDE))
  using Bytes = LaneVec<int8_t>;
  typedef BlockBits Words __attribute__((vector_size(kVectorBytes)));
  // Every 128-bit lane holds all the bits, so that no byte crosses lanes.
  const Bytes all = (Bytes)(Words{} + bits), source = lanes_of<int8_t>([](int i) { return i / 8; });
  const Bytes own = lanes_of<int8_t>([](int i) { return 1 << i % 8; });
#if defined(__AVX512F__)
  const Bytes spread = (Bytes)_mm512_shuffle_epi8((__m512i)all, (__m512i)source);
#else
  const Bytes spread = (Bytes)_mm256_shuffle_epi8((__m256i)all, (__m256i)source);
#endif
  const Bytes out = ((spread & own) == own) & 1;
  std::memcpy(ones, &out, sizeof out);
#else
  for (int i = 0; i < kBlock / 8; ++i) {
    const uint64_t eight = unpack8(uint8_t(bits >> 8 * i));
    std::memcpy(ones + 8 * i, &eight, 8);
  }
#endif
}

// The bits of elements [j, j + n) of packed bits; j is a multiple of eight. Reads no byte past them, nor past a block.
static inline BlockBits load_bits(const uint8_t* bits, int64_t j, int64_t n) {
  uint64_t value = 0;
  const uint8_t* from = bits + j / 8;
  if (n >= kBlock) {
    std::memcpy(&value, from, sizeof(BlockBits));
  } else {
    for (int64_t i = 0; i < packed_bytes(n); ++i) value |= uint64_t(from[i]) << 8 * i;
  }
  return BlockBits(value);
}
static inline void store_bits(uint8_t* bits, int64_t j, int64_t n, BlockBits value) {
  uint8_t* to = bits + j / 8;
  if (n >= kBlock) {
    std::memcpy(to, &value, sizeof value);
  } else {
    for (int64_t i = 0; i < packed_bytes(n); ++i) to[i] = uint8_t(value >> 8 * i);
  }
}
static inline BlockBits block_inside(int64_t n) {
  return n >= kBlock ? ~BlockBits(0) : BlockBits((BlockBits(1) << n) - 1);
}

}  // namespace VIDEOAR_ISA
}  // namespace videoar
