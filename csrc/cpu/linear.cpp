#include "linear.h"

#include "parallel.h"
#include "sweep.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

constexpr int kVectors = int(kPanelColumns) / kLanes<float>;  // of one input's weights in a panel

// Vectors that a register block may hold: its accumulators and one input's weights. A broadcast needs another.
constexpr int kHeld = kVectorBytes == 64 ? 28 : kVectorBytes == 32 ? 14 : 12;
constexpr int kRows = kVectorBytes == 16 ? 2 : 6;  // of a register block

// Inputs are summed in blocks, then the blocks: an order that depends on nothing but K, so that a row's bits are the
// same for any number of threads and in any batch. The blocks of a register block's panels stay in L1 (16 or 32 KB).
template <class W>
constexpr int64_t kBlock = (kVectorBytes == 64 ? 512 : 1024) / int64_t(sizeof(W));

// Rows of x that are prepared at a time, and panels that one task multiplies them by: both and the sums stay in L2.
constexpr int64_t kRowChunk = 192;
constexpr int64_t kPanelGroup = 4;

// x as multiply() reads it: float, or pairs of bfloat16 in a uint32_t. Block after block of inputs, each a dense matrix
// whose rows are a cache line longer than the block: at a power of two, the rows of a register block would all fall
// into one set of L1.
typedef uint32_t BF16Pair;
template <class X>
constexpr int kPerPair = 2;
template <>
constexpr int kPerPair<BF16Pair> = 1;
template <class X, class W>
constexpr int64_t kXStride = kBlock<W> / 2 * kPerPair<X> + 16;

template <int P>
using PanelVectors = Vec<float>[P][kVectors];

// The weights of one input, the first or second of its pair, for P panels `panel_stride` weights apart.
template <int P>
inline void load_weights(const bf16* w, int64_t panel_stride, int second, const VecU32* high, PanelVectors<P>& out) {
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      VecU32 pair;
      std::memcpy(&pair, w + p * panel_stride + v * 2 * kLanes<float>, sizeof pair);
      out[p][v] = (Vec<float>)(second ? pair & *high : pair << 16);
    }
  }
}

template <int P>
inline void load_weights(const float* w, int64_t panel_stride, int second, const VecU32*, PanelVectors<P>& out) {
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      out[p][v] = load(w + p * panel_stride + second * kPanelColumns + v * kLanes<float>);
    }
  }
}

// acc += one pair of inputs of R rows times its weights.
template <int R, int P, class W>
inline void add_pair(const float* x, const W* w, int64_t panel_stride, const VecU32* high, PanelVectors<P> (&acc)[R]) {
#pragma GCC unroll 2
  for (int second = 0; second < 2; ++second) {
    PanelVectors<P> weights;
    load_weights<P>(w, panel_stride, second, high, weights);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[r][p][v] += x[r * kXStride<float, W> + second] * weights[p][v];
      }
    }
    // Keeping the pair for its second input would take registers from the accumulators; L1 has it.
    __asm__ volatile("" ::: "memory");
  }
}

#if defined(VIDEOAR_BF16_DOT)
template <int R, int P>
inline void add_pair(const BF16Pair* x, const bf16* w, int64_t panel_stride, const VecU32*, PanelVectors<P> (&acc)[R]) {
  VecU32 weights[P][kVectors];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      std::memcpy(&weights[p][v], w + p * panel_stride + v * 2 * kLanes<float>, sizeof weights[p][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const VecU32 both = VecU32{} + x[r * kXStride<BF16Pair, bf16>];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[r][p][v] = dot_pairs(acc[r][p][v], both, weights[p][v]);
    }
  }
}
#endif

struct Prefetch {
  const char* next;
  int64_t advance;  // bytes a pair of inputs
};

// sums[r][column] (+)= the products of `pairs` pairs of inputs, for R rows and P panels.
template <int R, int P, class X, class W>
inline void multiply(const X* x, const W* w, int64_t panel_stride, int64_t pairs, float* sums, int64_t sums_stride,
                     bool first, Prefetch prefetch) {
  PanelVectors<P> acc[R] = {};
  // Accumulators, weights and a broadcast take every register: the compiler must not keep the mask in one.
  const VecU32 mask = VecU32{} + 0xffff0000u, *high = &mask;
  __asm__("" : "+r"(high));
  for (int64_t i = 0; i < pairs; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      __builtin_prefetch(prefetch.next + p * panel_stride * int64_t(sizeof(W)), 0, 2);
    }
    prefetch.next += prefetch.advance;
    add_pair<R, P>(x, w, panel_stride, high, acc);
    x += kPerPair<X>, w += 2 * kPanelColumns;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* sum = sums + r * sums_stride + p * kPanelColumns + v * kLanes<float>;
        store(sum, first ? acc[r][p][v] : load(sum) + acc[r][p][v]);
      }
    }
  }
}

// Calls multiply<rows, P>.
template <int P, int R = kRows, class X, class W>
inline void multiply_rows(int rows, const X* x, const W* w, int64_t panel_stride, int64_t pairs, float* sums,
                          int64_t sums_stride, bool first, Prefetch prefetch) {
  if constexpr ((R + 1) * P * kVectors <= kHeld) {
    if (rows == R) return multiply<R, P>(x, w, panel_stride, pairs, sums, sums_stride, first, prefetch);
  }
  if constexpr (R > 1) multiply_rows<P, R - 1>(rows, x, w, panel_stride, pairs, sums, sums_stride, first, prefetch);
}

template <class X, class W>
struct Operands {
  const X* x;
  const W* packed;
  int64_t rows, inputs, panel_stride;  // inputs even; panel_stride in weights
};

// Panels that register blocks of up to `rows` rows can take at once.
inline int64_t panels_at_once(int64_t rows) {
  const int64_t most = kHeld / (kVectors * ((rows < kRows ? rows : kRows) + 1));
  return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// sums (rows, sums_stride) = x @ panels [first_panel, first_panel + panels).
template <class X, class W>
void multiply_panels(const Operands<X, W>& o, int64_t first_panel, int64_t panels, float* sums, int64_t sums_stride) {
  const int64_t blocks = (o.rows + kRows - 1) / kRows, together = panels_at_once(o.rows);
  constexpr int64_t kStep = 2 * kPanelColumns * int64_t(sizeof(W));
  for (int64_t k = 0; k == 0 || k < o.inputs; k += kBlock<W>) {  // once without inputs too: the sums are zero then
    const int64_t pairs = (o.inputs - k < kBlock<W> ? o.inputs - k : kBlock<W>) / 2;
    const X* x = o.x + k / kBlock<W> * o.rows * kXStride<X, W>;
    for (int64_t panel = 0, count; panel < panels; panel += count) {
      count = panels - panel >= together ? together : panels - panel >= 2 && together > 2 ? 2 : 1;
      const W* w = o.packed + (first_panel + panel) * o.panel_stride + k * kPanelColumns;
      // Every register block brings its share of the weights that come next into L2.
      const bool same_k = panel + count < panels, end = !same_k && k + kBlock<W> >= o.inputs;
      const int64_t next_panel = first_panel + (same_k ? panel + count : end ? panels : 0);
      const int64_t next_k = same_k ? k : end ? 0 : k + kBlock<W>;
      const char* next = (const char*)(o.packed + next_panel * o.panel_stride + next_k * kPanelColumns);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = o.rows * block / blocks;
        const int rows = int(o.rows * (block + 1) / blocks - row);
        const Prefetch prefetch{next + pairs * kStep * block / blocks, (kStep + blocks - 1) / blocks};
        const X* from = x + row * kXStride<X, W>;
        float* to = sums + row * sums_stride + panel * kPanelColumns;
        if (count == 4) {
          multiply_rows<4>(rows, from, w, o.panel_stride, pairs, to, sums_stride, k == 0, prefetch);
        } else if (count == 2) {
          multiply_rows<2>(rows, from, w, o.panel_stride, pairs, to, sums_stride, k == 0, prefetch);
        } else {
          multiply_rows<1>(rows, from, w, o.panel_stride, pairs, to, sums_stride, k == 0, prefetch);
        }
      }
    }
  }
}

// A row's block of x for multiply(); the input that an odd number is filled up with is zero.
template <class T>
inline void prepare_x(const T* x, int64_t inputs, float* out) {
  sweep<float>(inputs, [&](int64_t i, int n) { store_upto(out + i, load_upto(x + i, n), n); });
  if (inputs % 2) out[inputs] = 0;
}

inline void prepare_x(const bf16* x, int64_t inputs, BF16Pair* out) {
  out[(inputs - 1) / 2] = 0;
  std::memcpy(out, x, size_t(inputs) * sizeof(bf16));
}

template <class T, class X, class W>
void packed_linear_by(const PackedLinearParams& p) {
  const int64_t inputs = (p.in_features + 1) / 2 * 2, blocks = (inputs + kBlock<W> - 1) / kBlock<W>;
  const int64_t panels = (p.out_features + kPanelColumns - 1) / kPanelColumns;
  const int64_t groups = (panels + kPanelGroup - 1) / kPanelGroup;
  const Scratch<X> x(blocks * (p.rows < kRowChunk ? p.rows : kRowChunk) * kXStride<X, W>);
  for (int64_t first_row = 0; first_row < p.rows; first_row += kRowChunk) {
    const int64_t rows = p.rows - first_row < kRowChunk ? p.rows - first_row : kRowChunk;
    parallel_ranges(blocks * rows, rows * inputs * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t k = item / rows * kBlock<W>, left = p.in_features - k;
        const T* from = (const T*)p.x + (first_row + item % rows) * p.x_stride + k;
        prepare_x(from, left < kBlock<W> ? left : kBlock<W>, x.data() + item * kXStride<X, W>);
      }
    });
    const Operands<X, W> operands{x.data(), (const W*)p.packed, rows, inputs, inputs * kPanelColumns};
    const int64_t work = inputs * panels * kPanelColumns * (int64_t(sizeof(W)) + rows / 8);
    parallel_items(groups, work, [&](int64_t group) {
      const int64_t panel = group * kPanelGroup, count = panels - panel < kPanelGroup ? panels - panel : kPanelGroup;
      const Scratch<float> sums(rows * kPanelGroup * kPanelColumns);
      multiply_panels(operands, panel, count, sums.data(), kPanelGroup * kPanelColumns);
      const int64_t column = panel * kPanelColumns, left = p.out_features - column;
      const int64_t columns = left < count * kPanelColumns ? left : count * kPanelColumns;
      for (int64_t row = 0; row < rows; ++row) {
        const float* sum = sums.data() + row * kPanelGroup * kPanelColumns;
        T* out = (T*)p.out + (first_row + row) * p.out_stride + column;
        sweep<float>(columns, [&](int64_t i, int n) {
          Vec<float> y = load(sum + i);
          if (p.bias != nullptr) y += load_upto(p.bias + column + i, n);
          store_upto(out + i, y, n);
        });
      }
    });
  }
}

template <class T>
void packed_linear_of(const PackedLinearParams& p) {
  p.weight_dtype == DType::bf16 ? packed_linear_by<T, float, bf16>(p) : packed_linear_by<T, float, float>(p);
}

#if defined(VIDEOAR_BF16_DOT)
template <>
void packed_linear_of<bf16>(const PackedLinearParams& p) {
  p.weight_dtype == DType::bf16 ? packed_linear_by<bf16, BF16Pair, bf16>(p) : packed_linear_by<bf16, float, float>(p);
}
#endif

void packed_linear(const PackedLinearParams& p) {
  switch (p.dtype) {
    case DType::f32: return packed_linear_of<float>(p);
    case DType::bf16: return packed_linear_of<bf16>(p);
    case DType::f16: return packed_linear_of<f16>(p);
    case DType::f64: return;  // the binding refuses it
  }
}

template <class W>
void pack_of(const PackLinearParams& p) {
  const int64_t panels = (p.out_features + kPanelColumns - 1) / kPanelColumns, pairs = (p.in_features + 1) / 2;
  // From one input, and from one column, to the next inside a pair.
  constexpr int64_t kInput = sizeof(W) == 2 ? 1 : kPanelColumns, kColumn = sizeof(W) == 2 ? 2 : 1;
  parallel_ranges(panels, p.out_features * p.in_features * int64_t(sizeof(W)), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      W* to = (W*)p.packed + panel * pairs * 2 * kPanelColumns;
      for (int64_t input = 0; input < 2 * pairs; ++input) {
        for (int64_t column = 0; column < kPanelColumns; ++column) {
          const int64_t output = panel * kPanelColumns + column;
          const bool inside = output < p.out_features && input < p.in_features;
          to[input / 2 * 2 * kPanelColumns + input % 2 * kInput + column * kColumn] =
              inside ? ((const W*)p.weight)[output * p.row_stride + input * p.column_stride] : W{};
        }
      }
    }
  });
}

void pack_linear_weight(const PackLinearParams& p) { p.dtype == DType::bf16 ? pack_of<bf16>(p) : pack_of<float>(p); }

}  // namespace

const LinearKernels linear_kernels = {pack_linear_weight, packed_linear};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
