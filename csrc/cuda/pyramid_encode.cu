// Encoding: channels are independent, so a block takes eight channels of one frame through all scales. Their three
// planes lie in shared memory, or, where they are too large for it, in scratch memory that stays in the caches.
#include "planes.cuh"

namespace videoar {
namespace cuda {
namespace {

constexpr int kSmallPlane = 64, kLargePlane = int(kSharedPixels);  // 6 and 24 KB of shared memory in float32

template <class T>
struct EncodeKernel {
  using A = Accumulator<T>;
  const EncodeParams& p;
  const Grid& g;
  Octet<A>*z, *sum, *small;
  int64_t frame;
  int octet;
  bool vector;
  A amplitude;

  template <class F>
  __device__ void each_pixel(const F& f) const {
    for (int i = int(threadIdx.x); i < g.pixels; i += int(blockDim.x)) f(i, i / g.full_width, i % g.full_width);
  }

  // f(token, present, leading, lane, lanes) for the tokens of scale k; several threads share one where there are fewer
  // tokens than threads. All threads of a warp come along to the last.
  template <class F>
  __device__ void each_token(int k, const F& f) const {
    const int tokens = g.height[k] * g.width[k];
    int lanes = 1;
    while (lanes < kWarp && 2 * lanes * tokens <= int(blockDim.x)) lanes *= 2;
    const int groups = int(blockDim.x) / lanes, lane = int(threadIdx.x) % lanes;
    for (int base = 0; base < tokens; base += groups) {
      const int token = base + int(threadIdx.x) / lanes;
      const bool present = token < tokens;
      f(present ? token : 0, present && lane == 0, lane, lanes);
    }
  }

  __device__ void store_input(int64_t token, const Octet<A>& x) const {
    store_channels((T*)p.inputs + token * g.dim + 8 * octet, x, g.inside(octet), vector);
  }

  // Quantizes the frame scale by scale, from a sum of zeros. With `write`, labels and the inputs of scales 2.. are
  // stored.
  __device__ void scales(bool flip, bool write) const {
    each_pixel([&](int i, int, int) { sum[i] = zeros<A>(); });
    __syncthreads();
    for (int k = 0; k < g.count; ++k) {
      const int64_t first = frame * g.tokens + g.first[k];
      const double flip_p = p.flip_p == nullptr ? p.flip_all : p.flip_p[frame * g.count + k];
      const uint32_t threshold = flip ? philox_threshold(flip_p) : 0;
      each_token(k, [&](int token, bool leading, int lane, int lanes) {
        const int row = token / g.width[k], column = token % g.width[k];
        const Octet<A> residual = area_mean<A>(g, k, row, column, lane, lanes, [&](int i) {
          Octet<A> rest = z[i];
          add(rest, sum[i], A(-1));
          return rest;
        });
        if (write && k > 0) {
          const Octet<A> mean = area_mean<A>(g, k, row, column, lane, lanes, [&](int i) { return sum[i]; });
          if (leading) store_input(first + token, mean);
        }
        if (!leading) return;
        unsigned bits = 0;
#pragma unroll
        for (int c = 0; c < 8; ++c) bits |= unsigned(residual.value[c] > 0) << c;
        bits &= (1u << g.inside(octet)) - 1;
        if (write) p.labels[(first + token) * g.octets + octet] = uint8_t(bits);
        bits ^= events_octet(uint64_t((first + token) * g.dim + 8 * octet), threshold, p.offset, p.seed);
        small[token] = code_of(bits, amplitude);
      });
      __syncthreads();
      each_pixel([&](int i, int row, int column) {
        add(sum[i], bilinear<A>(g, k, row, column, [&](int token) { return small[token]; }));
      });
      __syncthreads();
    }
  }

  __device__ void run(const PlanesView<T>& planes) const {
    const T* plane = planes.plane(g, frame, octet);
    each_pixel([&](int i, int row, int column) {
      z[i] = load_channels<A>(plane + row * planes.row + column * planes.column, g.inside(octet), planes.vector);
    });
    const bool flips = p.flip_p != nullptr || p.flip_all > 0;
    scales(flips, true);
    each_pixel([&](int i, int, int) {
      store_channels((T*)p.total + (frame * g.pixels + i) * g.dim + 8 * octet, sum[i], g.inside(octet), vector);
    });
    const int64_t within = frame % g.frames;
    if (within == 0) {
      each_token(0, [&](int token, bool leading, int, int) {
        if (leading) store_input(frame * g.tokens + token, zeros<A>());
      });
    }
    if (within + 1 < g.frames) {
      if (flips && !p.inherit) {
        __syncthreads();
        scales(false, false);
      }
      each_token(0, [&](int token, bool leading, int lane, int lanes) {
        const Octet<A> mean =
            area_mean<A>(g, 0, token / g.width[0], token % g.width[0], lane, lanes, [&](int i) { return sum[i]; });
        if (leading) store_input((frame + 1) * g.tokens + token, mean);
      });
    }
    __syncthreads();
  }
};

// kPixels: planes of at most so many in shared memory; 0: in scratch memory.
template <class T, int kPixels>
__global__ void __launch_bounds__(kPyramidThreads, 2)
    encode_kernel(const __grid_constant__ EncodeParams p, const __grid_constant__ Grid g,
                  const __grid_constant__ PlanesView<T> planes, void* scratch, bool vector) {
  using A = Accumulator<T>;
  __shared__ Octet<A> shared[kPixels == 0 ? 1 : 3 * kPixels];
  Octet<A>* z = kPixels == 0 ? (Octet<A>*)scratch + int64_t(blockIdx.x) * 3 * g.pixels : shared;
  const A amplitude = code_amplitude<A>(g.dim);
  for (int64_t task = blockIdx.x; task < g.flat_frames * g.octets; task += gridDim.x) {
    EncodeKernel<T>{p, g, z, z + g.pixels, z + 2 * g.pixels, task / g.octets, int(task % g.octets), vector, amplitude}
        .run(planes);
  }
}

template <class T>
const char* encode(const EncodeLaunch& launch, cudaStream_t stream) {
  const EncodeParams& p = launch.params;
  const PyramidShape& s = p.shape;
  const Grid g = grid_of(s);
  const int64_t pixels = s.height * s.width;
  const PlanesView<T> planes = view_of<T>(p.z, s.dim);
  const bool vector = s.dim % 8 == 0 && aligned_to_16(p.inputs) && aligned_to_16(p.total);
  const auto start = [&](auto kernel, unsigned blocks) {
    const int threads = pixels <= kSmallPlane ? kSmallPlane : kPyramidThreads;
    VIDEOAR_LAUNCH(blocks, threads, stream, kernel)(p, g, planes, launch.scratch, vector);
  };
  const unsigned tasks = grid_of(s.batch * s.frames * int64_t(g.octets));
  if (pixels <= kSmallPlane) {
    start(encode_kernel<T, kSmallPlane>, tasks);
  } else if (pixels <= kLargePlane) {
    start(encode_kernel<T, kLargePlane>, tasks);
  } else {
    start(encode_kernel<T, 0>, unsigned(encode_blocks(s)));
  }
  return launch_error();
}

}  // namespace

const char* launch_pyramid_encode(const EncodeLaunch& p, void* stream) {
  const PyramidShape& s = p.params.shape;
  if (empty(s)) return nullptr;
  if (const char* reason = unfit(s)) return reason;
  VIDEOAR_CUDA_DISPATCH(s.dtype, encode, p, cudaStream_t(stream));
}

}  // namespace cuda
}  // namespace videoar
