#include "bits.h"

#include "bit_blocks.h"
#include "bit_entropy.h"
#include "bit_sample.h"
#include "parallel.h"
#include "philox_fill.h"
#include "stream.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// How many rows make one run of elements and of bits: all of them where tokens end with whole bytes and lie densely.
inline int64_t rows_at_once(int64_t rows, int64_t dim, bool dense) { return dim % 8 == 0 && dense ? rows : 1; }

template <class T>
inline BlockBits quantize_block(const T* x, T* code, Lane<T> minus) {
  using L = Lane<T>;
  constexpr int kVectors = int(sizeof(L));
  LaneVec<L> positive[kVectors];
  for (int u = 0; u < kVectors; ++u) {
    positive[u] = positive_lanes(x + kLaneCount<L> * u);
    const LaneVec<L> v = (positive[u] & L(uint64_t(1) << (8 * sizeof(L) - 1))) ^ minus;
    std::memcpy(code + kLaneCount<L> * u, &v, sizeof v);
  }
  return block_bits(positive);
}

template <class T>
void quantize_run(const T* x, int64_t n, uint8_t* bits, T* code, Lane<T> minus) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) store_bits(bits, i, kBlock, quantize_block(x + i, code + i, minus));
  if (i == n) return;
  T in[kBlock] = {}, out[kBlock];
  std::memcpy(in, x + i, size_t(n - i) * sizeof(T));
  store_bits(bits, i, n - i, quantize_block(in, out, minus));
  std::memcpy(code + i, out, size_t(n - i) * sizeof(T));
}

template <class T>
void quantize(const QuantizeParams& p) {
  const Lane<T> minus = minus_code<T>(p.dim);
  const int64_t bytes = packed_bytes(p.dim);
  // In place, the cache holds what is overwritten.
  const bool streams = p.code != p.x && outgrows_cache(p.rows * p.dim * int64_t(sizeof(T)));
  parallel_ranges(p.rows, p.rows * p.dim * 2 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    const int64_t step = rows_at_once(end - begin, p.dim, p.stride == p.dim);
    StreamWriter<T> writer(streams);
    for (int64_t row = begin; row < end; row += step) {
      const T* x = (const T*)p.x + row * p.stride;
      T* code = (T*)p.code + row * p.dim;
      each_piece<T>(step * p.dim, [&](int64_t i, int64_t n) {
        quantize_run(x + i, n, p.bits + row * bytes + i / 8, writer.at(code + i), minus);
        writer.done(code + i, n);
      });
    }
  });
}

void pack_run(const uint8_t* ones, int64_t n, uint8_t* bits) {
  using Bytes = LaneVec<int8_t>;
  const auto pack_block = [](const uint8_t* from) { return bytes_to_bits(Bytes(load_lanes<int8_t>(from) != 0)); };
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) store_bits(bits, i, kBlock, pack_block(ones + i));
  if (i == n) return;
  uint8_t in[kBlock] = {};
  std::memcpy(in, ones + i, size_t(n - i));
  store_bits(bits, i, n - i, pack_block(in));
}

void pack(const PackParams& p) {
  const int64_t bytes = packed_bytes(p.dim);
  parallel_ranges(p.rows, p.rows * p.dim, [&](int64_t begin, int64_t end) {
    const int64_t step = rows_at_once(end - begin, p.dim, p.stride == p.dim);
    for (int64_t row = begin; row < end; row += step) {
      pack_run(p.ones + row * p.stride, step * p.dim, p.bits + row * bytes);
    }
  });
}

void unpack_run(const uint8_t* bits, int64_t n, uint8_t* ones) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) unpack_block(ones + i, load_bits(bits, i, kBlock));
  if (i == n) return;
  uint8_t out[kBlock];
  unpack_block(out, load_bits(bits, i, n - i));
  std::memcpy(ones + i, out, size_t(n - i));
}

void unpack(const UnpackParams& p) {
  const int64_t bytes = packed_bytes(p.dim);
  const bool streams = outgrows_cache(p.rows * p.dim);
  parallel_ranges(p.rows, p.rows * p.dim, [&](int64_t begin, int64_t end) {
    const int64_t step = rows_at_once(end - begin, p.dim, p.stride == bytes);
    StreamWriter<uint8_t> writer(streams);
    for (int64_t row = begin; row < end; row += step) {
      const uint8_t* bits = p.bits + row * p.stride;
      uint8_t* ones = p.ones + row * p.dim;
      each_piece<uint8_t>(step * p.dim, [&](int64_t i, int64_t n) {
        unpack_run(bits + i / 8, n, writer.at(ones + i));
        writer.done(ones + i, n);
      });
    }
  });
}

template <class T>
void code_run(const uint8_t* bits, int64_t n, T* code, Lane<T> minus) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) store_codes(code + i, load_bits(bits, i, kBlock), minus);
  if (i == n) return;
  T out[kBlock];
  store_codes(out, load_bits(bits, i, n - i), minus);
  std::memcpy(code + i, out, size_t(n - i) * sizeof(T));
}

template <class T>
void code(const CodeParams& p) {
  const Lane<T> minus = minus_code<T>(p.dim);
  const int64_t bytes = packed_bytes(p.dim);
  const bool streams = outgrows_cache(p.rows * p.dim * int64_t(sizeof(T)));
  parallel_ranges(p.rows, p.rows * p.dim * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    const int64_t step = rows_at_once(end - begin, p.dim, p.stride == bytes);
    StreamWriter<T> writer(streams);
    for (int64_t row = begin; row < end; row += step) {
      const uint8_t* bits = p.bits + row * p.stride;
      T* code = (T*)p.code + row * p.dim;
      each_piece<T>(step * p.dim, [&](int64_t i, int64_t n) {
        code_run(bits + i / 8, n, writer.at(code + i), minus);
        writer.done(code + i, n);
      });
    }
  });
}

inline BlockBits event_block(const uint32_t* words, uint32_t threshold) {
  LaneVec<int32_t> events[4];
  for (int u = 0; u < 4; ++u) events[u] = philox_events(words + kLaneCount<int32_t> * u, threshold);
  return block_bits(events);
}

void flip_run(const uint8_t* bits, const uint32_t* words, int64_t n, uint32_t threshold, uint8_t* out) {
  for (int64_t i = 0; i < n; i += kBlock) {
    const BlockBits flipped = load_bits(bits, i, n - i) ^ event_block(words + i, threshold);
    store_bits(out, i, n - i, flipped & block_inside(n - i));
  }
}

// No draw is below p = 0, and every draw is below p = 1.
void flip_all(const FlipParams& p, uint8_t change) {
  const int64_t bytes = packed_bytes(p.dim);
  const uint8_t last = p.dim % 8 == 0 ? 0xff : uint8_t((1 << p.dim % 8) - 1);
  parallel_ranges(p.rows, p.rows * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < bytes; ++i) p.out[row * bytes + i] = p.bits[row * p.stride + i] ^ change;
      if (bytes > 0) p.out[row * bytes + bytes - 1] &= last;
    }
  });
}

void flip(const FlipParams& p) {
  const uint32_t all = 1u << 24, threshold = philox_threshold(p.p);
  if (p.row_p == nullptr && (threshold == 0 || threshold == all)) return flip_all(p, threshold == 0 ? 0 : 0xff);
  const int64_t bytes = packed_bytes(p.dim);
  each_draw(
      p.rows, p.dim,
      [&](const Draw& d, PhiloxWords& words) {
        const uint32_t* drawn = words.draw(uint64_t(d.row * p.dim + d.first), d.rows * d.count);
        const int64_t step = p.row_p == nullptr ? rows_at_once(d.rows, p.dim, p.stride == bytes) : 1;
        for (int64_t row = d.row; row < d.row + d.rows; row += step, drawn += step * d.count) {
          flip_run(p.bits + row * p.stride + d.first / 8, drawn, step * d.count,
                   p.row_p == nullptr ? threshold : philox_threshold(p.row_p[row]), p.out + row * bytes + d.first / 8);
        }
      },
      p.offset, p.seed);
}

void quantize_any(const QuantizeParams& p) { VIDEOAR_DISPATCH(p.dtype, quantize, p) }
void code_any(const CodeParams& p) { VIDEOAR_DISPATCH(p.dtype, code, p) }

}  // namespace

const BitsKernels bits_kernels = {quantize_any, pack, unpack, code_any, flip, sample_bits, entropy, entropy_backward};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
