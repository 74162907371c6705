"""Rotary position embedding over time, height and width.

    (a, b) -> (a cos - b sin, a sin + b cos),  angle = position[axis] * theta^(-2 j / dims[axis])

Source: RoFormer (Su et al. 2024) split over three axes; positions of paper S, Eq. 7. The reference fixes the layout.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.argument_types import check_tensor
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into
from videoar_kernels.outputs import check_out

POSITION_DTYPES = (torch.int64, torch.int32, torch.float32, torch.float64)
ELEMENT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def rope_3d(
    x: Tensor,
    positions: Tensor,
    *,
    dims: Sequence[int] | None = None,
    theta: float = 10000.0,
    interleaved: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Rotates every head of x by its token's position.

    Angles are computed in float64, the rotation in float32 (float64 for float64), and rounded once.

    Args:
        x: (B, H, L, D), float32, bfloat16, float16 or float64; any strides, fastest with a contiguous last one.
        positions: (L, 3) or (B, L, 3) of (t, h, w), in tokens, may be fractional; int64, int32, float32, float64.
        dims: elements of a head given to t, h and w, all even, D in total; by default h and w get 2 * (D // 6) each.
        theta: base of the frequencies, above 0.
        interleaved: pair i is (x[2i], x[2i+1]) as in Wan and Infinity; False: (x[i], x[i + D/2]) as in LLaMA.
        out: where to write, at inference: x's shape and dtype, contiguous last dimension; x itself, or apart from it.

    Returns:
        `out`, or a new dense tensor (B, H, L, D) of x's dtype.

    Raises:
        ValueError: shapes, dims or theta do not fit, or `out` cannot be written. TypeError: dtypes.

    Source: paper S, Eq. 7; RoFormer. Saved for backward: positions. Positions get no gradient.
    """

    inputs = x, positions, dims, theta, interleaved, False
    if out is None:
        return run(ops.rope_3d.default, lambda: _check("rope_3d", inputs), *inputs)
    run_into(out, ops.rope_3d_out.default, lambda: _check("rope_3d", inputs, out=out), *inputs, out)
    return out


def rope_3d_(
    x: Tensor,
    positions: Tensor,
    *,
    dims: Sequence[int] | None = None,
    theta: float = 10000.0,
    interleaved: bool = True,
) -> Tensor:
    """Rotates x in place, for inference: `rope_3d` without a second tensor and without a gradient.

    Args:
        x: (B, H, L, D) with a contiguous last dimension and no element that is stored twice (expanded).
        positions, dims, theta, interleaved: as `rope_3d`.

    Returns:
        x itself.

    Raises:
        ValueError: shapes, dims or theta do not fit, x is expanded or needs a gradient. TypeError: dtypes.

    Source: as `rope_3d`.
    """

    inputs = x, positions, dims, theta, interleaved, False
    run_into(x, ops.rope_3d_.default, lambda: _check("rope_3d_", inputs, x=x), *inputs)
    return x


def _check(op: str, inputs: tuple, **written: Tensor) -> None:
    x, positions, dims, theta, *_ = inputs
    check_rotation(op, x, positions, dims, theta)
    for name, out in written.items():
        check_out(op, name, out, x, {"x": x}, {"positions": positions})


def check_rotation(op: str, x: Tensor, positions: Tensor, dims: Sequence[int] | None, theta: float) -> None:
    """Raises what `rope_3d` promises, in the name of `op`."""
    check_tensor(op, "x", x)
    check_tensor(op, "positions", positions)
    if x.ndim != 4 or x.shape[-1] % 2:
        raise ValueError(f"{op}: expected (batch, heads, length, even head_dim), got {tuple(x.shape)}")
    if x.dtype not in ELEMENT_DTYPES:
        raise TypeError(f"{op}: expected one of {ELEMENT_DTYPES}, got {x.dtype}")
    batch, _, length, head_dim = x.shape
    if positions.shape != (length, 3) and positions.shape != (batch, length, 3):
        expected = f"({length}, 3) or ({batch}, {length}, 3)"
        raise ValueError(f"{op}: expected positions of shape {expected}, got {tuple(positions.shape)}")
    if positions.dtype not in POSITION_DTYPES:
        raise TypeError(f"{op}: expected positions of one of {POSITION_DTYPES}, got {positions.dtype}")
    if positions.device != x.device:
        raise ValueError(f"{op}: expected positions on {x.device}, got {positions.device}")
    if dims is not None:
        check_dims(op, dims, head_dim)
    if not 0 < theta < math.inf:
        raise ValueError(f"{op}: expected a finite theta above 0, got {theta}")


def check_dims(op: str, dims: Sequence[int], head_dim: int) -> None:
    """Raises ValueError unless `dims` split a head over t, h and w, TypeError where they are no whole numbers."""
    if not isinstance(dims, Sequence) or not all(isinstance(dim, (int, torch.SymInt)) for dim in dims):
        raise TypeError(f"{op}: expected dims as three ints, got {dims!r}")
    if len(dims) != 3 or sum(dims) != head_dim or any(dim < 0 or dim % 2 for dim in dims):
        raise ValueError(f"{op}: expected three even dims that add up to {head_dim}, got {list(dims)}")


def _save_rope(ctx, inputs, output):
    _, positions, *ctx.options, ctx.inverse = inputs
    ctx.save_for_backward(positions)


def _rope_gradients(ctx, grad_out):
    (positions,) = ctx.saved_tensors
    # A rotation's transpose is its inverse.
    return ops.rope_3d(grad_out, positions, *ctx.options, not ctx.inverse), None, None, None, None, None


torch.library.register_autograd("videoar_kernels::rope_3d", _rope_gradients, setup_context=_save_rope)


@register_fake("videoar_kernels::rope_3d")
def _(x, positions, dims, theta, interleaved, inverse):
    return x.new_empty(x.shape)


@register_fake("videoar_kernels::rope_3d_out")
def _(x, positions, dims, theta, interleaved, inverse, out):
    return None


@register_fake("videoar_kernels::rope_3d_")
def _(x, positions, dims, theta, interleaved, inverse):
    return None


def _reference_rope_3d(x, positions, dims, theta, interleaved, inverse):
    sign = -1 if inverse else 1
    return reference.rope.rope_3d(x, sign * positions, dims=dims, theta=theta, interleaved=interleaved)


def _reference_rope_3d_(x, *options):
    x.copy_(_reference_rope_3d(x, *options))


def _reference_rope_3d_out(*arguments):
    *inputs, out = arguments
    out.copy_(ops.rope_3d(*inputs))


if torch.version.cuda is not None and importlib.util.find_spec("triton"):
    from videoar_kernels.triton import rope as _triton

    _LABEL = "triton, not yet run on a GPU"
    register_fallback("rope_3d", _triton.operator, label=_LABEL, devices=("CUDA",))
    register_fallback("rope_3d_", _triton.operator_, label=_LABEL, devices=("CUDA",))
register_fallback("rope_3d", _reference_rope_3d)
register_fallback("rope_3d_", _reference_rope_3d_)
register_fallback("rope_3d_out", _reference_rope_3d_out)
