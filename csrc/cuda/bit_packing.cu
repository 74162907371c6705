// Bits packed, unpacked and flipped. Tokens of whole bytes that follow on each other are one long row, moved in
// accesses of 16 bytes; otherwise a thread takes a byte of bits.
#include "bits.h"
#include "octet.cuh"

namespace videoar {
namespace cuda {
namespace {

using Sixteen = Pack<uint32_t, 4>;

// Loads of a thread that do not wait for each other.
constexpr int kAtOnce = 4;

// Fewer bytes than this are flipped four a thread, so that every multiprocessor has work.
constexpr int64_t kManyFlips = 1 << 21;

// Bit i: whether byte i of four is not zero.
__device__ inline unsigned nonzero_bytes(uint32_t bytes) {
  const uint32_t carried = (bytes & 0x7f7f7f7fu) + 0x7f7f7f7fu;
  return ((carried | bytes) >> 7 & 0x01010101u) * 0x01020408u >> 24;
}

// Byte i of four: bit i of four.
__device__ inline uint32_t spread_bits(unsigned bits) { return bits * 0x00204081u & 0x01010101u; }

__device__ inline unsigned pack_byte(const uint8_t* ones, int count) {
  unsigned bits = 0;
  for (int i = 0; i < count; ++i) bits |= unsigned(ones[i] != 0) << i;
  return bits;
}

// load(n, i), then store(n, i), with n < kAtOnce, for the i < count of this thread.
template <class L, class S>
__device__ inline void each_at_once(int64_t count, const L& load, const S& store) {
  const int64_t step = int64_t(gridDim.x) * kBitThreads * kAtOnce;
  for (int64_t first = int64_t(blockIdx.x) * kBitThreads * kAtOnce + threadIdx.x; first < count; first += step) {
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n)
      if (first + n * kBitThreads < count) load(n, first + n * kBitThreads);
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n)
      if (first + n * kBitThreads < count) store(n, first + n * kBitThreads);
  }
}

inline unsigned at_once_grid(int64_t count) {
  return grid_of((count + kBitThreads * kAtOnce - 1) / (kBitThreads * kAtOnce));
}

// Two bytes of bits from 16 elements; one thread makes the last byte of an odd number.
__global__ void __launch_bounds__(kBitThreads) pack_row_kernel(const Sixteen* ones, uint16_t* bits, int64_t bytes) {
  Sixteen from[kAtOnce];
  each_at_once(
      bytes / 2, [&](int n, int64_t i) { from[n] = ones[i]; },
      [&](int n, int64_t i) {
        unsigned both = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) both |= nonzero_bytes(from[n].value[j]) << 4 * j;
        bits[i] = uint16_t(both);
      });
  if (bytes % 2 != 0 && blockIdx.x == 0 && threadIdx.x == 0)
    ((uint8_t*)bits)[bytes - 1] = uint8_t(pack_byte((const uint8_t*)ones + 8 * (bytes - 1), 8));
}

template <bool kAligned>
__global__ void __launch_bounds__(kBitThreads) pack_kernel(const __grid_constant__ PackParams p) {
  each_octet(p.rows, p.dim, [&](int64_t row, int64_t byte, int count) {
    const uint8_t* ones = p.ones + row * p.stride + 8 * byte;
    unsigned bits;
    if constexpr (kAligned) {
      const Pack<uint32_t, 2> eight = *(const Pack<uint32_t, 2>*)ones;
      bits = nonzero_bytes(eight.value[0]) | nonzero_bytes(eight.value[1]) << 4;
    } else {
      bits = pack_byte(ones, count);
    }
    p.bits[row * ((p.dim + 7) / 8) + byte] = uint8_t(bits);
  });
}

__global__ void __launch_bounds__(kBitThreads) unpack_row_kernel(const uint16_t* bits, Sixteen* ones, int64_t bytes) {
  unsigned from[kAtOnce];
  each_at_once(
      bytes / 2, [&](int n, int64_t i) { from[n] = bits[i]; },
      [&](int n, int64_t i) {
        Sixteen to;
#pragma unroll
        for (int j = 0; j < 4; ++j) to.value[j] = spread_bits(from[n] >> 4 * j & 15);
        ones[i] = to;
      });
  if (bytes % 2 != 0 && blockIdx.x == 0 && threadIdx.x < 8)
    ((uint8_t*)ones)[8 * (bytes - 1) + threadIdx.x] = ((const uint8_t*)bits)[bytes - 1] >> threadIdx.x & 1;
}

template <bool kAligned>
__global__ void __launch_bounds__(kBitThreads) unpack_kernel(const __grid_constant__ UnpackParams p) {
  each_octet(p.rows, p.dim, [&](int64_t row, int64_t byte, int count) {
    const unsigned bits = p.bits[row * p.stride + byte];
    uint8_t* ones = p.ones + row * p.dim + 8 * byte;
    if constexpr (kAligned) {
      *(Pack<uint32_t, 2>*)ones = {{spread_bits(bits & 15), spread_bits(bits >> 4)}};
    } else {
      for (int i = 0; i < count; ++i) ones[i] = uint8_t(bits >> i & 1);
    }
  });
}

// Rows of whole bytes as one: kWords words of four bytes a thread. What is left of the last thread's, a byte a thread.
template <int kWords>
__global__ void __launch_bounds__(kBitThreads) flip_row_kernel(const __grid_constant__ FlipParams p, uint32_t all) {
  using Words = Pack<uint32_t, kWords>;
  const int64_t row_bytes = p.dim / 8, bytes = p.rows * row_bytes, items = bytes / int64_t(sizeof(Words));
  const auto threshold_of = [&](int64_t row) { return p.row_p == nullptr ? all : philox_threshold(p.row_p[row]); };
  const int64_t step = int64_t(gridDim.x) * kBitThreads, mine = int64_t(blockIdx.x) * kBitThreads + threadIdx.x;
  for (int64_t item = mine; item < items; item += step) {
    Words x = ((const Words*)p.bits)[item];
    int64_t byte = item * int64_t(sizeof(Words)), row = byte / row_bytes, left = (row + 1) * row_bytes - byte;
    uint32_t threshold = threshold_of(row);
#pragma unroll 1
    for (int w = 0; w < kWords; ++w) {
      uint32_t flips = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b, ++byte, --left) {
        if (p.row_p != nullptr && left == 0) {
          threshold = threshold_of(++row);
          left = row_bytes;
        }
        flips |= events_octet(uint64_t(8 * byte), threshold, p.offset, p.seed) << 8 * b;
      }
      // The words take turns in the first place, since registers have no index.
      const uint32_t flipped = x.value[0] ^ flips;
#pragma unroll
      for (int i = 0; i + 1 < kWords; ++i) x.value[i] = x.value[i + 1];
      x.value[kWords - 1] = flipped;
    }
    ((Words*)p.out)[item] = x;
  }
  const int64_t byte = items * int64_t(sizeof(Words)) + mine;
  if (byte < bytes)
    p.out[byte] = p.bits[byte] ^ events_octet(uint64_t(8 * byte), threshold_of(byte / row_bytes), p.offset, p.seed);
}

__global__ void __launch_bounds__(kBitThreads) flip_kernel(const __grid_constant__ FlipParams p, uint32_t all) {
  each_octet(p.rows, p.dim, [&](int64_t row, int64_t byte, int count) {
    const uint32_t threshold = p.row_p == nullptr ? all : philox_threshold(p.row_p[row]);
    const unsigned flips = events_octet(uint64_t(row * p.dim + 8 * byte), threshold, p.offset, p.seed);
    const unsigned inside = (1u << count) - 1;
    p.out[row * ((p.dim + 7) / 8) + byte] = uint8_t((p.bits[row * p.stride + byte] ^ flips) & inside);
  });
}

bool aligned_to(int64_t bytes, const void* p, const void* q) { return (uint64_t(p) | uint64_t(q)) % bytes == 0; }

// Whether rows of `width` elements, `stride` apart, follow on each other.
bool one_row(int64_t rows, int64_t width, int64_t stride) { return rows == 1 || width == stride; }

}  // namespace

const char* launch_pack(const PackParams& p, void* stream) {
  if (p.rows * p.dim == 0) return nullptr;
  const cudaStream_t to = cudaStream_t(stream);
  const int64_t bytes = p.rows * ((p.dim + 7) / 8);
  if (p.dim % 8 == 0 && one_row(p.rows, p.dim, p.stride) && aligned_to(16, p.ones, nullptr) &&
      aligned_to(2, p.bits, nullptr)) {
    VIDEOAR_LAUNCH(at_once_grid((bytes + 1) / 2), kBitThreads, to, pack_row_kernel)
    ((const Sixteen*)p.ones, (uint16_t*)p.bits, bytes);
  } else if (p.dim % 8 == 0 && (p.rows == 1 || p.stride % 8 == 0) && aligned_to(8, p.ones, nullptr)) {
    VIDEOAR_LAUNCH(octet_grid(p.rows, p.dim), kBitThreads, to, pack_kernel<true>)(p);
  } else {
    VIDEOAR_LAUNCH(octet_grid(p.rows, p.dim), kBitThreads, to, pack_kernel<false>)(p);
  }
  return launch_error();
}

const char* launch_unpack(const UnpackParams& p, void* stream) {
  if (p.rows * p.dim == 0) return nullptr;
  const cudaStream_t to = cudaStream_t(stream);
  const int64_t row_bytes = (p.dim + 7) / 8, bytes = p.rows * row_bytes;
  if (p.dim % 8 == 0 && one_row(p.rows, row_bytes, p.stride) && aligned_to(16, p.ones, nullptr) &&
      aligned_to(2, p.bits, nullptr)) {
    VIDEOAR_LAUNCH(at_once_grid((bytes + 1) / 2), kBitThreads, to, unpack_row_kernel)
    ((const uint16_t*)p.bits, (Sixteen*)p.ones, bytes);
  } else if (p.dim % 8 == 0 && aligned_to(8, p.ones, nullptr)) {
    VIDEOAR_LAUNCH(octet_grid(p.rows, p.dim), kBitThreads, to, unpack_kernel<true>)(p);
  } else {
    VIDEOAR_LAUNCH(octet_grid(p.rows, p.dim), kBitThreads, to, unpack_kernel<false>)(p);
  }
  return launch_error();
}

const char* launch_flip(const FlipParams& p, void* stream) {
  if (p.rows * p.dim == 0) return nullptr;
  const cudaStream_t to = cudaStream_t(stream);
  const int64_t row_bytes = (p.dim + 7) / 8, bytes = p.rows * row_bytes;
  const bool row = p.dim % 8 == 0 && one_row(p.rows, row_bytes, p.stride);
  const uint32_t all = philox_threshold(p.p);
  if (row && bytes >= kManyFlips && aligned_to(16, p.bits, p.out)) {
    VIDEOAR_LAUNCH(octet_grid(bytes / 16, 8), kBitThreads, to, flip_row_kernel<4>)(p, all);
  } else if (row && aligned_to(4, p.bits, p.out)) {
    VIDEOAR_LAUNCH(octet_grid(bytes / 4 + 1, 8), kBitThreads, to, flip_row_kernel<1>)(p, all);
  } else {
    VIDEOAR_LAUNCH(octet_grid(p.rows, p.dim), kBitThreads, to, flip_kernel)(p, all);
  }
  return launch_error();
}

}  // namespace cuda
}  // namespace videoar
