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

// The weights of every head as RowScale reads them.
template <class T, bool kInterleaved>
class HeadWeights {
  using A = Accumulator<T>;

 public:
  HeadWeights(const A* weight, int64_t heads, int64_t dim)
      : weight_(weight), part_(words_part<kInterleaved>(dim)), row_(dim), buffer_(kInWords<T> ? heads * 2 * part_ : 0) {
    if constexpr (kInWords<T>) {
      const int64_t half = dim / 2;
      std::memset(buffer_.data(), 0, size_t(heads * 2 * part_) * sizeof(A));
      for (int64_t h = 0; h < heads; ++h) {
        A* out = buffer_.data() + h * 2 * part_;
        for (int64_t i = 0; i < half; ++i) {
          out[i] = plain(weight[h * dim + (kInterleaved ? 2 * i : i)]);
          out[part_ + i] = plain(weight[h * dim + (kInterleaved ? 2 * i + 1 : half + i)]);
        }
        if constexpr (!kInterleaved) videoar::VIDEOAR_ISA::part(out, 2 * part_);
      }
      weight_ = buffer_.data();
      row_ = 2 * part_;
    }
  }

  const A* row(int64_t head) const { return weight_ + head * row_; }

 private:
  // A NaN without a payload, for store_pairs.
  static A plain(A value) { return value == value ? value : std::numeric_limits<A>::quiet_NaN(); }

  const A* weight_;
  int64_t part_, row_;
  Scratch<A> buffer_;
};

// Rows are worked on in groups: the next group is fetched meanwhile, the roots and divisions of a group overlap, and
// its output leaves in one piece.
constexpr int64_t kGroup = 16;

template <class A>
void finish_rstds(A* sums, int64_t rows, int64_t count, double eps) {
  for (int64_t i = 0; i < rows; ++i) sums[i] = 1 / std::sqrt(sums[i] / A(count) + A(eps));
}

// `begin` and `end` count blocks where a token's heads are normed together, else heads of blocks. `norm`: null to
// rotate only.
template <class T, bool kInterleaved, bool kNormed>
void rope_items(const RopeParams& p, const NormRopeParams* norm, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const RopeSizes& size = p.size;
  const int64_t dim = size.dim;
  const bool together = kNormed && norm->full_width;
  const BlockAngles<A, kParted<T, kInterleaved>> angles(p.table, dim, kSpread<T, kInterleaved>, size.length);
  const HeadWeights<T, kInterleaved> weights(kNormed ? (const A*)norm->weight : nullptr,
                                             kNormed ? (together ? size.heads : 1) : 0, dim);
  StreamWriter<T> writer(streams<T>(p));
  const int64_t fitting = kPieceBytes / (dim * int64_t(sizeof(T)));
  const int64_t group = writer.streams() && fitting < kGroup ? fitting : kGroup, per_block = together ? size.heads : 1;
  A token_rstds[kRopeTokens];
  each_head_block(
      begin * per_block, end * per_block, size,
      [&](int64_t first, int64_t tokens, int64_t sample, int64_t head, int64_t last) {
        angles.fill(sample, first, tokens);
        const T* x0 = (const T*)p.x + sample * p.x_stride.batch + head * p.x_stride.head + first * p.x_stride.token;
        T* out0 = (T*)p.out + sample * p.out_stride.batch + head * p.out_stride.head + first * p.out_stride.token;
        const BlockOrder order(last - head, tokens, p.x_stride);
        const int64_t x_step = order.step(p.x_stride), out_step = order.step(p.out_stride);
        const int64_t angle_step = order.heads_inside ? 0 : 2 * angles.row();
        if (together) {
          for (int64_t t = 0; t < tokens; ++t) token_rstds[t] = 0;
          each_row(size.heads, tokens, p.x_stride, [&](int64_t h, int64_t t) {
            token_rstds[t] += sum_of_squares(x0 + h * p.x_stride.head + t * p.x_stride.token, dim);
          });
          finish_rstds(token_rstds, tokens, size.heads * dim, norm->eps);
        }
        for (int64_t o = 0; o < order.outer; ++o) {
          for (int64_t i = 0, rows; i < order.inner; i += rows) {
            rows = order.inner - i < group ? order.inner - i : group;
            const T* x = x0 + order.at(p.x_stride, o, i);
            T* out = out0 + order.at(p.out_stride, o, i);
            T* to = writer.at(out);
            const int64_t to_step = writer.streams() ? dim : out_step;
            const bool ends = i + rows == order.inner, over = ends && o + 1 == order.outer;
            const T* next = over ? x : ends ? x0 + order.at(p.x_stride, o + 1, 0) : x + rows * x_step;
            const A* cosines = angles.cosines(order.heads_inside ? o : i);
            A group_rstds[kGroup] = {};
            if (kNormed && !together) {
              with_constant<T>(dim, [&](auto width) {
                for (int64_t r = 0; r < rows; ++r) group_rstds[r] = sum_of_squares(x + r * x_step, width);
              });
              finish_rstds(group_rstds, kGroup, dim, norm->eps);
            }
            const int64_t step = together && order.heads_inside ? 0 : 1;
            const A* rstds = together ? token_rstds + (order.heads_inside ? o : i) : group_rstds;
            const A* weight = weights.row(!together ? 0 : order.heads_inside ? i : o);
            const int64_t weight_step = weights.row(1 - step) - weights.row(0);
            with_constant<T>(dim, [&](auto width) {
              for (int64_t r = 0; r < rows; ++r) {
                prefetch_row(next + r * x_step, width);
                const A* c = cosines + r * angle_step;
                const auto turn = [&](const auto& scale) {
                  rotate_row<T, kInterleaved>(c, c + angles.row(), width, x + r * x_step, to + r * to_step, scale);
                };
                if constexpr (kNormed) {
                  turn(RowScale<A>{weight + r * weight_step, rstds[r * step]});
                } else {
                  turn(Unscaled{});
                }
              }
            });
            if (writer.streams()) writer.send(out, rows, dim, out_step);
          }
        }
      });
}

template <class T>
void rope(const RopeParams& p) {
  const int64_t items = rope_blocks(p.size.batch, p.size.length) * p.size.heads;
  parallel_ranges(items, 2 * bytes_of<T>(p.size), [&](int64_t begin, int64_t end) {
    p.interleaved ? rope_items<T, true, false>(p, nullptr, begin, end)
                  : rope_items<T, false, false>(p, nullptr, begin, end);
  });
}

template <class T>
void norm_rope(const NormRopeParams& p) {
  const RopeSizes& size = p.rope.size;
  const int64_t items = rope_blocks(size.batch, size.length) * (p.full_width ? 1 : size.heads);
  parallel_ranges(items, 2 * bytes_of<T>(size), [&](int64_t begin, int64_t end) {
    p.rope.interleaved ? rope_items<T, true, true>(p.rope, &p, begin, end)
                       : rope_items<T, false, true>(p.rope, &p, begin, end);
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
  if (p.full_width && size.heads == 0) return;
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
