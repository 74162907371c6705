"""Rotary position embedding over time, height and width, alone or fused with the RMS norm of queries and keys.

    (a, b) -> (a cos - b sin, a sin + b cos),  angle = position[axis] * theta^(-2 j / dims[axis])
    qk_norm_rope: the same of x / sqrt(mean(x^2) + eps) * weight

Source: RoFormer (Su et al. 2024) split over three axes; positions of paper S, Eq. 7. The reference fixes the layout.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from videoar_kernels import reference
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
        theta: base of the frequencies.
        interleaved: pair i is (x[2i], x[2i+1]) as in Wan and Infinity; False: (x[i], x[i + D/2]) as in LLaMA.
        out: where to write, at inference: x's shape and dtype, contiguous last dimension; x itself, or apart from it.

    Returns:
        `out`, or a new dense tensor (B, H, L, D) of x's dtype.

    Raises:
        ValueError: shapes or dims do not fit, or `out` cannot be written. TypeError: dtypes.

    Source: paper S, Eq. 7; RoFormer. Saved for backward: positions. Positions get no gradient.
    """
    dims = _dims(x, dims)

    def check():
        _check("rope_3d", x, positions, dims)
        if out is not None:
            check_out("rope_3d", "out", out, x, {"x": x}, {"positions": positions})

    if out is None:
        return run(ops.rope_3d.default, check, x, positions, dims, theta, interleaved, False)
    run_into(out, ops.rope_3d_out.default, check, x, positions, dims, theta, interleaved, False, out)
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
        ValueError: shapes or dims do not fit, x is expanded or needs a gradient. TypeError: dtypes.

    Source: as `rope_3d`.
    """
    dims = _dims(x, dims)

    def check():
        _check("rope_3d_", x, positions, dims)
        check_out("rope_3d_", "x", x, x, {"x": x}, {"positions": positions})

    run_into(x, ops.rope_3d_.default, check, x, positions, dims, theta, interleaved, False)
    return x


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
        eps: added to the mean square.
        dims, theta, interleaved: as in `rope_3d`.
        full_width: the mean square is taken over all heads of a token together, as Wan does.
        out: where to write q's and k's results, at inference: like q and k, with contiguous last dimensions; (q, k)
            works in place, anything else must be apart from the inputs.

    Returns:
        q and k normed and rotated: `out`, or new dense tensors of their dtype.

    Raises:
        ValueError: shapes or dims do not fit, or `out` cannot be written. TypeError: dtypes.

    Source: paper U's backbone (Wan 2.1) and LLaMA-style query-key norm. Saved for backward: all tensor arguments.
    """
    dims = _dims(q, dims)

    def check():
        _check("qk_norm_rope", q, positions, dims)
        if k.shape[:1] + k.shape[2:] != q.shape[:1] + q.shape[2:] or k.ndim != 4:
            expected = f"({q.shape[0]}, *, {q.shape[2]}, {q.shape[3]})"
            raise ValueError(f"qk_norm_rope: expected k of shape {expected}, got {tuple(k.shape)}")
        if k.dtype != q.dtype or k.device != q.device:
            raise TypeError(f"qk_norm_rope: expected k {q.dtype} on {q.device}, got {k.dtype} on {k.device}")
        _check_weight("q_weight", q, q_weight, full_width)
        _check_weight("k_weight", k, k_weight, full_width)
        if out is not None:
            _check_outs(out, q, k, {"q_weight": q_weight, "k_weight": k_weight, "positions": positions})

    options = eps, dims, theta, interleaved, full_width
    if torch.is_grad_enabled() or not q.is_cpu:
        check()
        q_weight, k_weight = _computed(q, q_weight, full_width), _computed(k, k_weight, full_width)
    if out is None:
        return run(ops.qk_norm_rope.default, check, q, k, q_weight, k_weight, positions, *options)
    run_into(out, ops.qk_norm_rope_out.default, check, q, k, q_weight, k_weight, positions, *options, *out)
    return out


def multiscale_positions(
    text_len: int,
    frames: int,
    scales: Sequence[tuple[int, int]],
    align: str = "index",
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Returns the positions of a text prefix followed by the scales of every frame (paper S, Eq. 7).

    Args:
        text_len: text tokens; token i stands at (i, i, i).
        frames: frames of the latent video.
        scales: (height, width) of every scale, coarse to fine; tokens of a scale are row-major.
        align: "index": token (h, w) of any scale stands at (t, h, w) + text_len, as in Eq. 7; "grid": a coarse
            scale is spread over the finest, h -> round(h * H / H_k) (half to even), as in Infinity.
        device: where to put the result.

    Returns:
        int64 (text_len + frames * sum(h * w), 3).

    Raises:
        ValueError: an unknown align, no scales, or a negative length.

    Source: paper S, Eq. 7.
    """
    if align not in ("index", "grid"):
        raise ValueError(f'multiscale_positions: expected align "index" or "grid", got {align!r}')
    if not scales or min(min(scale) for scale in scales) < 1 or text_len < 0 or frames < 0:
        raise ValueError(
            f"multiscale_positions: expected at least one scale of positive size and lengths >= 0, "
            f"got text_len {text_len}, frames {frames}, scales {list(scales)}"
        )
    return reference.rope.multiscale_positions(text_len, frames, scales, align, device=device)


def unit_positions(
    grid: tuple[int, int, int],
    *,
    order: Tensor | None = None,
    text_len: int = 0,
    start: tuple[int, int, int] = (0, 0, 0),
    device: torch.device | str | None = None,
) -> Tensor:
    """Returns the positions of a latent grid whose tokens are generated unit after unit (paper U).

    A token keeps its place in the grid whatever the order in which units are generated.

    Args:
        grid: (T, H, W) in tokens.
        order: int64 (n,), row-major grid indices in the order of generation; None: row-major, all of them.
        text_len: text tokens in front, token i at (i, i, i), the grid shifted by text_len as in Eq. 7 of paper S;
            0 where text enters through cross-attention, as in Wan.
        start: position of the grid's first token, for streams that go on.
        device: where to put the result.

    Returns:
        int64 (text_len + n, 3).

    Raises:
        ValueError: a negative size.

    Source: paper U, Sec. 3; Wan 2.1.
    """
    if min(*grid, text_len) < 0:
        raise ValueError(f"unit_positions: expected sizes >= 0, got grid {tuple(grid)}, text_len {text_len}")
    return reference.rope.unit_positions(grid, order=order, text_len=text_len, start=start, device=device)


def _dims(x: Tensor, dims: Sequence[int] | None) -> Sequence[int]:
    return reference.rope.default_dims(x.shape[-1] if x.ndim else 0) if dims is None else dims


def _check(op: str, x: Tensor, positions: Tensor, dims: Sequence[int]) -> None:
    """Raises what the public functions promise."""
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
    if len(dims) != 3 or sum(dims) != head_dim or any(dim < 0 or dim % 2 for dim in dims):
        raise ValueError(f"{op}: expected three even dims that add up to {head_dim}, got {list(dims)}")


def _check_weight(name: str, x: Tensor, weight: Tensor | None, full_width: bool) -> None:
    width = x.shape[1] * x.shape[3] if full_width else x.shape[3]
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
    """Returns the weight in the dtype that the operator computes in, by operations that autograd knows."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if weight is not None:
        return weight.to(dtype)
    return torch.ones(x.shape[1] * x.shape[3] if full_width else x.shape[3], dtype=dtype, device=x.device)


def _save_rope(ctx, inputs, output):
    _, positions, *ctx.options, ctx.inverse = inputs
    ctx.save_for_backward(positions)


def _rope_gradients(ctx, grad_out):
    (positions,) = ctx.saved_tensors
    # A rotation's transpose is its inverse.
    return ops.rope_3d(grad_out, positions, *ctx.options, not ctx.inverse), None, None, None, None, None


def _save_qk_norm_rope(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _qk_norm_rope_gradients(ctx, grad_q, grad_k):
    q, k, *weights, positions = ctx.saved_tensors
    computed = [_computed(x, w, ctx.options[-1]) for x, w in zip((q, k), weights, strict=True)]
    grads = list(ops.qk_norm_rope_backward(grad_q, grad_k, q, k, *computed, positions, *ctx.options))
    for i, weight in enumerate(weights, 2):
        if weight is None:
            grads[i] = None
    return *grads, None, None, None, None, None, None


torch.library.register_autograd("videoar_kernels::rope_3d", _rope_gradients, setup_context=_save_rope)
torch.library.register_autograd(
    "videoar_kernels::qk_norm_rope", _qk_norm_rope_gradients, setup_context=_save_qk_norm_rope
)


@register_fake("videoar_kernels::rope_3d")
def _(x, positions, dims, theta, interleaved, inverse):
    return x.new_empty(x.shape)


@register_fake("videoar_kernels::rope_3d_out")
def _(x, positions, dims, theta, interleaved, inverse, out):
    return None


@register_fake("videoar_kernels::qk_norm_rope_out")
def _(q, k, q_weight, k_weight, positions, eps, dims, theta, interleaved, full_width, q_out, k_out):
    return None


@register_fake("videoar_kernels::rope_3d_")
def _(x, positions, dims, theta, interleaved, inverse):
    return None


@register_fake("videoar_kernels::qk_norm_rope")
def _(q, k, q_weight, k_weight, positions, eps, dims, theta, interleaved, full_width):
    return q.new_empty(q.shape), k.new_empty(k.shape)


@register_fake("videoar_kernels::qk_norm_rope_backward")
def _(grad_q, grad_k, q, k, q_weight, k_weight, positions, eps, dims, theta, interleaved, full_width):
    return tuple(t.new_empty(t.shape) for t in (q, k, q_weight, k_weight))


def _reference_rope_3d(x, positions, dims, theta, interleaved, inverse):
    sign = -1 if inverse else 1
    return reference.rope.rope_3d(x, sign * positions, dims=dims, theta=theta, interleaved=interleaved)


def _reference_rope_3d_(x, *options):
    x.copy_(_reference_rope_3d(x, *options))


def _reference_rope_3d_out(*arguments):
    *inputs, out = arguments
    out.copy_(ops.rope_3d(*inputs))


def _reference_qk_norm_rope_out(*arguments):
    *inputs, q_out, k_out = arguments
    q, k = ops.qk_norm_rope(*inputs)
    q_out.copy_(q)
    k_out.copy_(k)


def _reference_qk_norm_rope(q, k, q_weight, k_weight, positions, eps, dims, theta, interleaved, full_width):
    return reference.rope.qk_norm_rope(
        q, k, q_weight, k_weight, positions, eps=eps, dims=dims, theta=theta, interleaved=interleaved,
        full_width=full_width,
    )  # fmt: skip


def _reference_qk_norm_rope_backward(grad_q, grad_k, q, k, q_weight, k_weight, *rest):
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (q, k, q_weight, k_weight)]
        return torch.autograd.grad(_reference_qk_norm_rope(*inputs, *rest), inputs, (grad_q, grad_k))


if torch.version.cuda is not None and importlib.util.find_spec("triton"):
    from videoar_kernels.triton import rope as _triton

    register_fallback("rope_3d", _triton.operator, label="triton", devices=("CUDA",))
    register_fallback("rope_3d_", _triton.operator_, label="triton", devices=("CUDA",))
register_fallback("rope_3d", _reference_rope_3d)
register_fallback("rope_3d_", _reference_rope_3d_)
register_fallback("rope_3d_out", _reference_rope_3d_out)
register_fallback("qk_norm_rope_out", _reference_qk_norm_rope_out)
register_fallback("qk_norm_rope", _reference_qk_norm_rope)
register_fallback("qk_norm_rope_backward", _reference_qk_norm_rope_backward)
