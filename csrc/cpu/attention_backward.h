#pragma once

#include "attention.h"
#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {

// Keys of a tile, by storage type: two register blocks where vectors are short, so that a row of grad_q is fetched half
// as often.
template <class T>
constexpr int kBackwardTile = sizeof(T) == 8 ? kLanes<double> : (kVectorBytes == 64 ? 3 : 6) * kLanes<float>;
#if defined(VIDEOAR_BF16_DOT)
template <>
constexpr int kBackwardTile<bf16> = 4 * kLanes<float>;
void attention_backward_pairs(const AttentionBackwardParams& p);
#endif

void attention_backward(const AttentionBackwardParams& p);

}  // namespace VIDEOAR_ISA
}  // namespace videoar
