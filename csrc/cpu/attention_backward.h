#pragma once

#include "attention.h"
#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {

// Keys of a tile: two register blocks where vectors are short, so that a row of grad_q is fetched half as often.
template <class A>
constexpr int kBackwardTile = (sizeof(A) == 8       ? 1
                               : kVectorBytes == 64 ? 3
                                                    : 6) *
                              kLanes<A>;

void attention_backward(const AttentionBackwardParams& p);

}  // namespace VIDEOAR_ISA
}  // namespace videoar
