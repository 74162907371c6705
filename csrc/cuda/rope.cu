#include "reduce.cuh"
#include "rotate.cuh"

namespace videoar {
namespace cuda {
namespace {

// Where token `token`, counted through all samples, begins.
__device__ inline int64_t token_offset(const RopeStrides& stride, int64_t token, int64_t length) {
  return token / length * stride.batch + token % length * stride.token;
}

// f(first, count) for the groups of tokens that a block takes from [begin, end).
template <class F>
__device__ inline void each_token_group(int64_t begin, int64_t end, int64_t step, const F& f) {
  for (int64_t first = begin; first < end; first += step) f(first, end - first < kTokens ? int(end - first) : kTokens);
}

// f(local, head, present) for every head of `count` tokens; all lanes of a warp come along to the last.
template <class F>
__device__ inline void each_head(const Lanes& at, int count, int heads, const F& f) {
  const int rows = count * heads, groups = at.groups();
  for (int base = 0; base < rows; base += groups) {
    const int row = base + at.group();
    const bool present = row < rows;
    f(present ? row / heads : 0, present ? row % heads : 0, present);
  }
}

template <class T, class A, int kPack, int kUnits, bool kInterleaved>
__global__ void __launch_bounds__(kRopeThreads, sizeof(T) == 8 ? 2 : 3)
    heads_kernel(const __grid_constant__ HeadsParams p) {
  __shared__ Angle<A> angles[kTokens * kRopeMaxDim / 2];
  __shared__ A squares[kTokens * kFullWidthHeads];
  const int dim = int(p.size.dim), half = dim / 2, heads = int(p.size.heads);
  const int64_t tokens = p.size.batch * p.size.length, step = int64_t(gridDim.x) * kTokens;
  const Lanes at(dim, kPack, kUnits);
  const A* weight = (const A*)p.weight;
  const bool full_width = weight != nullptr && p.full_width;
  const HeadTurns turns(at);
  using Cells = HeadCells<T, A, kPack, kUnits, kInterleaved>;
  each_token_group(int64_t(blockIdx.x) * kTokens, tokens, step, [&](int64_t first, int count) {
    const auto head_of = [&](int local, int head) {
      return (const T*)p.x + token_offset(p.x_stride, first + local, p.size.length) + head * p.x_stride.head;
    };
    const bool token_present = turns.local < count;
    const int local = token_present ? turns.local : 0;
    Cells x;
    typename Cells::Raw next;
    const auto load_next = [&](int head) {
      const bool present = token_present && head < heads;
      next.load(head_of(local, present ? head : 0), at, half, present);
    };
    load_next(turns.first);  // on its way while the angles are made
    fill_angles<kPack>(angles, p.rotation, first, count, p.size.length, half);
    if (full_width) {
      each_head(at, count, heads, [&](int token, int head, bool present) {
        x.load(head_of(token, head), at, half, present);
        const A sum = lanes_sum(x.squares(), at.lanes);
        if (present && at.lane == 0) squares[token * heads + head] = sum;
      });
    }
    __syncthreads();
    A token_sum = A(0);
    for (int h = 0; full_width && h < heads; ++h) token_sum += squares[local * heads + h];
    // All lanes of a warp come along to the last head.
    for (int base = 0; base < heads; base += turns.groups) {
      const int head = base + turns.first;
      const bool present = token_present && head < heads;
      x.take(next);
      if (base + turns.groups < heads) load_next(head + turns.groups);
      if (weight != nullptr) {
        const A sum = full_width ? token_sum : lanes_sum(x.squares(), at.lanes);
        const A rstd = reciprocal_root(sum / A(full_width ? heads * dim : dim) + A(p.eps));
        x.scale(rstd, weight + (full_width && present ? head * dim : 0), at, half);
      }
      if (!present) continue;
      x.rotate(angles + local * half, at);
      T* out = (T*)p.out + token_offset(p.out_stride, first + local, p.size.length) + head * p.out_stride.head;
      x.store(out, at, half);
    }
    __syncthreads();
  });
}

// With xhat = x * rstd and h = R^-1(grad_out) * weight: grad_x = rstd * (h - xhat * mean(h * xhat)), grad_weight = sum
// of R^-1(grad_out) * xhat. A block sums over a chunk of tokens.
template <class T, class A, int kPack, int kUnits, bool kInterleaved>
__global__ void __launch_bounds__(kRopeThreads, 2)
    heads_backward_kernel(const __grid_constant__ HeadsBackwardParams p) {
  constexpr int kCells = kUnits * 2 * kPack;
  __shared__ Angle<A> angles[kTokens * kRopeMaxDim / 2];
  __shared__ A shared_sums[2 * kTokens * kFullWidthHeads];
  const int dim = int(p.size.dim), half = dim / 2, heads = int(p.size.heads);
  const int64_t tokens = p.size.batch * p.size.length;
  const int64_t groups = (tokens + kTokens - 1) / kTokens, chunk = blockIdx.x, chunks = gridDim.x;
  const int64_t begin = groups * chunk / chunks * kTokens, last = groups * (chunk + 1) / chunks * kTokens;
  const Lanes at(dim, kPack, kUnits);
  const A* weight = (const A*)p.weight;
  using Cells = HeadCells<T, A, kPack, kUnits, kInterleaved>;
  const int weights = p.full_width ? heads * dim : dim;
  A* partial = (A*)p.partial + chunk * weights;
  for (int i = int(threadIdx.x); i < weights; i += kRopeThreads) partial[i] = A(0);
  A sums[kUnits][2 * kPack] = {};
  Cells x, grad;
  each_token_group(begin, last < tokens ? last : tokens, kTokens, [&](int64_t first, int count) {
    fill_angles<kPack>(angles, p.rotation, first, count, p.size.length, half);
    __syncthreads();
    // Loads a head and its gradient, rotated back.
    const auto load = [&](int local, int head, bool present) {
      const int64_t token = first + local;
      x.load((const T*)p.x + token_offset(p.x_stride, token, p.size.length) + head * p.x_stride.head, at, half,
             present);
      grad.load(
          (const T*)p.grad_out + token_offset(p.grad_out_stride, token, p.size.length) + head * p.grad_out_stride.head,
          at, half, present);
      grad.rotate(angles + local * half, at);
    };
    const auto products = [&](const A* w) {
      A sum = A(0);
      Cells::each_unit(at, [&](int i, int u) {
#pragma unroll
        for (int j = 0; j < 2 * kPack; ++j) sum += grad.value[i][j] * w[Cells::element(u, j, half)] * x.value[i][j];
      });
      return sum;
    };
    const auto finish = [&](int local, int head, A squares, A product, int width, const A* w, bool present) {
      const A rstd = reciprocal_root(squares / A(width) + A(p.eps)), mean = product * rstd / A(width);
      if (!present) return;
      Cells::each_unit(at, [&](int i, int u) {
#pragma unroll
        for (int j = 0; j < 2 * kPack; ++j) {
          const A xhat = x.value[i][j] * rstd, g = grad.value[i][j];
          sums[i][j] += g * xhat;
          x.value[i][j] = rstd * (g * w[Cells::element(u, j, half)] - xhat * mean);
        }
      });
      T* out = (T*)p.grad_x + token_offset(p.grad_x_stride, first + local, p.size.length) + head * p.grad_x_stride.head;
      x.store(out, at, half);
    };
    if (!p.full_width) {
      each_head(at, count, heads, [&](int local, int head, bool present) {
        load(local, head, present);
        const A squares = lanes_sum(x.squares(), at.lanes), product = lanes_sum(products(weight), at.lanes);
        finish(local, head, squares, product, dim, weight, present);
      });
    } else {
      A* head_products = shared_sums + kTokens * kFullWidthHeads;
      each_head(at, count, heads, [&](int local, int head, bool present) {
        load(local, head, present);
        const A squares = lanes_sum(x.squares(), at.lanes);
        const A product = lanes_sum(products(weight + head * dim), at.lanes);
        if (!present || at.lane != 0) return;
        shared_sums[local * heads + head] = squares;
        head_products[local * heads + head] = product;
      });
      __syncthreads();
      // A head keeps its lanes through all tokens, so that its part of `partial` has one writer.
      for (int head = at.group(); head < heads; head += at.groups()) {
#pragma unroll
        for (int i = 0; i < kCells; ++i) sums[i / (2 * kPack)][i % (2 * kPack)] = A(0);
        for (int local = 0; local < count; ++local) {
          A squares = A(0), product = A(0);
          for (int h = 0; h < heads; ++h) {
            squares += shared_sums[local * heads + h];
            product += head_products[local * heads + h];
          }
          load(local, head, true);
          finish(local, head, squares, product, heads * dim, weight + head * dim, true);
        }
        Cells::each_unit(at, [&](int i, int u) {
#pragma unroll
          for (int j = 0; j < 2 * kPack; ++j) partial[head * dim + Cells::element(u, j, half)] += sums[i][j];
        });
      }
    }
    __syncthreads();
  });
  if (p.full_width) return;
  // Every group of lanes has summed its own heads: added up in the order of groups.
  for (int group = 0; group < at.groups(); ++group) {
    if (at.group() == group) {
      Cells::each_unit(at, [&](int i, int u) {
#pragma unroll
        for (int j = 0; j < 2 * kPack; ++j) partial[Cells::element(u, j, half)] += sums[i][j];
      });
    }
    __syncthreads();
  }
}

const char* unfit(const RopeSizes& size, bool full_width) {
  if (size.dim > kRopeMaxDim) return "rope: head_dim above 256";
  if (size.heads > 1 << 20) return "rope: more than 2^20 heads";
  if (full_width && size.heads > kFullWidthHeads) return "qk_norm_rope: a full-width norm over more than 256 heads";
  return nullptr;
}

template <class T>
const char* heads(const HeadsParams& p, cudaStream_t stream) {
  using A = Accumulator<T>;
  const int64_t groups = (p.size.batch * p.size.length + kTokens - 1) / kTokens;
  const bool aligned = packs_aligned<T>(p.x, p.size, p.x_stride) && packs_aligned<T>(p.out, p.size, p.out_stride) &&
                       aligned_to_16(p.weight);
  with_packs<T>(aligned, [&]<int kPack, int kUnits>() {
    if (p.rotation.interleaved) {
      VIDEOAR_LAUNCH(grid_of(groups), kRopeThreads, stream, heads_kernel<T, A, kPack, kUnits, true>)(p);
    } else {
      VIDEOAR_LAUNCH(grid_of(groups), kRopeThreads, stream, heads_kernel<T, A, kPack, kUnits, false>)(p);
    }
  });
  return launch_error();
}

template <class T>
const char* heads_backward(const HeadsBackwardParams& p, cudaStream_t stream) {
  using A = Accumulator<T>;
  const int64_t chunks = heads_chunks(p.size), weights = p.size.dim * (p.full_width ? p.size.heads : 1);
  const bool aligned = packs_aligned<T>(p.x, p.size, p.x_stride) &&
                       packs_aligned<T>(p.grad_out, p.size, p.grad_out_stride) &&
                       packs_aligned<T>(p.grad_x, p.size, p.grad_x_stride);
  if (weights == 0) return nullptr;
  with_packs<T>(aligned, [&]<int kPack, int kUnits>() {
    if (chunks == 0) return;
    if (p.rotation.interleaved) {
      VIDEOAR_LAUNCH(unsigned(chunks), kRopeThreads, stream, heads_backward_kernel<T, A, kPack, kUnits, true>)(p);
    } else {
      VIDEOAR_LAUNCH(unsigned(chunks), kRopeThreads, stream, heads_backward_kernel<T, A, kPack, kUnits, false>)(p);
    }
  });
  add_partials((const A*)p.partial, weights, 1, chunks, weights, (A*)p.grad_weight, stream);
  return launch_error();
}

}  // namespace

const char* launch_heads(const HeadsParams& p, void* stream) {
  if (p.size.batch * p.size.heads * p.size.length * p.size.dim == 0) return nullptr;
  if (const char* reason = unfit(p.size, p.full_width)) return reason;
  VIDEOAR_CUDA_DISPATCH(p.dtype, heads, p, cudaStream_t(stream));
}

const char* launch_heads_backward(const HeadsBackwardParams& p, void* stream) {
  if (const char* reason = unfit(p.size, p.full_width)) return reason;
  VIDEOAR_CUDA_DISPATCH(p.dtype, heads_backward, p, cudaStream_t(stream));
}

}  // namespace cuda
}  // namespace videoar
