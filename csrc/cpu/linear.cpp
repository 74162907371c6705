#include "linear.h"

#include "parallel.h"
#include "sweep.h"

namespace videoar {
namespace VIDEOAR_ISA {
namespace {

constexpr int kVectors = int(kPanelColumns) / kLanes<float>;  // of a panel's row

// Inputs are summed in blocks of kBlock, then the blocks: an order that depends on nothing but K, so that a row's bits
// are the same for any number of threads and in any batch. A panel's block (16 KB in bfloat16) stays in L1.
template <class W>
constexpr int64_t kBlock = sizeof(W) == 2 ? 512 : 256;

// Vectors that a register block may hold: its accumulators and one input's weights. A broadcast needs another.
constexpr int kHeld = kVectorBytes == 64 ? 28 : kVectorBytes == 32 ? 14 : 12;
constexpr int kRows = kVectorBytes == 16 ? 2 : 6;  // of a register block

// Rows of x that are widened at a time, and panels that one thread multiplies them by: x (512 inputs of 192 rows,
// 400 KB) and sums stay in L2.
constexpr int64_t kRowChunk = 192;
constexpr int64_t kPanelGroup = 4;

// x, widened: block after block of inputs, each a dense matrix of kBlock inputs a row. Rows are a cache line longer
// than that: at a power of two, the six of a register block would fall into one set of L1.
template <class W>
constexpr int64_t kXStride = kBlock<W> + 16;

struct Prefetch {
  const char* next;
  int64_t advance;  // bytes a step
};

// The weights of one input for P panels. Step k holds two inputs of bfloat16, of which this is the first or second.
template <int P>
using Weights = Vec<float>[P][kVectors];

template <int P>
inline void load_weights(const bf16* w, int64_t panel_stride, int second, const VecU32* high, Weights<P>& out) {
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
inline void load_weights(const float* w, int64_t panel_stride, int second, const VecU32*, Weights<P>& out) {
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      out[p][v] = load(w + p * panel_stride + second * kPanelColumns + v * kLanes<float>);
    }
  }
}

// sums[r][column] (+)= sum over 2 * `pairs` inputs of x[r] * w, for R rows and P panels, `panel_stride` weights apart.
template <int R, int P, class W>
inline void multiply(const float* x, const W* w, int64_t panel_stride, int64_t pairs, float* sums, int64_t sums_stride,
                     bool first, Prefetch prefetch) {
  Vec<float> acc[R][P][kVectors] = {};
  // Accumulators, weights and a broadcast take every register: the compiler must not keep the mask in one.
  const VecU32 mask = VecU32{} + 0xffff0000u, *high = &mask;
  __asm__("" : "+r"(high));
  for (int64_t i = 0; i < pairs; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      __builtin_prefetch(prefetch.next + p * panel_stride * int64_t(sizeof(W)), 0, 2);
    }
    prefetch.next += prefetch.advance;
#pragma GCC unroll 2
    for (int second = 0; second < 2; ++second) {
      Weights<P> weights;
      load_weights<P>(w, panel_stride, second, high, weights);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) acc[r][p][v] += x[r * kXStride<W> + second] * weights[p][v];
        }
      }
      // Keeping a pair for its second input would take registers from the accumulators; L1 has it.
      __asm__ volatile("" ::: "memory");
    }
    x += 2, w += 2 * kPanelColumns;
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
template <int P, int R = kRows, class W>
inline void multiply_rows(int rows, const float* x, const W* w, int64_t panel_stride, int64_t pairs, float* sums,
                          int64_t sums_stride, bool first, Prefetch prefetch) {
  if constexpr ((R + 1) * P * kVectors <= kHeld) {
    if (rows == R) return multiply<R, P>(x, w, panel_stride, pairs, sums, sums_stride, first, prefetch);
  }
  if constexpr (R > 1) multiply_rows<P, R - 1>(rows, x, w, panel_stride, pairs, sums, sums_stride, first, prefetch);
}

// How many panels a register block of `rows` rows takes at once.
inline int panels_at_once(int64_t rows, int64_t panels) {
  const int64_t most = kHeld / (kVectors * ((rows < kRows ? rows : kRows) + 1));
  const int64_t n = most < panels ? most : panels;
  return n >= 4 ? 4 : n >= 2 ? 2 : 1;
}

template <class W>
struct Operands {
  const float* x;  // widened, rows x in_features
  const W* packed;
  int64_t rows, inputs, panel_stride;  // inputs even; panel_stride in weights
};

// sums (rows, sums_stride) = x @ panels [first_panel, first_panel + panels).
template <class W>
void multiply_panels(const Operands<W>& o, int64_t first_panel, int64_t panels, float* sums, int64_t sums_stride) {
  const int64_t blocks = (o.rows + kRows - 1) / kRows;
  const int together = panels_at_once(o.rows, panels);
  for (int64_t k = 0; k < o.inputs; k += kBlock<W>) {
    const int64_t pairs = (o.inputs - k < kBlock<W> ? o.inputs - k : kBlock<W>) / 2;
    const float* x = o.x + k / kBlock<W> * o.rows * kXStride<W>;
    for (int64_t panel = 0, count; panel < panels; panel += count) {
      count = panels - panel >= together ? together : panels - panel >= 2 && together > 2 ? 2 : 1;
      const W* w = o.packed + (first_panel + panel) * o.panel_stride + k * kPanelColumns;
      // Every row block brings its share of what is multiplied next into L2.
      const int64_t after = panel + count < panels ? panel + count : k + kBlock<W> < o.inputs ? 0 : panels;
      const int64_t next_k = after > 0 && after < panels ? k : after == 0 ? k + kBlock<W> : 0;
      const W* next = o.packed + (first_panel + after) * o.panel_stride + next_k * kPanelColumns;
      const int64_t step = 2 * kPanelColumns * int64_t(sizeof(W));
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = o.rows * block / blocks, end = o.rows * (block + 1) / blocks;
        const Prefetch prefetch{(const char*)next + pairs * step * block / blocks, (step + blocks - 1) / blocks};
        const float* rows = x + row * kXStride<W>;
        float* to = sums + row * sums_stride + panel * kPanelColumns;
        const int n = int(end - row);
        if (count == 4) {
          multiply_rows<4>(n, rows, w, o.panel_stride, pairs, to, sums_stride, k == 0, prefetch);
        } else if (count == 2) {
          multiply_rows<2>(n, rows, w, o.panel_stride, pairs, to, sums_stride, k == 0, prefetch);
        } else {
          multiply_rows<1>(n, rows, w, o.panel_stride, pairs, to, sums_stride, k == 0, prefetch);
        }
      }
    }
  }
}

// x in float32, laid out for multiply(); the odd input that bfloat16 weights are filled up with is zero.
template <class T, class W>
void widen(const PackedLinearParams& p, int64_t first_row, int64_t rows, float* wide) {
  const int64_t blocks = (p.in_features + kBlock<W> - 1) / kBlock<W>;
  parallel_ranges(rows * blocks, rows * p.in_features * 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / rows, row = item % rows, k = block * kBlock<W>;
      const int64_t inputs = p.in_features - k < kBlock<W> ? p.in_features - k : kBlock<W>;
      const T* x = (const T*)p.x + (first_row + row) * p.x_stride + k;
      float* to = wide + item * kXStride<W>;
      sweep<float>(inputs, [&](int64_t i, int n) { store(to + i, load_upto(x + i, n)); });
      if (inputs % 2) to[inputs] = 0;
    }
  });
}

template <class T, class W>
void packed_linear_of(const PackedLinearParams& p) {
  const int64_t panels = (p.out_features + kPanelColumns - 1) / kPanelColumns;
  const int64_t blocks = (p.in_features + kBlock<W> - 1) / kBlock<W>;
  const int64_t inputs = (p.in_features + 1) / 2 * 2;
  const int64_t most = p.rows < kRowChunk ? p.rows : kRowChunk;
  const Scratch<float> wide(blocks * most * kXStride<W>);
  for (int64_t first_row = 0; first_row < p.rows; first_row += kRowChunk) {
    const int64_t rows = p.rows - first_row < kRowChunk ? p.rows - first_row : kRowChunk;
    widen<T, W>(p, first_row, rows, wide.data());
    const Operands<W> operands{wide.data(), (const W*)p.packed, rows, inputs, inputs * kPanelColumns};
    const int64_t groups = (panels + kPanelGroup - 1) / kPanelGroup;
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
void packed_linear_in(const PackedLinearParams& p) {
  p.weight_dtype == DType::bf16 ? packed_linear_of<T, bf16>(p) : packed_linear_of<T, float>(p);
}

void packed_linear(const PackedLinearParams& p) {
  if (p.dtype == DType::f32) packed_linear_in<float>(p);
  if (p.dtype == DType::bf16) packed_linear_in<bf16>(p);
  if (p.dtype == DType::f16) packed_linear_in<f16>(p);
}

template <class W>
void pack_of(const PackLinearParams& p) {
  const int64_t panels = (p.out_features + kPanelColumns - 1) / kPanelColumns, pairs = (p.in_features + 1) / 2;
  parallel_ranges(panels, p.out_features * p.in_features * int64_t(sizeof(W)), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      W* to = (W*)p.packed + panel * pairs * 2 * kPanelColumns;
      for (int64_t input = 0; input < 2 * pairs; ++input) {
        for (int64_t column = 0; column < kPanelColumns; ++column) {
          const int64_t output = panel * kPanelColumns + column, second = input % 2;
          const bool inside = output < p.out_features && input < p.in_features;
          const W value = inside ? ((const W*)p.weight)[output * p.row_stride + input * p.column_stride] : W{};
          to[(input - second) * kPanelColumns + (sizeof(W) == 2 ? 2 * column + second : second * kPanelColumns + column)] = value;
        }
      }
    }
  });
}

void pack_linear_weight(const PackLinearParams& p) { p.dtype == DType::bf16 ? pack_of<bf16>(p) : pack_of<float>(p); }

}  // namespace

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {pack_linear_weight, packed_linear};

}  // namespace VIDEOAR_ISA
}  // namespace videoar
