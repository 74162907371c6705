// The kernels of the table norm_kernels, each for every dtype.
#pragma once

#include "norm.h"

namespace videoar {
namespace VIDEOAR_ISA {

void adaln_norm(const AdalnParams& p);
void adaln_norm_backward(const AdalnBackwardParams& p);
void gated_residual(const GatedResidualParams& p);
void gated_residual_backward(const GatedResidualBackwardParams& p);
void swiglu(const SwigluParams& p);
void swiglu_backward(const SwigluBackwardParams& p);

}  // namespace VIDEOAR_ISA
}  // namespace videoar
