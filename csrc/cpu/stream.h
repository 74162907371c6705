// Outputs that outgrow the cache are written with non-temporal stores: an ordinary store first reads the line that it
// overwrites, half as much traffic again for an op that reads one tensor and writes another.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {

// Whether an output of so many bytes has left the cache before anyone can read it again.
static inline bool outgrows_cache(int64_t bytes) {
  static const int64_t half_of_cache = [] {
#if defined(_SC_LEVEL3_CACHE_SIZE)
    const long size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
    const long size = 0;
#endif
    return int64_t(size > 0 ? size : 32 << 20) / 2;
  }();
  return bytes > half_of_cache;
}

#if defined(__x86_64__)

// One full vector to an address that is a multiple of its size.
static inline void stream_vector(char* to, const char* from) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)to, _mm512_loadu_si512(from));
#elif defined(__AVX__)
  for (int i = 0; i < kVectorBytes; i += 32) {
    _mm256_stream_si256((__m256i*)(to + i), _mm256_loadu_si256((const __m256i*)(from + i)));
  }
#else
  _mm_stream_si128((__m128i*)to, _mm_loadu_si128((const __m128i*)from));
#endif
}

// memcpy that leaves `to` out of the cache, for any alignment. Its ends are written in units of 16 bytes where they
// fit, so that the ends of neighbouring rows meet in one write. stream_fence() must follow on the same thread.
static inline void stream_copy(void* to, const void* from, int64_t bytes) {
  char* out = (char*)to;
  const char* in = (const char*)from;
  const char* end = in + bytes;
  const auto plain = [&](int64_t n) {
    std::memcpy(out, in, size_t(n));
    out += n, in += n;
  };
  const auto unit = [&] {
    _mm_stream_si128((__m128i*)out, _mm_loadu_si128((const __m128i*)in));
    out += 16, in += 16;
  };
  const int64_t head = int64_t(-uintptr_t(out) % 16);
  if (head != 0) plain(head < bytes ? head : bytes);
  while (end - in >= 16 && uintptr_t(out) % kVectorBytes != 0) unit();
  for (; end - in >= kVectorBytes; out += kVectorBytes, in += kVectorBytes) stream_vector(out, in);
  while (end - in >= 16) unit();
  if (in != end) plain(end - in);
}

static inline void stream_fence() { _mm_sfence(); }

#else

static inline void stream_vector(char* to, const char* from) { std::memcpy(to, from, kVectorBytes); }
static inline void stream_copy(void* to, const void* from, int64_t bytes) { std::memcpy(to, from, size_t(bytes)); }
static inline void stream_fence() {}

#endif

constexpr int64_t kPieceBytes = 4096;

// f(i, n) over pieces [i, i + n) of a row that a StreamWriter can take.
template <class T, class F>
static inline void each_piece(int64_t width, const F& f) {
  constexpr int64_t kPiece = kPieceBytes / int64_t(sizeof(T));
  for (int64_t i = 0; i < width; i += kPiece) f(i, width - i < kPiece ? width - i : kPiece);
}

// One thread's output. A kernel writes a piece of up to kPieceBytes to at(out), with stores of any kind, and then calls
// done(out, count): where the output is streamed, at() is a buffer in the L1 cache and done() sends it on its way.
template <class T>
class StreamWriter {
 public:
  explicit StreamWriter(bool streams) : streams_(streams) {}
  ~StreamWriter() {
    if (streams_) stream_fence();
  }
  StreamWriter(const StreamWriter&) = delete;
  StreamWriter& operator=(const StreamWriter&) = delete;

  bool streams() const { return streams_; }
  T* at(T* out) { return streams_ ? (T*)piece_ : out; }
  void done(T* out, int64_t count) const {
    if (streams_) stream_copy(out, piece_, count * int64_t(sizeof(T)));
  }

  // Streams `rows` rows that lie densely in the buffer to rows `step` elements apart.
  void send(T* out, int64_t rows, int64_t width, int64_t step) const {
    if (step == width) return stream_copy(out, piece_, rows * width * int64_t(sizeof(T)));
    for (int64_t r = 0; r < rows; ++r)
      stream_copy(out + r * step, (const T*)piece_ + r * width, width * int64_t(sizeof(T)));
  }

 private:
  const bool streams_;
  alignas(64) char piece_[kPieceBytes];
};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
