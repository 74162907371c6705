#include "pyramid.h"

#include <cmath>

#include "bit_lanes.h"
#include "parallel.h"
#include "philox_fill.h"
#include "resample.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// Channels are independent, so a task is one frame and a block of channels small enough that its planes stay in the
// second cache; blocks are multiples of 16, so that they begin at a byte of packed bits and at a whole vector.
constexpr int64_t kBlockMultiple = 16, kBlockMost = 64, kPlaneBytes = 96 * 1024;

template <class A>
inline int64_t block_channels(const PyramidShape& s) {
  int64_t block = kPlaneBytes / (int64_t(sizeof(A)) * s.height * s.width) / kBlockMultiple * kBlockMultiple;
  block = block > kBlockMost ? kBlockMost : block < kBlockMultiple ? kBlockMultiple : block;
  const int64_t all = (s.dim + kBlockMultiple - 1) / kBlockMultiple * kBlockMultiple;
  return block < all ? block : all;
}

// One thread's planes, and which frame and channels they hold now.
template <class T>
struct Block {
  using A = Accumulator<T>;
  const PyramidShape& shape;
  Size full;
  int64_t width, batch, frame, first, channels;
  A *z, *sum, *small, *strip;
  A amplitude;
  PhiloxWords words;

  Block(const PyramidShape& s, uint64_t offset, uint64_t seed)
      : shape(s),
        full{s.height, s.width},
        width(block_channels<A>(s)),
        amplitude(A(1.0 / std::sqrt(double(s.dim)))),
        words(offset, seed) {
    const int64_t plane = full.area() * width;
    z = (A*)__builtin_malloc(size_t(4 * plane) * sizeof(A));
    sum = z + plane;
    small = sum + plane;
    strip = small + plane;
  }
  ~Block() { __builtin_free(z); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void select(int64_t task) {
    const int64_t blocks = (shape.dim + width - 1) / width, flat = task / blocks;
    batch = flat / shape.frames;
    frame = flat % shape.frames;
    first = task % blocks * width;
    channels = shape.dim - first < width ? shape.dim - first : width;
  }
  int64_t flat_frame() const { return batch * shape.frames + frame; }
  Size scale(int64_t k) const { return {shape.scales[2 * k], shape.scales[2 * k + 1]}; }

  void load_pixel(const T* from, A* to) const {
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      const int64_t rest = channels - c;
      store(to + c, rest >= kLanes<A> ? load(from + c) : rest > 0 ? load_partial(from + c, int(rest)) : Vec<A>{});
    }
  }
  void store_pixel(const A* from, T* to) const {
    for (int64_t c = 0; c < channels; c += kLanes<A>) store_upto(to + c, load(from + c), channels - c);
  }

  void load_planes(const Planes& p, A* to) const {
    const T* base = (const T*)p.data + batch * p.batch + frame * p.frame + first;
    for (int64_t row = 0; row < full.h; ++row) {
      for (int64_t column = 0; column < full.w; ++column, to += width) {
        load_pixel(base + row * p.row + column * p.column, to);
      }
    }
  }
  // n consecutive tokens (or pixels) of a dense tensor, from logical token number `at` on.
  void load_tokens(const void* from, int64_t at, int64_t n, A* to) const {
    const T* base = (const T*)from + at * shape.dim + first;
    for (int64_t i = 0; i < n; ++i) load_pixel(base + i * shape.dim, to + i * width);
  }
  void store_tokens(const A* from, void* to, int64_t at, int64_t n) const {
    T* base = (T*)to + at * shape.dim + first;
    for (int64_t i = 0; i < n; ++i) store_pixel(from + i * width, base + i * shape.dim);
  }
  void store_planes(const A* from, void* to) const { store_tokens(from, to, flat_frame() * full.area(), full.area()); }

  // The code of n tokens of dense packed bits, into `small`.
  void read_codes(const uint8_t* bits, int64_t at, int64_t n) const {
    const int64_t bytes = packed_bytes(shape.dim);
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t* token = bits + (at + i) * bytes + first / 8;
      for (int64_t c = 0; c < width; c += kLanes<A>) {
        const uint32_t packed = c < channels ? read_bits<A>(token, c, channels) : 0;
        store(small + i * width + c, code_lanes(packed, amplitude));
      }
    }
  }

  // The signs of one token's residual go to `labels` (unless null); its code, flipped where a draw is below
  // `threshold`, replaces it. `token` is its logical number.
  void quantize_token(A* residual, int64_t token, uint8_t* labels, uint32_t threshold) {
    const uint32_t* drawn = threshold > 0 ? words.draw(uint64_t(token * shape.dim + first), channels) : nullptr;
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      uint32_t bits = 0;
      if (c < channels) {
        const uint32_t inside = inside_bits<A>(channels - c);
        bits = lanes_to_bits(Mask<A>(load(residual + c) > Vec<A>{})) & inside;
        if (labels != nullptr) write_bits<A>(labels, c, channels, bits);
        if (threshold > 0) bits ^= philox_event_bits<A>(drawn + c, threshold) & inside;
      }
      store(residual + c, code_lanes(bits, amplitude));
    }
  }
};

template <class T, class F>
void for_each_block(const PyramidShape& shape, const F& f, uint64_t offset = 0, uint64_t seed = 0) {
  using A = Accumulator<T>;
  const int64_t width = block_channels<A>(shape);
  const int64_t tasks = shape.batch * shape.frames * ((shape.dim + width - 1) / width);
  const int64_t work = tasks * shape.height * shape.width * width * shape.count * 4;
  if (tasks == 0) return;
  parallel_ranges(tasks, work, [&](int64_t begin, int64_t end) {
    Block<T> block(shape, offset, seed);
    for (int64_t task = begin; task < end; ++task) {
      block.select(task);
      f(block);
    }
  });
}

// Quantizes one frame scale by scale. With `write`, labels and the inputs of scales 2.. are stored.
template <class T>
void encode_scales(Block<T>& block, const EncodeParams& p, bool flip, bool write) {
  const PyramidShape& s = p.shape;
  const int64_t bytes = packed_bytes(s.dim);
  int64_t token = block.flat_frame() * s.tokens;
  fill_zero(block.sum, block.full.area() * block.width);
  for (int64_t k = 0; k < s.count; ++k) {
    const Size scale = block.scale(k);
    if (write && k > 0) {
      area_down<Accumulator<T>>(block.sum, nullptr, block.full, scale, block.width, block.small);
      block.store_tokens(block.small, p.inputs, token, scale.area());
    }
    area_down<Accumulator<T>>(block.z, block.sum, block.full, scale, block.width, block.small);
    const double flip_p = p.flip_p == nullptr ? p.flip_all : p.flip_p[block.flat_frame() * s.count + k];
    const uint32_t threshold = flip ? philox_threshold(flip_p) : 0;
    for (int64_t i = 0; i < scale.area(); ++i, ++token) {
      block.quantize_token(block.small + i * block.width, token,
                           write ? p.labels + token * bytes + block.first / 8 : nullptr, threshold);
    }
    bilinear_up_add(block.small, scale, block.full, block.width, block.strip, block.sum);
  }
}

template <class T>
void encode(const EncodeParams& p) {
  using A = Accumulator<T>;
  const PyramidShape& s = p.shape;
  const bool flips = p.flip_p != nullptr || p.flip_all > 0;
  for_each_block<T>(
      s,
      [&](Block<T>& block) {
        const Size coarsest = block.scale(0);
        const int64_t token = block.flat_frame() * s.tokens;
        block.load_planes(p.z, block.z);
        encode_scales(block, p, flips, true);
        block.store_planes(block.sum, p.total);
        if (block.frame == 0) {
          fill_zero(block.small, coarsest.area() * block.width);
          block.store_tokens(block.small, p.inputs, token, coarsest.area());
        }
        if (block.frame + 1 == s.frames) return;
        if (flips && !p.inherit) encode_scales(block, p, false, false);
        area_down<A>(block.sum, nullptr, block.full, coarsest, block.width, block.small);
        block.store_tokens(block.small, p.inputs, token + s.tokens, coarsest.area());
      },
      p.offset, p.seed);
}

template <class T>
void encode_backward(const EncodeBackwardParams& p) {
  for_each_block<T>(p.shape, [&](Block<T>& block) {
    block.load_planes(p.grad_total, block.z);
    fill_zero(block.sum, block.full.area() * block.width);
    for (int64_t k = 0; k < p.shape.count; ++k) {
      const Size scale = block.scale(k);
      bilinear_up_transposed(block.z, scale, block.full, block.width, block.strip, block.small);
      area_down_transposed(block.small, block.full, scale, block.width, block.sum);
    }
    block.store_planes(block.sum, p.grad_z);
  });
}

template <class T>
void decode(const DecodeParams& p) {
  for_each_block<T>(p.shape, [&](Block<T>& block) {
    const int64_t keep = p.keep == nullptr ? p.keep_all : p.keep[block.flat_frame()];
    int64_t token = block.flat_frame() * p.shape.tokens;
    fill_zero(block.sum, block.full.area() * block.width);
    for (int64_t k = 0; k < p.shape.count && k < keep; ++k) {
      const Size scale = block.scale(k);
      block.read_codes(p.bits, token, scale.area());
      bilinear_up_add(block.small, scale, block.full, block.width, block.strip, block.sum);
      token += scale.area();
    }
    block.store_planes(block.sum, p.total);
  });
}

template <class T>
void resample(const ResampleParams& p) {
  using A = Accumulator<T>;
  for_each_block<T>(p.shape, [&](Block<T>& block) {
    int64_t token = block.flat_frame() * p.shape.tokens;
    block.load_planes(p.x, block.z);
    for (int64_t k = 0; k < p.shape.count; ++k) {
      const Size scale = block.scale(k);
      area_down<A>(block.z, nullptr, block.full, scale, block.width, block.small);
      block.store_tokens(block.small, p.out, token, scale.area());
      token += scale.area();
    }
  });
}

template <class T>
void resample_backward(const ResampleBackwardParams& p) {
  for_each_block<T>(p.shape, [&](Block<T>& block) {
    int64_t token = block.flat_frame() * p.shape.tokens;
    fill_zero(block.sum, block.full.area() * block.width);
    for (int64_t k = 0; k < p.shape.count; ++k) {
      const Size scale = block.scale(k);
      block.load_tokens(p.grad, token, scale.area(), block.small);
      area_down_transposed(block.small, block.full, scale, block.width, block.sum);
      token += scale.area();
    }
    block.store_planes(block.sum, p.grad_x);
  });
}

template <class T>
void step(const StepParams& p) {
  using A = Accumulator<T>;
  for_each_block<T>(p.shape, [&](Block<T>& block) {
    const Size scale = block.scale(0);
    block.load_planes(p.total, block.sum);
    block.read_codes(p.bits, block.batch * scale.area(), scale.area());
    bilinear_up_add(block.small, scale, block.full, block.width, block.strip, block.sum);
    block.store_planes(block.sum, p.total_out);
    if (p.input == nullptr) return;
    const Size next = block.scale(1);
    area_down<A>(block.sum, nullptr, block.full, next, block.width, block.small);
    block.store_tokens(block.small, p.input, block.batch * next.area(), next.area());
  });
}

void encode_any(const EncodeParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, encode, p) }
void encode_backward_any(const EncodeBackwardParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, encode_backward, p) }
void decode_any(const DecodeParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, decode, p) }
void resample_any(const ResampleParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, resample, p) }
void resample_backward_any(const ResampleBackwardParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, resample_backward, p) }
void step_any(const StepParams& p) { VIDEOAR_DISPATCH(p.shape.dtype, step, p) }

}  // namespace

const PyramidKernels pyramid_kernels = {encode_any,   encode_backward_any,   decode_any,
                                        resample_any, resample_backward_any, step_any};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
