#include "rope.h"

#include <cmath>
#include <cstring>

#include "parallel.h"
#include "rotate.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

template <class T, bool kInterleaved>
void rope_blocks_of(const RopeParams& p, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const BlockAngles<A> angles(p.table, p.size.dim, kInterleaved);
  each_block(begin, end, p.size.length, [&](int64_t first, int64_t tokens, int64_t sample) {
    angles.fill(sample, first, tokens);
    const T* x0 = (const T*)p.x + sample * p.x_stride.batch + first * p.x_stride.token;
    T* out0 = (T*)p.out + sample * p.out_stride.batch + first * p.out_stride.token;
    each_row(p.size.heads, tokens, p.x_stride, [&](int64_t h, int64_t t) {
      const T* x = x0 + h * p.x_stride.head + t * p.x_stride.token;
      T* out = out0 + h * p.out_stride.head + t * p.out_stride.token;
      rotate<A, kInterleaved>(
          angles.cosines(t), angles.sines(t), p.size.dim, [&](int64_t i, int n) { return load_upto(x + i, n); },
          [&](int64_t i, Vec<A> v, int n) { store_upto(out + i, v, n); });
    });
  });
}

template <class T>
void rope(const RopeParams& p) {
  const int64_t bytes = p.size.batch * p.size.heads * p.size.length * p.size.dim * 2 * int64_t(sizeof(T));
  parallel_ranges(rope_blocks(p.size.batch, p.size.length), bytes, [&](int64_t begin, int64_t end) {
    p.interleaved ? rope_blocks_of<T, true>(p, begin, end) : rope_blocks_of<T, false>(p, begin, end);
  });
}

template <class T, bool kInterleaved>
void norm_rope_blocks_of(const NormRopeParams& p, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const RopeParams& r = p.rope;
  const RopeSizes& size = r.size;
  const BlockAngles<A> angles(r.table, size.dim, kInterleaved);
  A full_rstd[kRopeTokens];
  each_block(begin, end, size.length, [&](int64_t first, int64_t tokens, int64_t sample) {
    angles.fill(sample, first, tokens);
    const T* x0 = (const T*)r.x + sample * r.x_stride.batch + first * r.x_stride.token;
    T* out0 = (T*)r.out + sample * r.out_stride.batch + first * r.out_stride.token;
    if (p.full_width) {
      for (int64_t t = 0; t < tokens; ++t) full_rstd[t] = 0;
      each_row(size.heads, tokens, r.x_stride, [&](int64_t h, int64_t t) {
        full_rstd[t] += sum_of_squares(x0 + h * r.x_stride.head + t * r.x_stride.token, size.dim);
      });
      for (int64_t t = 0; t < tokens; ++t) {
        full_rstd[t] = 1 / std::sqrt(full_rstd[t] / A(size.heads * size.dim) + A(p.eps));
      }
    }
    each_row(size.heads, tokens, r.x_stride, [&](int64_t h, int64_t t) {
      const T* x = x0 + h * r.x_stride.head + t * r.x_stride.token;
      T* out = out0 + h * r.out_stride.head + t * r.out_stride.token;
      const A* weight = (const A*)p.weight + (p.full_width ? h * size.dim : 0);
      const A rstd = p.full_width ? full_rstd[t] : 1 / std::sqrt(sum_of_squares(x, size.dim) / A(size.dim) + A(p.eps));
      rotate<A, kInterleaved>(
          angles.cosines(t), angles.sines(t), size.dim,
          [&](int64_t i, int n) { return load_upto(x + i, n) * rstd * load_upto(weight + i, n); },
          [&](int64_t i, Vec<A> v, int n) { store_upto(out + i, v, n); });
    });
  });
}

template <class T>
void norm_rope(const NormRopeParams& p) {
  const RopeSizes& size = p.rope.size;
  const int64_t bytes = size.batch * size.heads * size.length * size.dim * 2 * int64_t(sizeof(T));
  parallel_ranges(rope_blocks(size.batch, size.length), bytes, [&](int64_t begin, int64_t end) {
    p.rope.interleaved ? norm_rope_blocks_of<T, true>(p, begin, end) : norm_rope_blocks_of<T, false>(p, begin, end);
  });
}

// With z the normed and weighted input and dz = R^-1 grad_out:
//   grad_weight = sum dz * xhat,  grad_x = rstd * (dz * weight - xhat * mean(dz * weight * xhat)).
template <class T, bool kInterleaved>
void norm_rope_backward_blocks_of(const NormRopeBackwardParams& p, int64_t begin, int64_t end,
                                  Accumulator<T>* grad_weight) {
  using A = Accumulator<T>;
  const RopeSizes& size = p.size;
  const int64_t dim = size.dim, group = p.full_width ? size.heads : 1, row = padded<A>(dim);
  const BlockAngles<A> angles(p.table, dim, kInterleaved);
  const Scratch<A> buffer(group * row);

  // Heads [head, head + group) of one token are normed together.
  const auto one = [&](const T* grad, const T* x, T* grad_x, int64_t t) {
    Vec<A> squares{}, products{};
    for (int64_t h = 0; h < group; ++h) {
      const T* g = grad + h * p.grad_out_stride.head;
      const T* v = x + h * p.x_stride.head;
      const A* weight = (const A*)p.weight + h * dim;
      A* dz = buffer.data() + h * row;
      rotate<A, kInterleaved>(
          angles.cosines(t), angles.sines(t), dim, [&](int64_t i, int n) { return load_upto(g + i, n); },
          [&](int64_t i, Vec<A> d, int n) {
            const Vec<A> value = load_upto(v + i, n);
            store_upto(dz + i, d, n);
            squares += value * value;
            products += d * load_upto(weight + i, n) * value;
          });
    }
    const A count = A(group * dim), rstd = 1 / std::sqrt(reduce_add<A>(squares) / count + A(p.eps));
    const A slope = reduce_add<A>(products) * rstd / count;
    for (int64_t h = 0; h < group; ++h) {
      const T* v = x + h * p.x_stride.head;
      T* out = grad_x + h * p.grad_x_stride.head;
      const A* weight = (const A*)p.weight + h * dim;
      const A* dz = buffer.data() + h * row;
      A* sum = grad_weight + h * dim;
      sweep<A>(dim, [&](int64_t i, int n) {
        const Vec<A> d = load_upto(dz + i, n), xhat = load_upto(v + i, n) * rstd;
        store_upto(sum + i, load_upto(sum + i, n) + d * xhat, n);
        store_upto(out + i, rstd * (d * load_upto(weight + i, n) - xhat * slope), n);
      });
    }
  };

  each_block(begin, end, size.length, [&](int64_t first, int64_t tokens, int64_t sample) {
    angles.fill(sample, first, tokens);
    const T* grad = (const T*)p.grad_out + sample * p.grad_out_stride.batch + first * p.grad_out_stride.token;
    const T* x = (const T*)p.x + sample * p.x_stride.batch + first * p.x_stride.token;
    T* grad_x = (T*)p.grad_x + sample * p.grad_x_stride.batch + first * p.grad_x_stride.token;
    each_row(size.heads / group, tokens, p.x_stride, [&](int64_t h, int64_t t) {
      one(grad + h * p.grad_out_stride.head + t * p.grad_out_stride.token,
          x + h * p.x_stride.head + t * p.x_stride.token, grad_x + h * p.grad_x_stride.head + t * p.grad_x_stride.token,
          t);
    });
  });
}

template <class T>
void norm_rope_backward(const NormRopeBackwardParams& p) {
  using A = Accumulator<T>;
  const RopeSizes& size = p.size;
  const int64_t width = (p.full_width ? size.heads : 1) * size.dim;
  const int64_t chunks = rope_chunks(size.batch, size.length), blocks = rope_blocks(size.batch, size.length);
  const int64_t bytes = size.batch * size.heads * size.length * size.dim * 3 * int64_t(sizeof(T));
  parallel_ranges(chunks, bytes, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      A* partial = (A*)p.partial + chunk * width;
      std::memset(partial, 0, size_t(width) * sizeof(A));
      const int64_t from = blocks * chunk / chunks, to = blocks * (chunk + 1) / chunks;
      p.interleaved ? norm_rope_backward_blocks_of<T, true>(p, from, to, partial)
                    : norm_rope_backward_blocks_of<T, false>(p, from, to, partial);
    }
  });
  A* total = (A*)p.grad_weight;
  for (int64_t i = 0; i < width; ++i) total[i] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const A* partial = (const A*)p.partial + chunk * width;
    for (int64_t i = 0; i < width; ++i) total[i] += partial[i];
  }
}

void rope_any(const RopeParams& p) { VIDEOAR_DISPATCH(p.dtype, rope, p) }
void norm_rope_any(const NormRopeParams& p) { VIDEOAR_DISPATCH(p.rope.dtype, norm_rope, p) }
void norm_rope_backward_any(const NormRopeBackwardParams& p) { VIDEOAR_DISPATCH(p.dtype, norm_rope_backward, p) }

}  // namespace

const RopeKernels rope_kernels = {rope_any, norm_rope_any, norm_rope_backward_any};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
