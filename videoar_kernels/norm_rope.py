"""The RMS norm of queries and keys and their rotary position embedding, in one pass.

    qk_norm_rope(x) = rope_3d(x / sqrt(mean(x^2) + eps) * weight), the mean over a head or over all heads of a token

Source: paper U's backbone (Wan 2.1) and LLaMA-style query-key norm; the rotation is that of `videoar_kernels.rope`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.argument_types import check_tensor
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into
from videoar_kernels.outputs import check_out
from videoar_kernels.rope import ELEMENT_DTYPES, check_rotation


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    positions: Tensor,
    *,
    eps: float = 1e-6,
    dims: Sequence[int] | None = None,
    theta: float = 10000.0,
    interleaved: bool = True,
    full_width: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """RMS-normalises queries and keys and rotates them, in one pass over each.

    Everything is computed in float32 (float64 for float64) and rounded once. The gradients of the weights are
    summed in a fixed order: the same on every run and for every number of threads.

    Args:
        q: (B, Hq, L, D), float32, bfloat16, float16 or float64.
        k: (B, Hk, L, D), q's dtype.
        q_weight: (D,), one for all heads, or with full_width (Hq * D,), head by head; any float dtype; None: ones.
        k_weight: the same for k.
        positions: (L, 3) or (B, L, 3), as in `rope_3d`.
        eps: added to the mean square, at least 0.
        dims, theta, interleaved: as in `rope_3d`.
        full_width: the mean square is taken over all heads of a token together, as Wan does.
        out: where to write q's and k's results, at inference: like q and k, with contiguous last dimensions; (q, k)
            works in place, anything else must be apart from the inputs.

    Returns:
        q and k normed and rotated: `out`, or new dense tensors of their dtype.

    Raises:
        ValueError: shapes, dims, theta or eps do not fit, or `out` cannot be written. TypeError: dtypes.

    Source: paper U's backbone (Wan 2.1) and LLaMA-style query-key norm. Saved for backward: all tensor arguments.
    """

    inputs = q, k, q_weight, k_weight, positions, eps, dims, theta, interleaved, full_width
    if out is None:
        return run(ops.qk_norm_rope.default, lambda: _check(inputs, None), *inputs)
    run_into(out, ops.qk_norm_rope_out.default, lambda: _check(inputs, out), *inputs, *out)
    return out


def _check(inputs: tuple, out: tuple[Tensor, Tensor] | None) -> None:
    q, k, q_weight, k_weight, positions, eps, dims, theta, _, full_width = inputs
    check_tensor("qk_norm_rope", "q", q)
    check_rotation("qk_norm_rope", q, positions, dims, theta)
    check_tensor("qk_norm_rope", "k", k)
    if k.shape[:1] + k.shape[2:] != q.shape[:1] + q.shape[2:] or k.ndim != 4:
        expected = f"({q.shape[0]}, *, {q.shape[2]}, {q.shape[3]})"
        raise ValueError(f"qk_norm_rope: expected k of shape {expected}, got {tuple(k.shape)}")
    if k.dtype != q.dtype or k.device != q.device:
        raise TypeError(f"qk_norm_rope: expected k {q.dtype} on {q.device}, got {k.dtype} on {k.device}")
    _check_weight("q_weight", q, q_weight, full_width)
    _check_weight("k_weight", k, k_weight, full_width)
    if not 0 <= eps < torch.inf:
        raise ValueError(f"qk_norm_rope: expected a finite eps >= 0, got {eps}")
    if out is not None:
        _check_outs(out, q, k, {"q_weight": q_weight, "k_weight": k_weight, "positions": positions})


def _check_weight(name: str, x: Tensor, weight: Tensor | None, full_width: bool) -> None:
    width = x.shape[1] * x.shape[3] if full_width else x.shape[3]
    if weight is not None:
        check_tensor("qk_norm_rope", name, weight)
    if weight is not None and (weight.shape != (width,) or weight.device != x.device):
        expected = f"({width},) on {x.device}"
        got = f"{tuple(weight.shape)} on {weight.device}"
        raise ValueError(f"qk_norm_rope: expected {name} of shape {expected}, got {got}")
    if weight is not None and weight.dtype not in ELEMENT_DTYPES:
        raise TypeError(f"qk_norm_rope: expected {name} of one of {ELEMENT_DTYPES}, got {weight.dtype}")


def _check_outs(out: tuple[Tensor, Tensor], q: Tensor, k: Tensor, others: dict[str, Tensor | None]) -> None:
    q_out, k_out = out
    check_out("qk_norm_rope", "out[0]", q_out, q, {"q": q}, {"out[1]": k_out, "k": k, **others})
    check_out("qk_norm_rope", "out[1]", k_out, k, {"k": k}, {"out[0]": q_out, "q": q, **others})


def _computed(x: Tensor, weight: Tensor | None, full_width: bool) -> Tensor:
    """Returns the weight in the dtype that the operator computes in."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if weight is not None:
        return weight.to(dtype)
    return torch.ones(x.shape[1] * x.shape[3] if full_width else x.shape[3], dtype=dtype, device=x.device)


def _save_qk_norm_rope(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _qk_norm_rope_gradients(ctx, grad_q, grad_k):
    q, k, *weights, positions = ctx.saved_tensors
    computed = [_computed(x, w, ctx.options[-1]) for x, w in zip((q, k), weights, strict=True)]
    *grads, grad_q_weight, grad_k_weight = ops.qk_norm_rope_backward(
        grad_q, grad_k, q, k, *computed, positions, *ctx.options
    )
    for weight, grad in zip(weights, (grad_q_weight, grad_k_weight), strict=True):
        grads.append(None if weight is None else grad.to(weight.dtype))
    return *grads, None, None, None, None, None, None


torch.library.register_autograd(
    "videoar_kernels::qk_norm_rope", _qk_norm_rope_gradients, setup_context=_save_qk_norm_rope
)


@register_fake("videoar_kernels::qk_norm_rope")
def _(q, k, q_weight, k_weight, positions, eps, dims, theta, interleaved, full_width):
    return q.new_empty(q.shape), k.new_empty(k.shape)


@register_fake("videoar_kernels::qk_norm_rope_out")
def _(q, k, q_weight, k_weight, positions, eps, dims, theta, interleaved, full_width, q_out, k_out):
    return None


@register_fake("videoar_kernels::qk_norm_rope_backward")
def _(grad_q, grad_k, q, k, q_weight, k_weight, positions, eps, dims, theta, interleaved, full_width):
    return tuple(t.new_empty(t.shape) for t in (q, k, q_weight, k_weight))


def _reference_qk_norm_rope(q, k, q_weight, k_weight, positions, eps, dims, theta, interleaved, full_width):
    return reference.rope.qk_norm_rope(
        q, k, q_weight, k_weight, positions, eps=eps, dims=dims, theta=theta, interleaved=interleaved,
        full_width=full_width,
    )  # fmt: skip


def _reference_qk_norm_rope_out(*arguments):
    *inputs, q_out, k_out = arguments
    q, k = ops.qk_norm_rope(*inputs)
    q_out.copy_(q)
    k_out.copy_(k)


def _reference_qk_norm_rope_backward(grad_q, grad_k, q, k, q_weight, k_weight, *rest):
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (q, k, q_weight, k_weight)]
        return torch.autograd.grad(_reference_qk_norm_rope(*inputs, *rest), inputs, (grad_q, grad_k))


register_fallback("qk_norm_rope", _reference_qk_norm_rope)
register_fallback("qk_norm_rope_out", _reference_qk_norm_rope_out)
register_fallback("qk_norm_rope_backward", _reference_qk_norm_rope_backward)
