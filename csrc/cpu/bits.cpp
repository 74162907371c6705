#include "bits.h"

#include <cmath>

#include "bit_lanes.h"
#include "parallel.h"
#include "philox_fill.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// Random words are drawn for this many elements at a time (or one row), into a buffer that stays in the first cache.
constexpr int64_t kDrawElements = 1024;

inline int64_t rows_per_draw(int64_t dim) { return dim >= kDrawElements ? 1 : kDrawElements / (dim > 0 ? dim : 1); }

struct Words {
  uint32_t* buffer;

  explicit Words(int64_t dim) {
    const int64_t elements = dim > kDrawElements ? dim : kDrawElements;
    buffer = (uint32_t*)__builtin_malloc(size_t(philox_buffer_size(elements)) * sizeof(uint32_t));
  }
  ~Words() { __builtin_free(buffer); }
  Words(const Words&) = delete;
  Words& operator=(const Words&) = delete;
};

template <class T>
void quantize(const QuantizeParams& p) {
  using A = Accumulator<T>;
  const A amplitude = A(1.0 / std::sqrt(double(p.dim)));
  const int64_t bytes = packed_bytes(p.dim);
  parallel_ranges(p.rows, p.rows * p.dim * 2 * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* x = (const T*)p.x + row * p.stride;
      uint8_t* bits = p.bits + row * bytes;
      T* code = (T*)p.code + row * p.dim;
      for (int64_t j = 0; j < p.dim; j += kLanes<A>) {
        const Mask<A> positive = load_upto(x + j, p.dim - j) > Vec<A>{};
        write_bits<A>(bits, j, p.dim, lanes_to_bits(positive));
        store_upto(code + j, Vec<A>(positive ? broadcast(amplitude) : broadcast(-amplitude)), p.dim - j);
      }
    }
  });
}

// Eight bytes, zero or not, to eight bits: each byte's low bit becomes the OR of its bits, then a product gathers them.
inline uint8_t pack8(uint64_t ones) {
  ones |= ones >> 4;
  ones |= ones >> 2;
  ones |= ones >> 1;
  return uint8_t(((ones & 0x0101010101010101u) * 0x0102040810204080u) >> 56);
}

// Eight bits to eight bytes, zero or one.
inline uint64_t unpack8(uint8_t bits) {
  const uint64_t spread = (bits * 0x0101010101010101u) & 0x8040201008040201u;
  return ((spread + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
}

void pack(const PackParams& p) {
  const int64_t bytes = packed_bytes(p.dim);
  parallel_ranges(p.rows, p.rows * p.dim, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* ones = p.ones + row * p.stride;
      uint8_t* bits = p.bits + row * bytes;
      for (int64_t j = 0; j < p.dim; j += 8) {
        uint64_t eight = 0;
        if (j + 8 <= p.dim) {
          std::memcpy(&eight, ones + j, 8);
        } else {
          for (int64_t i = j; i < p.dim; ++i) eight |= uint64_t(ones[i]) << (8 * (i - j));
        }
        bits[j / 8] = pack8(eight);
      }
    }
  });
}

void unpack(const UnpackParams& p) {
  parallel_ranges(p.rows, p.rows * p.dim, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* bits = p.bits + row * p.stride;
      uint8_t* ones = p.ones + row * p.dim;
      for (int64_t j = 0; j < p.dim; j += 8) {
        const uint64_t eight = unpack8(bits[j / 8]);
        if (j + 8 <= p.dim) {
          std::memcpy(ones + j, &eight, 8);
        } else {
          std::memcpy(ones + j, &eight, size_t(p.dim - j));
        }
      }
    }
  });
}

template <class T>
void code(const CodeParams& p) {
  using A = Accumulator<T>;
  const A amplitude = A(1.0 / std::sqrt(double(p.dim)));
  parallel_ranges(p.rows, p.rows * p.dim * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* bits = p.bits + row * p.stride;
      T* out = (T*)p.code + row * p.dim;
      for (int64_t j = 0; j < p.dim; j += kLanes<A>) {
        store_upto(out + j, code_lanes(read_bits<A>(bits, j, p.dim), amplitude), p.dim - j);
      }
    }
  });
}

void flip(const FlipParams& p) {
  const int64_t bytes = packed_bytes(p.dim), chunk = rows_per_draw(p.dim);
  const uint32_t threshold = philox_threshold(p.p);
  // A Philox word costs about as much as eight bytes of traffic.
  parallel_ranges((p.rows + chunk - 1) / chunk, p.rows * p.dim * 8, [&](int64_t begin, int64_t end) {
    const Words words(p.dim);
    const int64_t last = end * chunk < p.rows ? end * chunk : p.rows;
    for (int64_t start = begin * chunk; start < last; start += chunk) {
      const int64_t stop = start + chunk < last ? start + chunk : last;
      const uint32_t* drawn =
          philox_fill(words.buffer, uint64_t(start * p.dim), (stop - start) * p.dim, p.offset, p.seed);
      for (int64_t row = start; row < stop; ++row, drawn += p.dim) {
        const uint8_t* bits = p.bits + row * p.stride;
        uint8_t* out = p.out + row * bytes;
        const uint32_t below = p.row_p ? philox_threshold(p.row_p[row]) : threshold;
        for (int64_t j = 0; j < p.dim; j += kLanes<float>) {
          const uint32_t flipped = read_bits<float>(bits, j, p.dim) ^ philox_event_bits<float>(drawn + j, below);
          write_bits<float>(out, j, p.dim, flipped & inside_bits<float>(p.dim - j));
        }
      }
    }
  });
}

// The definition: everything in float64.
inline bool sample_exactly(double logit, double uncond, double guidance, bool guided, double temperature,
                           double uniform) {
  const double x = guided ? uncond + guidance * (logit - uncond) : logit;
  return temperature == 0 ? x > 0 : uniform < 1 / (1 + std::exp(-(x / temperature)));
}

template <class T>
struct SampleRow {
  const T* logits;
  const T* uncond;
  const uint32_t* words;
  double guidance, temperature;

  double exact(int64_t j) const {
    const double u = uncond ? double(to_float(uncond[j])) : 0;
    return sample_exactly(double(to_float(logits[j])), u, guidance, uncond != nullptr, temperature,
                          double(philox_uniform(words[j])));
  }
};

// float64 logits: the definition, element by element.
inline uint32_t sample_lanes(const SampleRow<double>& row, int64_t j, int64_t n) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < n; ++i) bits |= uint32_t(row.exact(j + i)) << i;
  return bits;
}

// float32 arithmetic decides wherever its error cannot matter; the few elements near the edge (about one in a million)
// are decided in float64. So every instruction set and device draws the bits of the definition.
template <class T>
inline uint32_t sample_lanes(const SampleRow<T>& row, int64_t j, int64_t n) {
  Vec<float> x = load_upto(row.logits + j, n), magnitude = x < 0 ? -x : x;
  if (row.uncond) {
    const Vec<float> u = load_upto(row.uncond + j, n), size = u < 0 ? -u : u;
    const float guidance = float(row.guidance);
    magnitude = size + (guidance < 0 ? -guidance : guidance) * (magnitude + size);
    x = u + guidance * (x - u);
  }
  Vec<float> distance, doubt;
  if (row.temperature == 0) {
    distance = -x;
    doubt = magnitude * 0x1p-21f;
  } else {
    VecU32 word;
    std::memcpy(&word, row.words + j, sizeof word);
    const Vec<float> uniform = __builtin_convertvector((Mask<float>)(word >> 8), Vec<float>) * 0x1p-24f;
    const float scale = float(1 / row.temperature);
    distance = uniform - vsigmoid(x * scale);
    doubt = 0x1p-21f + magnitude * (scale * 0x1p-22f);
  }
  uint32_t bits = lanes_to_bits(Mask<float>(distance < 0));
  const Mask<float> close = (distance < 0 ? -distance : distance) <= doubt;
  if (uint32_t unsure = lanes_to_bits(close)) {
    for (int64_t i = 0; i < n; ++i) {
      if (unsure >> i & 1) bits = (bits & ~(1u << i)) | uint32_t(row.exact(j + i)) << i;
    }
  }
  return bits & inside_bits<float>(n);
}

template <class T>
void sample(const SampleParams& p) {
  using A = Accumulator<T>;
  const A amplitude = A(1.0 / std::sqrt(double(p.dim)));
  const int64_t bytes = packed_bytes(p.dim), chunk = rows_per_draw(p.dim);
  parallel_ranges((p.rows + chunk - 1) / chunk, p.rows * p.dim * 16, [&](int64_t begin, int64_t end) {
    const Words words(p.dim);
    const int64_t last = end * chunk < p.rows ? end * chunk : p.rows;
    for (int64_t start = begin * chunk; start < last; start += chunk) {
      const int64_t stop = start + chunk < last ? start + chunk : last;
      const uint32_t* drawn = words.buffer;
      if (p.temperature != 0) {
        drawn = philox_fill(words.buffer, uint64_t(start * p.dim), (stop - start) * p.dim, p.offset, p.seed);
      }
      for (int64_t i = start; i < stop; ++i, drawn += p.dim) {
        SampleRow<T> row{(const T*)p.logits + i * p.logits_stride, nullptr, drawn, p.guidance, p.temperature};
        if (p.uncond) row.uncond = (const T*)p.uncond + i * p.uncond_stride;
        if (p.row_guidance) row.guidance = p.row_guidance[i];
        for (int64_t j = 0; j < p.dim; j += kLanes<A>) {
          const int64_t n = p.dim - j < kLanes<A> ? p.dim - j : kLanes<A>;
          const uint32_t bits = sample_lanes(row, j, n);
          write_bits<A>(p.bits + i * bytes, j, p.dim, bits);
          store_upto((T*)p.code + i * p.dim + j, code_lanes(bits, amplitude), n);
        }
      }
    }
  });
}

// log(1 + y) for y in [0, 1]: 2 atanh(s), s = y / (2 + y) <= 1/3; the series is cut at 1e-9 relative.
inline Vec<float> log1p_unit(Vec<float> y) {
  const Vec<float> s = y / (y + 2), q = s * s;
  Vec<float> series = q * (1.0f / 15) + 1.0f / 13;
  series = series * q + 1.0f / 11;
  series = series * q + 1.0f / 9;
  series = series * q + 1.0f / 7;
  series = series * q + 1.0f / 5;
  series = series * q + 1.0f / 3;
  return 2 * s * (series * q + 1);
}
inline Vec<double> log1p_unit(Vec<double> y) {
  for (int i = 0; i < kLanes<double>; ++i) y[i] = std::log1p(y[i]);
  return y;
}

template <class T>
void entropy(const EntropyParams& p) {
  using A = Accumulator<T>;
  parallel_ranges(p.rows, p.rows * p.dim * 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* logits = (const T*)p.logits + row * p.logits_stride;
      const uint8_t* bits = p.bits + row * p.bits_stride;
      Vec<A> sum{};
      int64_t wrong = 0;
      for (int64_t j = 0; j < p.dim; j += kLanes<A>) {
        const int64_t rest = p.dim - j;
        const Vec<A> x = load_upto(logits + j, rest), magnitude = x < 0 ? -x : x;
        const uint32_t packed = read_bits<A>(bits, j, p.dim);
        const Mask<A> one = bits_to_lanes<A>(packed), positive = x > 0;
        // max(x, 0) - x * bit is |x| where sign and bit disagree, else 0.
        Mask<A> differ = positive ^ one;
        Vec<A> nats = (differ ? magnitude : Vec<A>{}) + log1p_unit(vexp(-magnitude));
        if (rest < kLanes<A>) {
          const Mask<A> inside = first_lanes<A>(int(rest));
          differ &= inside;
          nats = inside ? nats : Vec<A>{};
        }
        sum += nats;
        wrong += __builtin_popcount(lanes_to_bits(differ));
      }
      p.entropy[row] = double(reduce_add<A>(sum));
      p.correct[row] = double(p.dim - wrong);
    }
  });
}

template <class T>
void entropy_backward(const EntropyBackwardParams& p) {
  using A = Accumulator<T>;
  parallel_ranges(p.rows, p.rows * p.dim * 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* logits = (const T*)p.logits + row * p.logits_stride;
      const uint8_t* bits = p.bits + row * p.bits_stride;
      T* grad = (T*)p.grad + row * p.dim;
      const A coefficient = A(p.coefficient[row]);
      for (int64_t j = 0; j < p.dim; j += kLanes<A>) {
        const int64_t rest = p.dim - j;
        const Vec<A> one = bits_to_lanes<A>(read_bits<A>(bits, j, p.dim)) ? broadcast(A(1)) : Vec<A>{};
        store_upto(grad + j, coefficient * (vsigmoid(load_upto(logits + j, rest)) - one), rest);
      }
    }
  });
}

void quantize_any(const QuantizeParams& p) { VIDEOAR_DISPATCH(p.dtype, quantize, p) }
void code_any(const CodeParams& p) { VIDEOAR_DISPATCH(p.dtype, code, p) }
void sample_any(const SampleParams& p) { VIDEOAR_DISPATCH(p.dtype, sample, p) }
void entropy_any(const EntropyParams& p) { VIDEOAR_DISPATCH(p.dtype, entropy, p) }
void entropy_backward_any(const EntropyBackwardParams& p) { VIDEOAR_DISPATCH(p.dtype, entropy_backward, p) }

}  // namespace

const BitsKernels bits_kernels = {quantize_any, pack,       unpack,      code_any,
                                  flip,         sample_any, entropy_any, entropy_backward_any};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
