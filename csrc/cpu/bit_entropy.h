#pragma once

#include "bits.h"

namespace videoar {
namespace VIDEOAR_ISA {

void entropy(const EntropyParams& p);
void entropy_backward(const EntropyBackwardParams& p);

}  // namespace VIDEOAR_ISA
}  // namespace videoar
