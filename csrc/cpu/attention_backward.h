#pragma once

#include "attention.h"

namespace videoar {
namespace VIDEOAR_ISA {

void attention_backward(const AttentionBackwardParams& p);

}  // namespace VIDEOAR_ISA
}  // namespace videoar
