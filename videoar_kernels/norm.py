"""Modulated norms and gated activations.

    swiglu(gate, up) = gate * sigmoid(gate) * up

Source: SwiGLU, Shazeer 2020, Eq. 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Returns silu(gate) * up, computed in float32 (float64 for float64) and rounded once.

    Args:
        gate: (..., width), float32, bfloat16, float16 or float64.
        up: same shape and dtype.

    Returns:
        (..., width), dense, of the inputs' dtype.

    Raises:
        ValueError: shapes, dtypes or devices differ.

    Source: Shazeer 2020, Eq. 6. Saved for backward: gate and up.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype or gate.device != up.device:
        raise ValueError(
            f"swiglu: expected up like gate {tuple(gate.shape)} {gate.dtype} on {gate.device}, "
            f"got {tuple(up.shape)} {up.dtype} on {up.device}"
        )
    return ops.swiglu(gate, up)


def _save_swiglu(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _swiglu_gradients(ctx, grad_out):
    return ops.swiglu_backward(grad_out, *ctx.saved_tensors)


torch.library.register_autograd("videoar_kernels::swiglu", _swiglu_gradients, setup_context=_save_swiglu)


@torch.library.register_fake("videoar_kernels::swiglu")
def _(gate, up):
    return gate.new_empty(gate.shape)


@torch.library.register_fake("videoar_kernels::swiglu_backward")
def _(grad_out, gate, up):
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _reference_swiglu_backward(grad_out, gate, up):
    with torch.enable_grad():
        inputs = [gate.detach().requires_grad_(), up.detach().requires_grad_()]
        return torch.autograd.grad(reference.norm.swiglu(*inputs), inputs, grad_out)


register_fallback("swiglu", reference.norm.swiglu)
register_fallback("swiglu_backward", _reference_swiglu_backward)
