#pragma once

#include "attention.h"
#include "simd.h"

namespace videoar {
namespace VIDEOAR_ISA {

// Beyond, tiles of queries are quicker: with AVX2 the two meet between 48 and 64, in float32 and in bfloat16. Not
// measured on wider vectors.
#if defined(VIDEOAR_WIDE)
constexpr int kDecodeQueries = 32;
#else
constexpr int kDecodeQueries = 48;
#endif

// Forward for few queries against many keys; p.plan has one tile per sample.
void attention_decode(const AttentionParams& p);

}  // namespace VIDEOAR_ISA
}  // namespace videoar
