"""Modulated norms, gated residual and gated activations.

    adaln_norm(x) = norm(x) * weight * (1 + scale) + shift,  norm(x) = x / sqrt(mean(x^2) + eps) or layer norm
    gated_residual(x, y, gate) = x + gate * y
    swiglu(gate, up) = gate * sigmoid(gate) * up

Source: adaptive norms of DiT (Peebles & Xie 2023, Sec. 3.2), as in Wan; SwiGLU, Shazeer 2020, Eq. 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into
from videoar_kernels.outputs import check_out

ELEMENT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def adaln_norm(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    kind: str = "rms",
    out: Tensor | None = None,
) -> Tensor:
    """Normalises every token and modulates it, in one pass and without expanding the modulation in memory.

    Computed in float32 (float64 for float64) and rounded once. Gradients of weight, scale and shift are summed in
    a fixed order: the same on every run and for every number of threads.

    Args:
        x: (B, L, C), float32, bfloat16, float16 or float64.
        scale: (C,), (B, 1, C), (B, F, C) with L a multiple of F (frame f covers tokens f * L / F on), or (B, L, C);
            B may be 1. x's dtype or float32. None: no scale.
        shift: the same forms.
        weight: (C,), any float dtype. None: ones.
        eps: added to the variance or mean square.
        kind: "rms", or "layer", which subtracts the mean first.
        out: where to write, at inference: like x, with a contiguous last dimension; x itself, or apart from all inputs.

    Returns:
        `out`, or a new dense tensor (B, L, C) of x's dtype.

    Raises:
        ValueError: shapes, devices or kind do not fit, or `out` cannot be written. TypeError: dtypes.

    Source: DiT, Sec. 3.2; Wan 2.1. Saved for backward: the arguments only.
    """
    if kind not in ("rms", "layer"):
        raise ValueError(f'adaln_norm: expected kind "rms" or "layer", got {kind!r}')

    def check():
        _check_tokens("adaln_norm", "x", x)
        _check_modulation("adaln_norm", "scale", x, scale)
        _check_modulation("adaln_norm", "shift", x, shift)
        if weight is not None and (weight.shape != x.shape[-1:] or weight.device != x.device):
            raise ValueError(
                f"adaln_norm: expected weight ({x.shape[-1]},) on {x.device}, "
                f"got {tuple(weight.shape)} on {weight.device}"
            )
        if out is not None:
            check_out("adaln_norm", "out", out, x, {"x": x}, {"scale": scale, "shift": shift, "weight": weight})

    layer = kind == "layer"
    if torch.is_grad_enabled() or not x.is_cpu:
        check()
        scale, shift, weight = _adaln_arguments(x, scale, shift, weight)
    if out is None:
        return run(ops.adaln_norm.default, check, x, scale, shift, weight, eps, layer)
    run_into(out, ops.adaln_norm_out.default, check, x, scale, shift, weight, eps, layer, out)
    return out


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Returns x + gate * y, computed in float32 (float64 for float64) and rounded once.

    Args:
        x: (B, L, C), float32, bfloat16, float16 or float64.
        y: x's shape and dtype.
        gate: a modulation as in `adaln_norm`.
        out: where to write, at inference: like x, with a contiguous last dimension; x or y, or apart from all inputs.

    Returns:
        `out`, or a new dense tensor (B, L, C) of x's dtype.

    Raises:
        ValueError: shapes or devices do not fit, or `out` cannot be written. TypeError: dtypes.

    Source: DiT, Sec. 3.2. Saved for backward: y and gate.
    """

    def check():
        _check_tokens("gated_residual", "x", x)
        if y.shape != x.shape or y.dtype != x.dtype or y.device != x.device:
            raise ValueError(
                f"gated_residual: expected y like x {tuple(x.shape)} {x.dtype} on {x.device}, "
                f"got {tuple(y.shape)} {y.dtype} on {y.device}"
            )
        _check_modulation("gated_residual", "gate", x, gate)
        if out is not None:
            check_out("gated_residual", "out", out, x, {"x": x, "y": y}, {"gate": gate})

    if torch.is_grad_enabled() or not x.is_cpu:
        check()
        gate = _expanded(x, gate)
    if out is None:
        return run(ops.gated_residual.default, check, x, y, gate)
    run_into(out, ops.gated_residual_out.default, check, x, y, gate, out)
    return out


def swiglu(gate: Tensor, up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Returns silu(gate) * up, computed in float32 (float64 for float64) and rounded once.

    Args:
        gate: (..., width), float32, bfloat16, float16 or float64.
        up: same shape and dtype.
        out: where to write, at inference: like gate, with a contiguous last dimension; gate or up, or apart from both.

    Returns:
        `out`, or a new dense tensor (..., width) of the inputs' dtype.

    Raises:
        ValueError: shapes, dtypes or devices differ, or `out` cannot be written.

    Source: Shazeer 2020, Eq. 6. Saved for backward: gate and up.
    """

    def check():
        if gate.dtype not in ELEMENT_DTYPES:
            raise TypeError(f"swiglu: expected gate of one of {ELEMENT_DTYPES}, got {gate.dtype}")
        if gate.ndim == 0 or gate.shape != up.shape or gate.dtype != up.dtype or gate.device != up.device:
            raise ValueError(
                f"swiglu: expected up like gate {tuple(gate.shape)} {gate.dtype} on {gate.device}, "
                f"got {tuple(up.shape)} {up.dtype} on {up.device}"
            )
        if out is not None:
            check_out("swiglu", "out", out, gate, {"gate": gate, "up": up})

    if out is None:
        return run(ops.swiglu.default, check, gate, up)
    run_into(out, ops.swiglu_out.default, check, gate, up, out)
    return out


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check_tokens(op: str, name: str, x: Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"{op}: expected {name} (batch, length, width), got {tuple(x.shape)}")
    if x.dtype not in ELEMENT_DTYPES:
        raise TypeError(f"{op}: expected one of {ELEMENT_DTYPES}, got {x.dtype}")


def _check_modulation(op: str, name: str, x: Tensor, m: Tensor | None) -> None:
    if m is None:
        return
    batch, length, width = x.shape
    fits = m.shape == (width,) or (m.ndim == 3 and m.shape[0] in (1, batch) and m.shape[2] == width and m.shape[1] > 0)
    if not fits or (m.ndim == 3 and length % m.shape[1]) or m.device != x.device:
        raise ValueError(
            f"{op}: expected {name} ({width},) or ({batch}, frames, {width}) with frames dividing {length} "
            f"on {x.device}, got {tuple(m.shape)} on {m.device}"
        )
    if m.dtype not in ELEMENT_DTYPES:
        raise TypeError(f"{op}: expected {name} of one of {ELEMENT_DTYPES}, got {m.dtype}")


def _expanded(x: Tensor, m: Tensor | None) -> Tensor | None:
    """Returns a modulation as a view (B, F, C) in a dtype that kernels take; autograd sums over what it repeats."""
    if m is None:
        return None
    if m.dtype != x.dtype:
        m = m.to(_wide(x))
    return m.expand(x.shape[0], -1 if m.ndim == 3 else 1, x.shape[2])


def _adaln_arguments(x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None):
    """Returns scale, shift and weight as the backward kernel wants them, by operations that autograd knows."""
    scale, shift, weight = _expanded(x, scale), _expanded(x, shift), None if weight is None else weight.to(_wide(x))
    if scale is not None and shift is not None:
        if scale.dtype != shift.dtype:
            scale, shift = scale.to(_wide(x)), shift.to(_wide(x))
        if scale.shape[1] % shift.shape[1] and shift.shape[1] % scale.shape[1]:
            # The kernel wants nested groups of tokens; frames that do not nest are rare enough to expand.
            shift = shift.repeat_interleave(x.shape[1] // shift.shape[1], dim=1)
    return scale, shift, weight


def _save_adaln_norm(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _adaln_norm_gradients(ctx, grad_out):
    grads = ops.adaln_norm_backward(grad_out, *ctx.saved_tensors, *ctx.options)
    present = (g if t is not None else None for g, t in zip(grads, ctx.saved_tensors, strict=True))
    return *present, None, None


def _save_gated_residual(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def _gated_residual_gradients(ctx, grad_out):
    return grad_out, *ops.gated_residual_backward(grad_out, *ctx.saved_tensors)


def _save_swiglu(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _swiglu_gradients(ctx, grad_out):
    return ops.swiglu_backward(grad_out, *ctx.saved_tensors)


torch.library.register_autograd("videoar_kernels::adaln_norm", _adaln_norm_gradients, setup_context=_save_adaln_norm)
torch.library.register_autograd(
    "videoar_kernels::gated_residual", _gated_residual_gradients, setup_context=_save_gated_residual
)
torch.library.register_autograd("videoar_kernels::swiglu", _swiglu_gradients, setup_context=_save_swiglu)


@register_fake("videoar_kernels::adaln_norm")
def _(x, scale, shift, weight, eps, layer):
    return x.new_empty(x.shape)


@register_fake("videoar_kernels::adaln_norm_backward")
def _(grad_out, x, scale, shift, weight, eps, layer):
    others = (x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (scale, shift, weight))
    return x.new_empty(x.shape), *others


@register_fake("videoar_kernels::gated_residual")
def _(x, y, gate):
    return x.new_empty(x.shape)


@register_fake("videoar_kernels::gated_residual_backward")
def _(grad_out, y, gate):
    return y.new_empty(y.shape), gate.new_empty(gate.shape)


@register_fake("videoar_kernels::swiglu")
def _(gate, up):
    return gate.new_empty(gate.shape)


@register_fake("videoar_kernels::swiglu_backward")
def _(grad_out, gate, up):
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


@register_fake("videoar_kernels::adaln_norm_out")
def _(x, scale, shift, weight, eps, layer, out):
    return None


@register_fake("videoar_kernels::gated_residual_out")
def _(x, y, gate, out):
    return None


@register_fake("videoar_kernels::swiglu_out")
def _(gate, up, out):
    return None


def _into_out(op):
    """The `out` form of an operator that has none on this device."""

    def function(*arguments):
        *inputs, out = arguments
        out.copy_(op(*inputs))

    return function


def _reference_adaln_norm(x, scale, shift, weight, eps, layer):
    kind = "layer" if layer else "rms"
    return reference.norm.adaln_norm(x, scale, shift, weight=weight, eps=eps, kind=kind)


def _gradients(function, inputs, grad_out):
    """Gradients of `function` by autograd; no elements for an absent input."""
    with torch.enable_grad():
        inputs = [t if t is None else t.detach().requires_grad_() for t in inputs]
        present = [t for t in inputs if t is not None]
        grads = iter(torch.autograd.grad(function(*inputs), present, grad_out))
        return tuple(grad_out.new_empty(0) if t is None else next(grads) for t in inputs)


register_fallback("adaln_norm", _reference_adaln_norm)
register_fallback(
    "adaln_norm_backward",
    lambda grad_out, x, scale, shift, weight, eps, layer: _gradients(
        lambda *inputs: _reference_adaln_norm(*inputs, eps, layer), (x, scale, shift, weight), grad_out
    ),
)
register_fallback("gated_residual", reference.norm.gated_residual)
register_fallback(
    "gated_residual_backward",
    lambda grad_out, y, gate: _gradients(
        lambda y, gate: reference.norm.gated_residual(torch.zeros_like(y), y, gate), (y, gate), grad_out
    ),
)
register_fallback("swiglu", reference.norm.swiglu)
register_fallback(
    "swiglu_backward",
    lambda grad_out, gate, up: _gradients(reference.norm.swiglu, (gate, up), grad_out),
)
for _name in ("adaln_norm", "gated_residual", "swiglu"):
    register_fallback(f"{_name}_out", _into_out(getattr(ops, _name)))
