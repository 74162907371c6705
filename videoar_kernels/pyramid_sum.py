"""Sums of the pyramid's codes: all scales at once, or one step of sampling. The arithmetic is that of `pyramid.py`.

Source: VideoAR (paper S), Eq. 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.argument_types import whole
from videoar_kernels.bit_checks import FLOATS, bits_a_token, check_float, check_packed, expanded
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into
from videoar_kernels.outputs import NO_INPUTS, check_dense_out
from videoar_kernels.pyramid_checks import check_keep, check_scales, flat, pairs, token_count
from videoar_kernels.reference.pyramid import Scale, Step


def pyramid_decode(
    bits: Tensor,
    scales: Sequence[Scale],
    *,
    dim: int | None = None,
    keep: int | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Sum up the codes of packed bits.

    Args:
        bits: uint8 (B, T, N, ceil(dim / 8)).
        scales: K pairs (h, w), coarse to fine; the last is the size of the result.
        dim: bits a token, by default eight per byte.
        keep: how many scales to sum, from the coarsest: an int, or an integer tensor (B,) or (B, T); None: all.
        dtype: of the result: float32, float64, bfloat16 or float16.
        out: (B, T, H, W, dim) of `dtype` to write to, dense.
    Returns:
        (B, T, H, W, dim). No gradient.
    Raises:
        TypeError, ValueError: dtypes, shapes or scales; keep outside [0, K] (a tensor's values are looked at on the CPU
            only); `out` does not fit.
    Source: VideoAR (paper S), Eq. 2.
    """
    table = None
    if isinstance(keep, Tensor):
        if keep.ndim > 2 or keep.is_floating_point() or keep.is_complex() or keep.dtype == torch.bool:
            raise ValueError(
                f"pyramid_decode: expected keep as integers (B,) or (B, T), got {tuple(keep.shape)} {keep.dtype}"
            )
        check_packed("pyramid_decode", bits, dim)
        frames = tuple(bits.shape[:2])
        table = keep.reshape(keep.shape + (1,) * (2 - keep.ndim))
        table = expanded("pyramid_decode", "keep", table, frames, torch.int64, bits.device)

    def check() -> None:
        if dtype not in FLOATS:
            raise TypeError(f"pyramid_decode: expected dtype float32, float64, bfloat16 or float16, got {dtype}")
        if check_packed("pyramid_decode", bits, dim) < 1:
            raise ValueError(f"pyramid_decode: expected dim >= 1, got {dim}")
        check_scales("pyramid_decode", scales, None)
        check_scales("pyramid_decode", scales, scales[-1])
        tokens = token_count(flat(scales))
        if bits.ndim != 4 or bits.shape[2] != tokens:
            raise ValueError(f"pyramid_decode: expected bits of shape (B, T, {tokens}, bytes), got {tuple(bits.shape)}")
        if table is not None:
            check_keep(table, len(scales))
        elif keep is not None and not 0 <= whole("pyramid_decode", "keep", keep) <= len(scales):
            raise ValueError(f"pyramid_decode: expected keep within [0, {len(scales)}], got {keep}")
        if out is not None:
            shape = (*bits.shape[:2], *scales[-1], 8 * bits.shape[-1] if dim is None else dim)
            check_dense_out("pyramid_decode", "out", out, shape, dtype, NO_INPUTS, {"bits": bits, "keep": table})

    kept = () if keep is None else (keep,) if table is None else (None, table)
    if out is not None:
        if not isinstance(bits, Tensor) or not isinstance(out, Tensor) or out.dtype != dtype:
            check()
        if out.shape[-1:] != (bits_a_token("pyramid_decode", bits) if dim is None else dim,):
            check()
        run_into(out, ops.pyramid_decode_out.default, check, bits, flat(scales), out, *kept)
        return out
    wide = bits_a_token("pyramid_decode", bits) if dim is None else dim
    if dtype != torch.float32 or kept:
        kept = (dtype, *kept)
    return run(ops.pyramid_decode.default, check, bits, flat(scales), wide, *kept)


def pyramid_step(
    total: Tensor,
    bits: Tensor,
    scale: Scale,
    next_scale: Scale | None = None,
    *,
    out: tuple[Tensor, Tensor | None] | None = None,
) -> Step:
    """Add one scale's bits to the sum: the step of sampling.

    Args:
        total: (B, H, W, d), float32, float64, bfloat16 or float16; the sum so far, rounded to its dtype at each step.
        bits: uint8 (B, h * w, ceil(d / 8)).
        scale: (h, w) of the bits.
        next_scale: (h', w') to down-sample the new sum to, if any.
        out: (total, input) to write to, dense; the first may be `total` itself, the second is None without next_scale.
    Returns:
        Step(total (B, H, W, d), input (B, h' * w', d) or None), of total's dtype. No gradient.
    Raises:
        TypeError, ValueError: dtypes, shapes or scales; `out` does not fit.
    Source: VideoAR (paper S), Eq. 2.
    """
    pair = (scale,) if next_scale is None else (scale, next_scale)

    def check() -> None:
        check_float("pyramid_step", "total", total)
        if total.ndim != 4 or total.shape[-1] < 1:
            raise ValueError(f"pyramid_step: expected total of shape (B, H, W, d >= 1), got {tuple(total.shape)}")
        check_packed("pyramid_step", bits, total.shape[-1], like=total)
        check_scales("pyramid_step", pair, total.shape[1:3])
        expected = (total.shape[0], scale[0] * scale[1], bits.shape[-1])
        if bits.shape != expected:
            raise ValueError(f"pyramid_step: expected bits of shape {expected}, got {tuple(bits.shape)}")
        if out is not None:
            _check_stepped(total, bits, next_scale, *out)

    if torch.is_grad_enabled() and out is None:
        check()
        total = total.detach()
    if out is None:
        result, following = run(ops.pyramid_step.default, check, total, bits, flat(pair))
        return Step(result, None if next_scale is None else following)
    written = [t for t in out if t is not None]
    run_into(written, ops.pyramid_step_out.default, check, total, bits, flat(pair), *written)
    return Step(*out)


def _check_stepped(total: Tensor, bits: Tensor, next_scale: Scale | None, result: Tensor, input: Tensor | None) -> None:
    name = "pyramid_step"
    check_dense_out(name, "total of out", result, total.shape, total.dtype, {"total": total}, {"bits": bits})
    if (input is None) != (next_scale is None):
        raise ValueError("pyramid_step: expected an input of out where there is a next_scale, and None where not")
    if input is not None:
        shape = (total.shape[0], next_scale[0] * next_scale[1], total.shape[-1])
        others = {"total": total, "bits": bits, "total of out": result}
        check_dense_out(name, "input of out", input, shape, total.dtype, NO_INPUTS, others)


@register_fake("videoar_kernels::pyramid_decode")
def _(bits, scales, dim, dtype=None, *kept):
    return bits.new_empty((*bits.shape[:2], *scales[-2:], dim), dtype=dtype or torch.float32)


@register_fake("videoar_kernels::pyramid_decode_out")
def _(bits, scales, total, *kept):
    return None


@register_fake("videoar_kernels::pyramid_step")
def _(total, bits, scales):
    following = total.new_empty((total.shape[0], token_count(scales[2:]), total.shape[-1]))
    return total.new_empty(total.shape), following


@register_fake("videoar_kernels::pyramid_step_out")
def _(total, bits, scales, total_out, input=None):
    return None


def _reference_decode(bits, scales, dim, dtype=None, keep=None, keep_table=None):
    keep = keep if keep_table is None else keep_table
    return reference.pyramid.pyramid_decode(bits, pairs(scales), dim=dim, keep=keep, dtype=dtype or torch.float32)


def _reference_decode_out(bits, scales, total, *kept):
    total.copy_(_reference_decode(bits, scales, total.shape[-1], total.dtype, *kept))


def _reference_step(total, bits, scales):
    result, following = reference.pyramid.pyramid_step(total, bits, *pairs(scales))
    empty = total.new_empty((total.shape[0], 0, total.shape[-1]))
    return result, empty if following is None else following


def _reference_step_out(total, bits, scales, total_out, input=None):
    result, following = _reference_step(total, bits, scales)
    total_out.copy_(result)
    if input is not None:
        input.copy_(following)


register_fallback("pyramid_decode", _reference_decode)
register_fallback("pyramid_decode_out", _reference_decode_out)
register_fallback("pyramid_step", _reference_step)
register_fallback("pyramid_step_out", _reference_step_out)
