// Everything but encoding: a thread makes eight channels of one result, reading what it needs of the inputs, so that
// sums have one order and nothing is exchanged.
#include "planes.cuh"
#include "pyramid.h"

namespace videoar {
namespace cuda {
namespace {

// f(frame, place, octet) for every octet of `places` pixels or tokens of every frame; neighbouring threads get
// neighbouring octets.
template <class F>
__device__ inline void each_place(const Grid& g, int64_t places, const F& f) {
  const int64_t items = g.flat_frames * places * g.octets, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    const int64_t at = item / g.octets;
    f(at / places, int(at % places), int(item % g.octets));
  }
}

unsigned place_blocks(const Grid& g, int64_t places) {
  return grid_of((g.flat_frames * places * g.octets + kPyramidThreads - 1) / kPyramidThreads);
}

// Scale and place in it of a frame's token.
struct TokenPlace {
  int k, row, column;
};

__device__ inline TokenPlace place_of(const Grid& g, int token) {
  int k = g.count - 1;
  while (g.first[k] > token) --k;
  const int within = token - g.first[k];
  return {k, within / g.width[k], within % g.width[k]};
}

template <class T>
__global__ void __launch_bounds__(kPyramidThreads, 2)
    decode_kernel(const __grid_constant__ Grid g, const uint8_t* bits, const int64_t* keep, int64_t keep_all, T* total,
                  bool vector) {
  using A = Accumulator<T>;
  const A amplitude = code_amplitude<A>(g.dim);
  each_place(g, g.pixels, [&](int64_t frame, int pixel, int octet) {
    const int64_t wanted = keep == nullptr ? keep_all : keep[frame], kept = wanted < g.count ? wanted : g.count;
    Octet<A> sum = zeros<A>();
    for (int k = 0; k < kept; ++k) {
      const uint8_t* codes = bits + (frame * g.tokens + g.first[k]) * g.octets + octet;
      add(sum, bilinear<A>(g, k, pixel / g.full_width, pixel % g.full_width,
                           [&](int token) { return code_of(codes[int64_t(token) * g.octets], amplitude); }));
    }
    store_channels(total + (frame * g.pixels + pixel) * g.dim + 8 * octet, sum, g.inside(octet), vector);
  });
}

template <class T>
__global__ void __launch_bounds__(kPyramidThreads, 2)
    resample_kernel(const __grid_constant__ Grid g, const __grid_constant__ PlanesView<T> x, T* out, bool vector) {
  using A = Accumulator<T>;
  each_place(g, g.tokens, [&](int64_t frame, int token, int octet) {
    const TokenPlace place = place_of(g, token);
    const Bin<int> rows = area_bin(place.row, g.height[place.k], g.full_height);
    const Bin<int> columns = area_bin(place.column, g.width[place.k], g.full_width);
    const T* plane = x.plane(g, frame, octet);
    Octet<A> sum = zeros<A>();
    for (int row = rows.begin; row < rows.end; ++row)
      for (int column = columns.begin; column < columns.end; ++column)
        add(sum, load_channels<A>(plane + row * x.row + column * x.column, g.inside(octet), x.vector));
    const A height = A(rows.end - rows.begin), width = A(columns.end - columns.begin);
#pragma unroll
    for (int c = 0; c < 8; ++c) sum.value[c] = sum.value[c] / height / width;
    store_channels(out + (frame * g.tokens + token) * g.dim + 8 * octet, sum, g.inside(octet), vector);
  });
}

// S: what the gradient of the tokens is stored as.
template <class T, class S>
__global__ void __launch_bounds__(kPyramidThreads, 2)
    resample_backward_kernel(const __grid_constant__ Grid g, const S* grad, T* grad_x, bool vector) {
  using A = Accumulator<T>;
  each_place(g, g.pixels, [&](int64_t frame, int pixel, int octet) {
    const int row = int(pixel / g.full_width), column = int(pixel % g.full_width);
    Octet<A> sum = zeros<A>();
    for (int k = 0; k < g.count; ++k) {
      const Bin<int> rows = area_bins_of(row, g.height[k], g.full_height);
      const Bin<int> columns = area_bins_of(column, g.width[k], g.full_width);
      for (int i = rows.begin; i < rows.end; ++i) {
        const Bin<int> high = area_bin(i, g.height[k], g.full_height);
        for (int j = columns.begin; j < columns.end; ++j) {
          const Bin<int> wide = area_bin(j, g.width[k], g.full_width);
          const int64_t token = frame * g.tokens + g.first[k] + i * g.width[k] + j;
          const A share = 1 / A((high.end - high.begin) * (wide.end - wide.begin));
          add(sum, load_channels<A>(grad + token * g.dim + 8 * octet, g.inside(octet), vector), share);
        }
      }
    }
    store_channels(grad_x + (frame * g.pixels + pixel) * g.dim + 8 * octet, sum, g.inside(octet), vector);
  });
}

// tokens = the transpose of up-sampling applied to grad_total, scale by scale.
template <class T, class A>
__global__ void __launch_bounds__(kPyramidThreads, 2)
    up_transposed_kernel(const __grid_constant__ Grid g, const __grid_constant__ PlanesView<T> grad, A* tokens,
                         bool vector) {
  each_place(g, g.tokens, [&](int64_t frame, int token, int octet) {
    const TokenPlace place = place_of(g, token);
    const int height = g.height[place.k], width = g.width[place.k];
    const Bin<int> rows = bilinear_reach(place.row, height, g.full_height);
    const Bin<int> columns = bilinear_reach(place.column, width, g.full_width);
    const T* plane = grad.plane(g, frame, octet);
    Octet<A> sum = zeros<A>();
    for (int row = rows.begin; row < rows.end; ++row) {
      const A high = tap_share(bilinear_tap<A>(row, height, g.full_height), place.row);
      if (high == 0) continue;
      Octet<A> line = zeros<A>();
      for (int column = columns.begin; column < columns.end; ++column) {
        const A wide = tap_share(bilinear_tap<A>(column, width, g.full_width), place.column);
        if (wide == 0) continue;
        add(line, load_channels<A>(plane + row * grad.row + column * grad.column, g.inside(octet), grad.vector), wide);
      }
      add(sum, line, high);
    }
    store_channels(tokens + (frame * g.tokens + token) * g.dim + 8 * octet, sum, g.inside(octet), vector);
  });
}

// Scale 0 is the step's. Makes the new sum, or (kNext) the input of the next scale, 1: means of the new sum before it
// is rounded, made again from what it is made of.
template <class T, bool kNext>
__global__ void __launch_bounds__(kPyramidThreads, 2)
    step_kernel(const __grid_constant__ Grid g, const __grid_constant__ PlanesView<T> total, const uint8_t* bits,
                T* out, bool vector) {
  using A = Accumulator<T>;
  const A amplitude = code_amplitude<A>(g.dim);
  const int small = g.height[0] * g.width[0], places = kNext ? g.height[1] * g.width[1] : g.pixels;
  each_place(g, places, [&](int64_t sample, int place, int octet) {
    const T* plane = total.plane(g, sample, octet);
    const uint8_t* codes = bits + sample * small * g.octets + octet;
    const auto new_sum = [&](int row, int column) {
      Octet<A> sum = load_channels<A>(plane + row * total.row + column * total.column, g.inside(octet), total.vector);
      add(sum, bilinear<A>(g, 0, row, column,
                           [&](int token) { return code_of(codes[int64_t(token) * g.octets], amplitude); }));
      return sum;
    };
    T* to = out + (sample * places + place) * g.dim + 8 * octet;
    if constexpr (!kNext) {
      store_channels(to, new_sum(place / g.full_width, place % g.full_width), g.inside(octet), vector);
    } else {
      const Bin<int> rows = area_bin(place / g.width[1], g.height[1], g.full_height);
      const Bin<int> columns = area_bin(place % g.width[1], g.width[1], g.full_width);
      Octet<A> mean = zeros<A>();
      for (int row = rows.begin; row < rows.end; ++row)
        for (int column = columns.begin; column < columns.end; ++column) add(mean, new_sum(row, column));
      const A height = A(rows.end - rows.begin), width = A(columns.end - columns.begin);
#pragma unroll
      for (int c = 0; c < 8; ++c) mean.value[c] = mean.value[c] / height / width;
      store_channels(to, mean, g.inside(octet), vector);
    }
  });
}

// Whether octets of a dense tensor lie at multiples of 16 bytes.
bool dense_vector(int64_t dim, const void* p, const void* q = nullptr) {
  return dim % 8 == 0 && aligned_to_16(p) && aligned_to_16(q);
}

template <class T>
const char* decode(const DecodeParams& p, cudaStream_t stream) {
  const Grid g = grid_of(p.shape);
  const bool vector = dense_vector(g.dim, p.total);
  VIDEOAR_LAUNCH(place_blocks(g, g.pixels), kPyramidThreads, stream, decode_kernel<T>)
  (g, p.bits, p.keep, p.keep_all, (T*)p.total, vector);
  return launch_error();
}

template <class T>
const char* resample(const ResampleParams& p, cudaStream_t stream) {
  const Grid g = grid_of(p.shape);
  VIDEOAR_LAUNCH(place_blocks(g, g.tokens), kPyramidThreads, stream, resample_kernel<T>)
  (g, view_of<T>(p.x, g.dim), (T*)p.out, dense_vector(g.dim, p.out));
  return launch_error();
}

template <class T>
const char* resample_backward(const ResampleBackwardParams& p, cudaStream_t stream) {
  const Grid g = grid_of(p.shape);
  const bool vector = dense_vector(g.dim, p.grad, p.grad_x);
  VIDEOAR_LAUNCH(place_blocks(g, g.pixels), kPyramidThreads, stream, resample_backward_kernel<T, T>)
  (g, (const T*)p.grad, (T*)p.grad_x, vector);
  return launch_error();
}

template <class T>
const char* encode_backward(const EncodeBackwardLaunch& launch, cudaStream_t stream) {
  using A = Accumulator<T>;
  const EncodeBackwardParams& p = launch.params;
  const Grid g = grid_of(p.shape);
  A* tokens = (A*)launch.tokens;
  VIDEOAR_LAUNCH(place_blocks(g, g.tokens), kPyramidThreads, stream, up_transposed_kernel<T, A>)
  (g, view_of<T>(p.grad_total, g.dim), tokens, dense_vector(g.dim, tokens));
  const bool vector = dense_vector(g.dim, tokens, p.grad_z);
  VIDEOAR_LAUNCH(place_blocks(g, g.pixels), kPyramidThreads, stream, resample_backward_kernel<T, A>)
  (g, (const A*)tokens, (T*)p.grad_z, vector);
  return launch_error();
}

template <class T>
const char* step(const StepParams& p, cudaStream_t stream) {
  const Grid g = grid_of(p.shape);
  const PlanesView<T> total = view_of<T>(p.total, g.dim);
  if (p.input != nullptr) {  // first, since total_out may be total
    VIDEOAR_LAUNCH(place_blocks(g, p.shape.scales[2] * p.shape.scales[3]), kPyramidThreads, stream,
                   step_kernel<T, true>)
    (g, total, p.bits, (T*)p.input, dense_vector(g.dim, p.input));
  }
  VIDEOAR_LAUNCH(place_blocks(g, g.pixels), kPyramidThreads, stream, step_kernel<T, false>)
  (g, total, p.bits, (T*)p.total_out, dense_vector(g.dim, p.total_out));
  return launch_error();
}

}  // namespace

const char* launch_pyramid_decode(const DecodeParams& p, void* stream) {
  if (empty(p.shape)) return nullptr;
  if (const char* reason = unfit(p.shape)) return reason;
  VIDEOAR_CUDA_DISPATCH(p.shape.dtype, decode, p, cudaStream_t(stream));
}
const char* launch_pyramid_resample(const ResampleParams& p, void* stream) {
  if (empty(p.shape)) return nullptr;
  if (const char* reason = unfit(p.shape)) return reason;
  VIDEOAR_CUDA_DISPATCH(p.shape.dtype, resample, p, cudaStream_t(stream));
}
const char* launch_pyramid_resample_backward(const ResampleBackwardParams& p, void* stream) {
  if (empty(p.shape)) return nullptr;
  if (const char* reason = unfit(p.shape)) return reason;
  VIDEOAR_CUDA_DISPATCH(p.shape.dtype, resample_backward, p, cudaStream_t(stream));
}
const char* launch_pyramid_encode_backward(const EncodeBackwardLaunch& p, void* stream) {
  if (empty(p.params.shape)) return nullptr;
  if (const char* reason = unfit(p.params.shape)) return reason;
  VIDEOAR_CUDA_DISPATCH(p.params.shape.dtype, encode_backward, p, cudaStream_t(stream));
}
const char* launch_pyramid_step(const StepParams& p, void* stream) {
  if (empty(p.shape)) return nullptr;
  if (const char* reason = unfit(p.shape)) return reason;
  VIDEOAR_CUDA_DISPATCH(p.shape.dtype, step, p, cudaStream_t(stream));
}

}  // namespace cuda
}  // namespace videoar
