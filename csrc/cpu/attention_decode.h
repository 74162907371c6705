#pragma once

#include "attention.h"

namespace videoar {
namespace VIDEOAR_ISA {

constexpr int kDecodeQueries = 32;  // beyond, tiles of queries read keys from the nearest cache as well

// Forward for few queries against many keys; p.plan has one tile per sample.
void attention_decode(const AttentionParams& p);

}  // namespace VIDEOAR_ISA
}  // namespace videoar
