"""Softmax attention under a RangeMask: exact, with memory linear in length, and work only where the mask is.

    out_i = sum_j w_ij v_j,  w_ij = exp(scale q_i . k_j - lse_i),  lse_i = log sum_j exp(scale q_i . k_j),
    j over the keys that query i may see.

Source: paper S, Eq. 9; the online softmax is Milakov and Gimelshein 2018.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.argument_types import check_tensor
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into
from videoar_kernels.masks import RangeMask
from videoar_kernels.outputs import NO_INPUTS, check_out

_NO_ARRAYS = (None,) * 4
_op, _out_op = ops.range_attention.default, ops.range_attention_out.default
_forward, _forward_out = ops.range_attention_forward.default._op, ops.range_attention_forward_out.default._op
_is_grad_enabled, _is_compiling = torch.is_grad_enabled, torch.compiler.is_compiling
_increment_version = torch._C._increment_version  # torch.autograd.graph's, without a look at its argument's type
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def range_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: RangeMask | None = None,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Returns softmax(scale * q k^T) v over the keys that each query may see.

    Keys outside the mask's ranges have no influence, not even as NaN. Sums are float32 (float64 for float64) and each
    result is rounded once. The same inputs give the same bits whatever the number of threads.

    Args:
        q: (batch, heads, q_len, head_dim), float32, bfloat16, float16 or float64; last dimension contiguous, other
            strides free. head_dim is 1 to 256, any number.
        k: (batch, kv_heads, k_len, head_dim); heads is a multiple of kv_heads, and query head h reads key head
            h // (heads / kv_heads).
        v: like k.
        mask: which keys a query sees; a batched one has a mask for each sample; None: every key.
        scale: factor of the scores, finite; None: 1 / sqrt(head_dim).
        return_lse: also return the log of each query's softmax denominator; gradients flow through it too.
        out: where to write the result, for inference: shape, dtype and device of q, contiguous last dimension, no
            memory shared with q, k or v.

    Returns:
        out (batch, heads, q_len, head_dim), dtype of q, stored as (batch, q_len, heads, head_dim); a query that sees
        no key gets zeros and passes no gradient. With return_lse also lse (batch, heads, q_len), float32 (float64 for
        float64), natural logarithm, -inf where no key is seen.

    Raises:
        ValueError: shapes, devices, scale or the mask's lengths don't fit; out is given and a gradient is needed.
        TypeError: a dtype that isn't supported, or different ones.

    Source: paper S, Eq. 9. Saved for backward: q, k, v, out and lse.
    """
    if return_lse or _is_grad_enabled() or not getattr(q, "is_cpu", False) or _is_compiling():
        return _with_lse(q, k, v, mask, scale, return_lse, out)
    # As library.run, but these operators have no autograd layer in Python to skip.
    try:
        packed = None if mask is None else mask.packed
        if out is None:
            return _forward(q, k, v, packed, scale)
        _forward_out(q, k, v, packed, scale, out)
    except Exception:
        _check(q, k, v, mask, scale, out)
        raise
    _increment_version((out,))
    return out


def _with_lse(
    q: Tensor, k: Tensor, v: Tensor, mask: RangeMask | None, scale: float | None, return_lse: bool, out: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    _check_types(q, k, v, mask)
    if mask is None:
        arrays = _NO_ARRAYS
    else:
        # The operator sees the ranges only, not how long the sequences are that they were made for.
        if q.dim() != 4 or k.dim() != 4 or mask.q_len != q.size(2) or mask.k_len != k.size(2):
            _check(q, k, v, mask, scale)
        if mask.batch is not None and mask.batch != q.size(0):
            _check(q, k, v, mask, scale)
        arrays = mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges
    if scale is None:
        scale = (q.size(-1) or 1) ** -0.5 if q.dim() else 1.0
    if out is None:
        out, lse = run(_op, lambda: _check(q, k, v, mask, scale), q, k, v, *arrays, scale)
    else:
        lse = run_into(out, _out_op, lambda: _check(q, k, v, mask, scale, out), q, k, v, *arrays, scale, out)
    return (out, lse) if return_lse else out


def _check_types(q: Tensor, k: Tensor, v: Tensor, mask: RangeMask | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tensor("range_attention", name, x)
    if mask is not None and not isinstance(mask, RangeMask):
        raise TypeError(f"range_attention: expected mask as RangeMask or None, got {type(mask).__name__}")


def _check(
    q: Tensor, k: Tensor, v: Tensor, mask: RangeMask | None, scale: float | None, out: Tensor | None = None
) -> None:
    _check_types(q, k, v, mask)
    if scale is not None and not -math.inf < scale < math.inf:
        raise ValueError(f"range_attention: expected a finite scale, got {scale}")
    if q.dtype not in _DTYPES:
        raise TypeError(f"range_attention: expected q of dtype float32, bfloat16, float16 or float64, got {q.dtype}")
    if q.dim() != 4 or not 1 <= q.shape[-1] <= 256:
        raise ValueError(
            "range_attention: expected q of shape (batch, heads, q_len, head_dim) with head_dim 1 to 256, "
            f"got {tuple(q.shape)}"
        )
    batch, heads, q_len, head_dim = q.shape
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise TypeError(f"range_attention: expected {name} of dtype {q.dtype}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"range_attention: expected {name} on {q.device}, got {x.device}")
        if x.dim() != 4 or x.shape[0] != batch or x.shape[3] != head_dim:
            raise ValueError(
                f"range_attention: expected {name} of shape ({batch}, *, *, {head_dim}), got {tuple(x.shape)}"
            )
    if v.shape != k.shape:
        raise ValueError(f"range_attention: expected v of shape {tuple(k.shape)}, got {tuple(v.shape)}")
    if k.shape[1] == 0 or heads % k.shape[1] != 0:
        raise ValueError(
            f"range_attention: expected k of shape ({batch}, a divisor of {heads}, *, {head_dim}), got {tuple(k.shape)}"
        )
    if out is not None:
        check_out("range_attention", "out", out, q, NO_INPUTS, {"q": q, "k": k, "v": v})
    if mask is None:
        return
    if mask.q_len != q_len or mask.k_len != k.shape[2]:
        raise ValueError(
            f"range_attention: expected mask of q_len {q_len} and k_len {k.shape[2]}, "
            f"got q_len {mask.q_len} and k_len {mask.k_len}"
        )
    if mask.batch is not None and mask.batch != batch:
        raise ValueError(f"range_attention: expected mask of batch {batch} or None, got {mask.batch}")


def _save(ctx, inputs, output):
    q, k, v, *arrays, scale = inputs
    ctx.save_for_backward(q, k, v, *output, *arrays)
    ctx.scale = scale


def _gradients(ctx, grad_out, grad_lse):
    q, k, v, out, lse, *arrays = ctx.saved_tensors
    grads = ops.range_attention_backward(grad_out, grad_lse, q, k, v, out, lse, *arrays, ctx.scale)
    return *grads, None, None, None, None, None


torch.library.register_autograd("videoar_kernels::range_attention", _gradients, setup_context=_save)


def _empty_heads(like: Tensor) -> Tensor:
    batch, heads, length, head_dim = like.shape
    return like.new_empty(batch, length, heads, head_dim).transpose(1, 2)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@register_fake("videoar_kernels::range_attention")
def _(q, k, v, batch_ptr, q_ranges, key_ptr, key_ranges, scale):
    return _empty_heads(q), q.new_empty(q.shape[:3], dtype=_wide(q.dtype))


@register_fake("videoar_kernels::range_attention_out")
def _(q, k, v, batch_ptr, q_ranges, key_ptr, key_ranges, scale, out):
    return q.new_empty(q.shape[:3], dtype=_wide(q.dtype))


@register_fake("videoar_kernels::range_attention_forward")
def _(q, k, v, mask, scale):
    return _empty_heads(q)


@register_fake("videoar_kernels::range_attention_forward_out")
def _(q, k, v, mask, scale, out):
    return None


@register_fake("videoar_kernels::range_attention_backward")
def _(grad_out, grad_lse, q, k, v, out, lse, batch_ptr, q_ranges, key_ptr, key_ranges, scale):
    return _empty_heads(q), _empty_heads(k), _empty_heads(v)


def _mask(q: Tensor, k: Tensor, batch_ptr, q_ranges, key_ptr, key_ranges) -> RangeMask | None:
    if batch_ptr is None:
        return None
    samples = batch_ptr.numel() - 1
    batch = None if samples == 1 else samples
    return RangeMask(q.shape[2], k.shape[2], batch, batch_ptr, q_ranges, key_ptr, key_ranges)


def _as_stored(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _reference(q, k, v, batch_ptr, q_ranges, key_ptr, key_ranges, scale):
    mask = _mask(q, k, batch_ptr, q_ranges, key_ptr, key_ranges)
    out, lse = reference.attention.range_attention(q, k, v, mask, scale=scale, return_lse=True)
    return _as_stored(out), lse


def _reference_out(q, k, v, batch_ptr, q_ranges, key_ptr, key_ranges, scale, out):
    result, lse = ops.range_attention(q, k, v, batch_ptr, q_ranges, key_ptr, key_ranges, scale)
    out.copy_(result)
    return lse


def _unpacked(q: Tensor, mask: Tensor | None, scale: float | None) -> tuple:
    """What `range_attention` takes where `range_attention_forward` takes a packed mask and perhaps a scale."""
    arrays = _NO_ARRAYS
    if mask is not None:
        _, _, batch, rows, ranges = mask[:5].tolist()
        arrays = mask[5:].split((2 if batch < 0 else batch + 1, 2 * rows, rows + 1, 2 * ranges))
        arrays = arrays[0], arrays[1].view(-1, 2), arrays[2], arrays[3].view(-1, 2)
    return *arrays, q.size(-1) ** -0.5 if scale is None else scale


def _forward_elsewhere(q, k, v, mask, scale):
    return ops.range_attention(q, k, v, *_unpacked(q, mask, scale))[0]


def _forward_out_elsewhere(q, k, v, mask, scale, out):
    ops.range_attention_out(q, k, v, *_unpacked(q, mask, scale), out)


def _reference_backward(grad_out, grad_lse, q, k, v, out, lse, batch_ptr, q_ranges, key_ptr, key_ranges, scale):
    mask = _mask(q, k, batch_ptr, q_ranges, key_ptr, key_ranges)
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        outputs = reference.attention.range_attention(*inputs, mask, scale=scale, return_lse=True)
        grad_lse = torch.zeros_like(outputs[1]) if grad_lse is None else grad_lse
        return tuple(_as_stored(g) for g in torch.autograd.grad(outputs, inputs, (grad_out, grad_lse)))


def _unless_double(kernel: Callable, double: Callable) -> Callable:
    """An operator that runs `double` for float64, which no Triton kernel takes."""
    return lambda first, *rest: (double if first.dtype == torch.float64 else kernel)(first, *rest)


if torch.version.cuda is not None and importlib.util.find_spec("triton"):
    from videoar_kernels.triton import attention as _triton
    from videoar_kernels.triton import attention_backward as _triton_backward

    _LABEL = "triton, not yet run on a GPU (float64: reference)"
    for _name, _kernel, _double in (
        ("range_attention", _triton.operator, _reference),
        ("range_attention_out", _triton.operator_out, _reference_out),
        ("range_attention_backward", _triton_backward.operator, _reference_backward),
    ):
        _operator = _unless_double(_kernel, _double)
        register_fallback(_name, _operator, label=_LABEL, devices=("CUDA",))
register_fallback("range_attention_forward", _forward_elsewhere, label="range_attention")
register_fallback("range_attention_forward_out", _forward_out_elsewhere, label="range_attention_out")
register_fallback("range_attention", _reference)
register_fallback("range_attention_out", _reference_out)
register_fallback("range_attention_backward", _reference_backward)
