"""Modulated norms and gated residual.

    adaln_norm(x) = norm(x) * weight * (1 + scale) + shift,  norm(x) = x / sqrt(mean(x^2) + eps) or layer norm
    gated_residual(x, y, gate) = x + gate * y

Source: adaptive norms of DiT (Peebles & Xie 2023, Sec. 3.2), as in Wan.
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
_adaln_norm, _adaln_norm_out = ops.adaln_norm.default, ops.adaln_norm_out.default
_gated_residual, _gated_residual_out = ops.gated_residual.default, ops.gated_residual_out.default


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
        eps: added to the variance or mean square, at least 0.
        kind: "rms", or "layer", which subtracts the mean first.
        out: where to write, at inference: like x, with a contiguous last dimension; x itself, or apart from all inputs.

    Returns:
        `out`, or a new dense tensor (B, L, C) of x's dtype.

    Raises:
        ValueError: shapes, devices, kind or eps do not fit, or `out` cannot be written. TypeError: dtypes.

    Source: DiT, Sec. 3.2; Wan 2.1. Saved for backward: the arguments only.
    """
    if kind not in ("rms", "layer"):
        raise ValueError(f'adaln_norm: expected kind "rms" or "layer", got {kind!r}')
    layer = kind == "layer"
    inputs = x, scale, shift, weight, eps
    if out is None:
        return run(_adaln_norm, lambda: _check_adaln(inputs, None), x, scale, shift, weight, eps, layer)
    run_into(out, _adaln_norm_out, lambda: _check_adaln(inputs, out), *inputs, layer, out)
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
    inputs = x, y, gate
    if out is None:
        return run(_gated_residual, lambda: _check_gated(inputs, None), x, y, gate)
    run_into(out, _gated_residual_out, lambda: _check_gated(inputs, out), *inputs, out)
    return out


def _check_adaln(inputs: tuple, out: Tensor | None) -> None:
    x, scale, shift, weight, eps = inputs
    _check_tokens("adaln_norm", "x", x)
    for name, m in (("scale", scale), ("shift", shift)):
        if m is not None:
            _check_modulation("adaln_norm", name, x, m)
    if weight is not None:
        check_tensor("adaln_norm", "weight", weight)
    if weight is not None and (weight.shape != x.shape[-1:] or weight.device != x.device):
        raise ValueError(
            f"adaln_norm: expected weight ({x.shape[-1]},) on {x.device}, got {tuple(weight.shape)} on {weight.device}"
        )
    if weight is not None and weight.dtype not in ELEMENT_DTYPES:
        raise TypeError(f"adaln_norm: expected weight of one of {ELEMENT_DTYPES}, got {weight.dtype}")
    if not 0 <= eps < torch.inf:
        raise ValueError(f"adaln_norm: expected a finite eps >= 0, got {eps}")
    if out is not None:
        check_out("adaln_norm", "out", out, x, {"x": x}, {"scale": scale, "shift": shift, "weight": weight})


def _check_gated(inputs: tuple, out: Tensor | None) -> None:
    x, y, gate = inputs
    _check_tokens("gated_residual", "x", x)
    check_tensor("gated_residual", "y", y)
    if y.shape != x.shape or y.dtype != x.dtype or y.device != x.device:
        raise ValueError(
            f"gated_residual: expected y like x {tuple(x.shape)} {x.dtype} on {x.device}, "
            f"got {tuple(y.shape)} {y.dtype} on {y.device}"
        )
    _check_modulation("gated_residual", "gate", x, gate)
    if out is not None:
        check_out("gated_residual", "out", out, x, {"x": x, "y": y}, {"gate": gate})


def _check_tokens(op: str, name: str, x: Tensor) -> None:
    check_tensor(op, name, x)
    if x.ndim != 3:
        raise ValueError(f"{op}: expected {name} (batch, length, width), got {tuple(x.shape)}")
    if x.dtype not in ELEMENT_DTYPES:
        raise TypeError(f"{op}: expected one of {ELEMENT_DTYPES}, got {x.dtype}")


def _check_modulation(op: str, name: str, x: Tensor, m: Tensor) -> None:
    check_tensor(op, name, m)
    batch, length, width = x.shape
    fits = m.shape == (width,) or (m.ndim == 3 and m.shape[0] in (1, batch) and m.shape[2] == width and m.shape[1] > 0)
    if not fits or (m.ndim == 3 and length % m.shape[1]) or m.device != x.device:
        raise ValueError(
            f"{op}: expected {name} ({width},) or ({batch}, frames, {width}) with frames dividing {length} "
            f"on {x.device}, got {tuple(m.shape)} on {m.device}"
        )
    if m.dtype not in ELEMENT_DTYPES:
        raise TypeError(f"{op}: expected {name} of one of {ELEMENT_DTYPES}, got {m.dtype}")


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _expanded(x: Tensor, m: Tensor) -> Tensor:
    """Returns a modulation as a view (B, F, C) in a dtype that kernels take."""
    m = m if m.dtype == x.dtype else m.to(_wide(x))
    return m.expand(x.shape[0], -1 if m.ndim == 3 else 1, x.shape[2])


def _collected(grad: Tensor, m: Tensor | None) -> Tensor | None:
    """Returns the gradient of a modulation, given that of its expanded form."""
    if m is None:
        return None
    frames = m.shape[1] if m.ndim == 3 else 1
    if grad.shape[1] != frames:
        grad = grad.unflatten(1, (frames, -1)).sum(2)
    return grad.sum_to_size(m.shape).to(m.dtype)


def _save_adaln_norm(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _adaln_norm_gradients(ctx, grad_out):
    x, scale, shift, weight = ctx.saved_tensors
    a, b = (None if m is None else _expanded(x, m) for m in (scale, shift))
    if a is not None and b is not None:
        if a.dtype != b.dtype:
            a, b = a.to(_wide(x)), b.to(_wide(x))
        if x.shape[1] and a.shape[1] % b.shape[1] and b.shape[1] % a.shape[1]:
            # The kernel wants nested groups of tokens; frames that do not nest are rare enough to expand.
            b = b.repeat_interleave(x.shape[1] // b.shape[1], dim=1)
    w = None if weight is None else weight.to(_wide(x))
    grad_x, grad_scale, grad_shift, grad_weight = ops.adaln_norm_backward(grad_out, x, a, b, w, *ctx.options)
    grad_weight = None if weight is None else grad_weight.to(weight.dtype)
    return grad_x, _collected(grad_scale, scale), _collected(grad_shift, shift), grad_weight, None, None


def _save_gated_residual(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def _gated_residual_gradients(ctx, grad_out):
    y, gate = ctx.saved_tensors
    grad_y, grad_gate = ops.gated_residual_backward(grad_out, y, _expanded(y, gate))
    return grad_out, grad_y, _collected(grad_gate, gate)


torch.library.register_autograd("videoar_kernels::adaln_norm", _adaln_norm_gradients, setup_context=_save_adaln_norm)
torch.library.register_autograd(
    "videoar_kernels::gated_residual", _gated_residual_gradients, setup_context=_save_gated_residual
)


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


@register_fake("videoar_kernels::adaln_norm_out")
def _(x, scale, shift, weight, eps, layer, out):
    return None


@register_fake("videoar_kernels::gated_residual_out")
def _(x, y, gate, out):
    return None


def _reference_adaln_norm(x, scale, shift, weight, eps, layer):
    kind = "layer" if layer else "rms"
    return reference.norm.adaln_norm(x, scale, shift, weight=weight, eps=eps, kind=kind)


register_fallback("adaln_norm", _reference_adaln_norm)
register_fallback(
    "adaln_norm_backward",
    lambda grad_out, x, scale, shift, weight, eps, layer: gradients_of(
        lambda *inputs: _reference_adaln_norm(*inputs, eps, layer), (x, scale, shift, weight), grad_out
    ),
)
register_fallback("gated_residual", reference.norm.gated_residual)
register_fallback(
    "gated_residual_backward",
    lambda grad_out, y, gate: gradients_of(
        lambda y, gate: reference.norm.gated_residual(torch.zeros_like(y), y, gate), (y, gate), grad_out
    ),
)
for _name in ("adaln_norm", "gated_residual"):
    register_fallback(f"{_name}_out", into_out(getattr(ops, _name)))
