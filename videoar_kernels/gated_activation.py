"""Gated activation.

    swiglu(gate, up) = gate * sigmoid(gate) * up

Source: SwiGLU, Shazeer 2020, Eq. 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.argument_types import check_tensor
from videoar_kernels.fallback import gradients_of, into_out, register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into
from videoar_kernels.outputs import check_out

ELEMENT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_swiglu, _swiglu_out = ops.swiglu.default, ops.swiglu_out.default


def swiglu(gate: Tensor, up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Returns silu(gate) * up, computed in float32 (float64 for float64) and rounded once.

    Args:
        gate: (..., width), float32, bfloat16, float16 or float64.
        up: same shape and dtype.
        out: where to write, at inference: like gate, with a contiguous last dimension; gate or up, or apart from both.

    Returns:
        `out`, or a new dense tensor (..., width) of the inputs' dtype.

    Raises:
        ValueError: shapes, dtypes or devices differ, or `out` cannot be written. TypeError: an unsupported dtype.

    Source: Shazeer 2020, Eq. 6. Saved for backward: gate and up.
    """
    inputs = gate, up
    if out is None:
        return run(_swiglu, lambda: _check(inputs, None), gate, up)
    run_into(out, _swiglu_out, lambda: _check(inputs, out), gate, up, out)
    return out


def _check(inputs: tuple[Tensor, Tensor], out: Tensor | None) -> None:
    gate, up = inputs
    check_tensor("swiglu", "gate", gate)
    check_tensor("swiglu", "up", up)
    if gate.dtype not in ELEMENT_DTYPES:
        raise TypeError(f"swiglu: expected gate of one of {ELEMENT_DTYPES}, got {gate.dtype}")
    if gate.ndim == 0:
        raise ValueError("swiglu: expected gate (..., width) of one dimension at least, got ()")
    if gate.shape != up.shape or gate.dtype != up.dtype or gate.device != up.device:
        raise ValueError(
            f"swiglu: expected up like gate {tuple(gate.shape)} {gate.dtype} on {gate.device}, "
            f"got {tuple(up.shape)} {up.dtype} on {up.device}"
        )
    if out is not None:
        check_out("swiglu", "out", out, gate, {"gate": gate, "up": up})


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_out):
    return ops.swiglu_backward(grad_out, *ctx.saved_tensors)


torch.library.register_autograd("videoar_kernels::swiglu", _gradients, setup_context=_save)


@register_fake("videoar_kernels::swiglu")
def _(gate, up):
    return gate.new_empty(gate.shape)


@register_fake("videoar_kernels::swiglu_backward")
def _(grad_out, gate, up):
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


@register_fake("videoar_kernels::swiglu_out")
def _(gate, up, out):
    return None


register_fallback("swiglu", reference.norm.swiglu)
register_fallback(
    "swiglu_backward", lambda grad_out, gate, up: gradients_of(reference.norm.swiglu, (gate, up), grad_out)
)
register_fallback("swiglu_out", into_out(ops.swiglu))
