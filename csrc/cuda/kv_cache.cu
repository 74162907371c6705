#include "kv_cache.h"
#include "rotate.cuh"

namespace videoar {
namespace cuda {
namespace {

constexpr int kMoveThreads = 64, kPartTokens = 64;

struct KvLayers {
  KvLayer layer[kLaunchLayers];
};
struct KvTensors {
  KvMoved tensor[kLaunchMoved];
  int word[kLaunchMoved];  // bytes of an access
};
struct KvMoves {
  KvMove move[kLaunchMoves];
  int count;
};

// A block takes a few tokens, all heads of one layer: keys normed and rotated on the way, values as they are.
template <class T, class A, int kPack, int kUnits, bool kInterleaved>
__global__ void __launch_bounds__(kRopeThreads, sizeof(T) == 8 ? 2 : 3)
    append_kernel(const __grid_constant__ KvAppendLaunch p, const __grid_constant__ KvLayers layers) {
  __shared__ Angle<A> angles[kTokens * kRopeMaxDim / 2];
  const KvLayer& layer = layers.layer[blockIdx.y];
  const int dim = int(p.size.dim), half = dim / 2, heads = int(p.size.heads);
  const bool rotated = p.rotation.positions != nullptr;
  const int64_t tokens = p.size.batch * p.size.length, step = int64_t(gridDim.x) * kTokens;
  const Lanes at(dim, kPack, kUnits);
  const A* weight = (const A*)layer.weight;
  using Cells = HeadCells<T, A, kPack, kUnits, kInterleaved>;
  Cells x;
  typename Cells::Raw k, v;
  const HeadTurns turns(at);
  for (int64_t first = int64_t(blockIdx.x) * kTokens; first < tokens; first += step) {
    const int count = tokens - first < kTokens ? int(tokens - first) : kTokens;
    const bool token_present = turns.local < count;
    const int64_t number = first + (token_present ? turns.local : 0);
    const int64_t sample = number / p.size.length, token = number % p.size.length;
    const int64_t slot = kv_slot(p.start + token, p.sink, p.capacity);
    const auto place = [&](const RopeStrides& stride, int head, int64_t t) {
      return sample * stride.batch + head * stride.head + t * stride.token;
    };
    const auto load = [&](int head) {
      const bool present = token_present && head < heads;
      k.load((const T*)layer.k + place(layer.k_stride, present ? head : 0, token), at, half, present);
      v.load((const T*)layer.v + place(layer.v_stride, present ? head : 0, token), at, half, present);
    };
    load(turns.first);  // on its way while the angles are made
    if (rotated) fill_angles<kPack>(angles, p.rotation, first, count, p.size.length, half);
    __syncthreads();
    // All lanes of a warp come along to the last head.
    for (int base = 0; base < heads; base += turns.groups) {
      const int head = base + turns.first;
      const bool present = token_present && head < heads;
      x.take(k);
      if (present) v.store((T*)layer.v_cache + place(layer.v_cache_stride, head, slot), at, half);
      if (base + turns.groups < heads) load(head + turns.groups);
      if (weight != nullptr) {
        const A rstd = reciprocal_root(lanes_sum(x.squares(), at.lanes) / A(dim) + A(p.eps));
        x.scale(rstd, weight, at, half);
      }
      if (!present) continue;
      if (rotated) x.rotate(angles + turns.local * half, at);
      x.store((T*)layer.k_cache + place(layer.k_cache_stride, head, slot), at, half);
    }
    __syncthreads();
  }
}

template <class T>
bool layer_aligned(const KvLayer& l, const RopeSizes& block, int64_t capacity) {
  const RopeSizes cache = {block.batch, block.heads, capacity, block.dim};
  return aligned_to_16(l.weight) && packs_aligned<T>(l.k, block, l.k_stride) &&
         packs_aligned<T>(l.v, block, l.v_stride) && packs_aligned<T>(l.k_cache, cache, l.k_cache_stride) &&
         packs_aligned<T>(l.v_cache, cache, l.v_cache_stride);
}

template <class T>
const char* append(const KvAppendLaunch& p, cudaStream_t stream) {
  using A = Accumulator<T>;
  const unsigned groups = grid_of((p.size.batch * p.size.length + kTokens - 1) / kTokens);
  for (int64_t first = 0; first < p.layer_count; first += kLaunchLayers) {
    KvLayers layers{};
    const int64_t count = p.layer_count - first < kLaunchLayers ? p.layer_count - first : kLaunchLayers;
    bool aligned = true;
    for (int64_t i = 0; i < count; ++i) {
      layers.layer[i] = p.layers[first + i];
      aligned = aligned && layer_aligned<T>(layers.layer[i], p.size, p.capacity);
    }
    const dim3 grid(groups, unsigned(count));
    with_packs<T>(aligned, [&]<int kPack, int kUnits>() {
      if (p.rotation.interleaved) {
        VIDEOAR_LAUNCH(grid, kRopeThreads, stream, append_kernel<T, A, kPack, kUnits, true>)(p, layers);
      } else {
        VIDEOAR_LAUNCH(grid, kRopeThreads, stream, append_kernel<T, A, kPack, kUnits, false>)(p, layers);
      }
    });
  }
  return launch_error();
}

// A thread owns `Word` bytes of a head through all moves, so that nobody else writes what it has yet to read. Where
// `parts` is more than one, the order of moves does not matter, and each part of a move goes by itself.
template <class Word>
__device__ void move_tokens(const KvMoved& t, const KvMoves& moves, int parts) {
  constexpr int kAtOnce = 8;
  const int64_t words = t.row / int64_t(sizeof(Word)), items = t.batch * t.heads * words;
  const int64_t step = int64_t(gridDim.x) * kMoveThreads;
  for (int64_t item = int64_t(blockIdx.x) * kMoveThreads + threadIdx.x; item < items; item += step) {
    const int64_t head = item / words;
    char* at = (char*)t.data + head / t.heads * t.batch_stride + head % t.heads * t.head_stride +
               item % words * int64_t(sizeof(Word));
    for (int m = 0; m < moves.count; ++m) {
      const KvMove& move = moves.move[m];
      const int64_t begin = move.length * blockIdx.z / parts, end = move.length * (blockIdx.z + 1) / parts;
      // Towards newer slots the last token goes first.
      const bool up = move.target > move.source;
      const int64_t first = up ? move.length - 1 - begin : begin, stride = up ? -t.token_stride : t.token_stride;
      const char* from = at + (move.source + first) * t.token_stride;
      char* to = at + (move.target + first) * t.token_stride;
      int64_t left = end - begin;
      for (; left >= kAtOnce; left -= kAtOnce) {
        Word held[kAtOnce];
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) held[n] = *(const Word*)(from + n * stride);
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) *(Word*)(to + n * stride) = held[n];
        from += kAtOnce * stride;
        to += kAtOnce * stride;
      }
      for (; left > 0; --left, from += stride, to += stride) *(Word*)to = *(const Word*)from;
    }
  }
}

__global__ void __launch_bounds__(kMoveThreads)
    move_kernel(const __grid_constant__ KvTensors tensors, const __grid_constant__ KvMoves moves) {
  const KvMoved& t = tensors.tensor[blockIdx.y];
  switch (tensors.word[blockIdx.y]) {
    case 16: return move_tokens<Pack<uint32_t, 4>>(t, moves, int(gridDim.z));
    case 8: return move_tokens<Pack<uint32_t, 2>>(t, moves, int(gridDim.z));
    case 4: return move_tokens<uint32_t>(t, moves, int(gridDim.z));
    case 2: return move_tokens<uint16_t>(t, moves, int(gridDim.z));
    default: return move_tokens<uint8_t>(t, moves, int(gridDim.z));
  }
}

// The widest access that suits every token of a tensor.
int word_of(const KvMoved& t) {
  uint64_t all = uint64_t(t.data) | uint64_t(t.row) | uint64_t(t.token_stride);
  if (t.batch > 1) all |= uint64_t(t.batch_stride);
  if (t.heads > 1) all |= uint64_t(t.head_stride);
  int word = 16;
  while (all % unsigned(word) != 0) word /= 2;
  return word;
}

// Whether some move writes what it or another reads, or what another writes: then their order matters.
bool moves_meet(const KvMove* moves, int count) {
  const auto meet = [](int64_t a, int64_t length, int64_t b, int64_t other) { return a < b + other && b < a + length; };
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < count; ++j) {
      const KvMove &one = moves[i], &two = moves[j];
      if (meet(one.target, one.length, two.source, two.length)) return true;
      if (i != j && meet(one.target, one.length, two.target, two.length)) return true;
    }
  return false;
}

const char* move(const KvMoveParams& p, int64_t first_tensor, int64_t first_move, cudaStream_t stream) {
  KvTensors tensors{};
  KvMoves moves{};
  const auto some = [](int64_t left, int most) { return int(left < most ? left : most); };
  const int count = some(p.tensor_count - first_tensor, kLaunchMoved);
  moves.count = some(p.move_count - first_move, kLaunchMoves);
  int64_t longest = 0, words = 1;
  for (int m = 0; m < moves.count; ++m) {
    moves.move[m] = p.moves[first_move + m];
    longest = moves.move[m].length > longest ? moves.move[m].length : longest;
  }
  for (int i = 0; i < count; ++i) {
    const KvMoved& t = tensors.tensor[i] = p.tensors[first_tensor + i];
    tensors.word[i] = word_of(t);
    const int64_t its = t.batch * t.heads * t.row / tensors.word[i];
    words = its > words ? its : words;
  }
  const int64_t parts = moves_meet(moves.move, moves.count) ? 1 : (longest + kPartTokens - 1) / kPartTokens;
  const dim3 grid(grid_of((words + kMoveThreads - 1) / kMoveThreads), unsigned(count),
                  unsigned(parts < 1       ? 1
                           : parts < 65535 ? parts
                                           : 65535));
  VIDEOAR_LAUNCH(grid, kMoveThreads, stream, move_kernel)(tensors, moves);
  return launch_error();
}

}  // namespace

const char* launch_kv_move(const KvMoveParams& p, void* stream) {
  for (int64_t tensor = 0; tensor < p.tensor_count; tensor += kLaunchMoved)
    for (int64_t first = 0; first < p.move_count; first += kLaunchMoves)
      if (const char* error = move(p, tensor, first, cudaStream_t(stream))) return error;
  return nullptr;
}

const char* launch_kv_append(const KvAppendLaunch& p, void* stream) {
  if (p.size.batch * p.size.heads * p.size.length * p.size.dim == 0) return nullptr;
  if (p.size.dim > kRopeMaxDim || p.size.dim % 2) return "kv_cache_append: expected an even head_dim up to 256";
  VIDEOAR_CUDA_DISPATCH(p.dtype, append, p, cudaStream_t(stream));
}

}  // namespace cuda
}  // namespace videoar
