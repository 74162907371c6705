#include "rope.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "parallel.h"
#include "rotate.h"
#include "stream.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

// A streamed row must fit the writer's buffer and fill a cache line or more.
template <class T>
bool streams(const RopeParams& p) {
  const int64_t row = p.size.dim * int64_t(sizeof(T));
  return p.out != p.x && 64 <= row && row <= kPieceBytes &&
         outgrows_cache(p.size.batch * p.size.heads * p.size.length * row);
}

template <class T>
int64_t bytes_of(const RopeSizes& size) {
  return size.batch * size.heads * size.length * size.dim * int64_t(sizeof(T));
}

template <class T, bool kInterleaved>
void rope_items(const RopeParams& p, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const BlockAngles<A> angles(p.table, p.size.dim, kInterleaved && !kInPairs<T, kInterleaved>, p.size.length);
  StreamWriter<T> writer(streams<T>(p));
  each_head_block(begin, end, p.size, [&](int64_t first, int64_t tokens, int64_t sample, int64_t head, int64_t last) {
    angles.fill(sample, first, tokens);
    const T* x0 = (const T*)p.x + sample * p.x_stride.batch + head * p.x_stride.head + first * p.x_stride.token;
    T* out0 = (T*)p.out + sample * p.out_stride.batch + head * p.out_stride.head + first * p.out_stride.token;
    each_row(last - head, tokens, p.x_stride, [&](int64_t h, int64_t t) {
      prefetch_ahead(x0, h, t, last - head, tokens, p.size.dim, p.x_stride);
      T* out = out0 + h * p.out_stride.head + t * p.out_stride.token;
      rotate_row<T, kInterleaved>(angles.cosines(t), angles.sines(t), p.size.dim,
                                  x0 + h * p.x_stride.head + t * p.x_stride.token, writer.at(out), Unscaled{});
      writer.done(out, p.size.dim);
    });
  });
}

template <class T>
void rope(const RopeParams& p) {
  const int64_t items = rope_blocks(p.size.batch, p.size.length) * p.size.heads;
  parallel_ranges(items, 2 * bytes_of<T>(p.size), [&](int64_t begin, int64_t end) {
    p.interleaved ? rope_items<T, true>(p, begin, end) : rope_items<T, false>(p, begin, end);
  });
}

// The weights of every head as RowScale reads them.
template <class T, bool kInterleaved>
class HeadWeights {
  using A = Accumulator<T>;

 public:
  HeadWeights(const A* weight, int64_t heads, int64_t dim)
      : weight_(weight),
        odd_(padded<A>(dim / 2)),
        row_(dim),
        buffer_(kInPairs<T, kInterleaved> ? heads * 2 * odd_ : 0) {
    if constexpr (kInPairs<T, kInterleaved>) {
      std::memset(buffer_.data(), 0, size_t(heads * 2 * odd_) * sizeof(A));
      for (int64_t h = 0; h < heads; ++h) {
        A* even = buffer_.data() + h * 2 * odd_;
        for (int64_t i = 0; i < dim / 2; ++i) {
          even[i] = plain(weight[h * dim + 2 * i]);
          even[odd_ + i] = plain(weight[h * dim + 2 * i + 1]);
        }
      }
      weight_ = buffer_.data();
      row_ = 2 * odd_;
    }
  }

  // A NaN without a payload, for store_pairs.
  static A plain(A value) { return value == value ? value : std::numeric_limits<A>::quiet_NaN(); }

  RowScale<A> scale(int64_t head, A rstd) const { return {weight_ + head * row_, rstd, odd_}; }

 private:
  const A* weight_;
  int64_t odd_, row_;
  Scratch<A> buffer_;
};

// `begin` and `end` count blocks where a token's heads are normed together, else heads of blocks.
template <class T, bool kInterleaved>
void norm_rope_items(const NormRopeParams& p, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const RopeParams& r = p.rope;
  const RopeSizes& size = r.size;
  const int64_t dim = size.dim, per_block = p.full_width ? size.heads : 1;
  const BlockAngles<A> angles(r.table, dim, kInterleaved && !kInPairs<T, kInterleaved>, size.length);
  const HeadWeights<T, kInterleaved> weights((const A*)p.weight, p.full_width ? size.heads : 1, dim);
  StreamWriter<T> writer(streams<T>(r));
  constexpr int64_t kGroup = 16;
  A rstds[kRopeTokens];
  const auto finish = [&](int64_t rows, int64_t count) {
    for (int64_t i = 0; i < rows; ++i) rstds[i] = 1 / std::sqrt(rstds[i] / A(count) + A(p.eps));
  };
  each_head_block(begin * per_block, end * per_block, size,
                  [&](int64_t first, int64_t tokens, int64_t sample, int64_t head, int64_t last) {
                    angles.fill(sample, first, tokens);
                    const T* x0 = (const T*)r.x + sample * r.x_stride.batch + first * r.x_stride.token;
                    T* out0 = (T*)r.out + sample * r.out_stride.batch + first * r.out_stride.token;
                    const auto at = [&](int64_t h, int64_t t) {
                      return x0 + h * r.x_stride.head + t * r.x_stride.token;
                    };
                    const auto row = [&](int64_t h, int64_t t, A rstd) {
                      T* out = out0 + h * r.out_stride.head + t * r.out_stride.token;
                      if (!p.full_width) prefetch_ahead(at(head, 0), h - head, t, last - head, tokens, dim, r.x_stride);
                      rotate_row<T, kInterleaved>(angles.cosines(t), angles.sines(t), dim, at(h, t), writer.at(out),
                                                  weights.scale(p.full_width ? h : 0, rstd));
                      writer.done(out, dim);
                    };
                    if (p.full_width) {
                      for (int64_t t = 0; t < tokens; ++t) rstds[t] = 0;
                      each_row(size.heads, tokens, r.x_stride,
                               [&](int64_t h, int64_t t) { rstds[t] += sum_of_squares(at(h, t), dim); });
                      finish(tokens, size.heads * dim);
                      each_row(size.heads, tokens, r.x_stride, [&](int64_t h, int64_t t) { row(h, t, rstds[t]); });
                      return;
                    }
                    // Some rows' sums before the first rotation, so that the roots and divisions overlap.
                    if (r.x_stride.head > r.x_stride.token) {
                      for (int64_t h = head; h < last; ++h) {
                        for (int64_t from = 0; from < tokens; from += kGroup) {
                          const int64_t rows = tokens - from < kGroup ? tokens - from : kGroup;
                          for (int64_t t = 0; t < rows; ++t) rstds[t] = sum_of_squares(at(h, from + t), dim);
                          finish(rows, dim);
                          for (int64_t t = 0; t < rows; ++t) row(h, from + t, rstds[t]);
                        }
                      }
                      return;
                    }
                    for (int64_t t = 0; t < tokens; ++t) {
                      for (int64_t from = head; from < last; from += kGroup) {
                        const int64_t heads = last - from < kGroup ? last - from : kGroup;
                        for (int64_t h = 0; h < heads; ++h) rstds[h] = sum_of_squares(at(from + h, t), dim);
                        finish(heads, dim);
                        for (int64_t h = 0; h < heads; ++h) row(from + h, t, rstds[h]);
                      }
                    }
                  });
}

template <class T>
void norm_rope(const NormRopeParams& p) {
  const RopeSizes& size = p.rope.size;
  const int64_t items = rope_blocks(size.batch, size.length) * (p.full_width ? 1 : size.heads);
  parallel_ranges(items, 2 * bytes_of<T>(size), [&](int64_t begin, int64_t end) {
    p.rope.interleaved ? norm_rope_items<T, true>(p, begin, end) : norm_rope_items<T, false>(p, begin, end);
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
  const BlockAngles<A> angles(p.table, dim, kInterleaved, size.length);
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
