"""Multi-scale residual quantization of every frame, with cross-frame error correction in the same pass.

    S = 0; for each scale k: label_k = down(z - S) > 0, used_k = label_k xor flip_k, S += up(code(used_k))

down is area (adaptive average pooling), up bilinear (align_corners=False), code = ±1/sqrt(d); float32 arithmetic
(float64 for float64). The same two resamplers serve tokenizer, training and sampling.
Source: VideoAR (paper S), Eq. 2, 3 and 8; Infinity (Han et al. 2024), bitwise self-correction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.bit_checks import check_float, check_packed, check_probability, signed64
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake
from videoar_kernels.reference.pyramid import Pyramid, Scale, Step


def _flat(name: str, scales: Sequence[Scale], size: Sequence[int] | None, *, ends_full: bool = False) -> list[int]:
    """Return scales as h, w, h, w, ...; raise unless they fit planes of `size`."""
    pairs = [tuple(scale) for scale in scales]
    if not pairs or any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
        raise ValueError(f"{name}: expected scales as pairs (h, w) of positive integers, got {pairs}")
    if size is not None:
        height, width = size
        if any(h > height or w > width for h, w in pairs):
            raise ValueError(f"{name}: expected scales within {(height, width)}, got {pairs}")
        if ends_full and pairs[-1] != (height, width):
            raise ValueError(f"{name}: expected the last scale to be {(height, width)}, got {pairs[-1]}")
    return [int(side) for pair in pairs for side in pair]


def _check_planes(name: str, argument: str, x: Tensor) -> None:
    check_float(name, argument, x)
    if x.ndim != 5 or x.shape[-1] < 1:
        raise ValueError(f"{name}: expected {argument} of shape (B, T, H, W, d >= 1), got {tuple(x.shape)}")


def pyramid_encode(
    z: Tensor,
    scales: Sequence[Scale],
    *,
    flip_p: float | Tensor | None = None,
    seed: int | None = None,
    offset: int = 0,
    inherit: bool = True,
) -> Pyramid:
    """Quantize every frame scale by scale, with random flips that later scales learn to correct.

    Args:
        z: (B, T, H, W, d), float32, float64, bfloat16 or float16, d contiguous.
        scales: K pairs (h, w), coarse to fine; the last is (H, W). N = sum of h * w.
        flip_p: probability that a label is flipped before it is summed: a float, or a tensor broadcastable to
            (B, T, K); None: no flips.
        seed: 64-bit key of the random generator; needed with flip_p.
        offset: 64-bit second half of its counter (for example the training step).
        inherit: whether the next frame starts from the flipped sum, or from the sum of an encoding without flips.
    Returns:
        Pyramid(labels uint8 (B, T, N, ceil(d / 8)), inputs (B, T, N, d), total (B, T, H, W, d)); the floats are of
        z's dtype. Labels are never flipped themselves, but each is taken against the flipped sum below it. The input
        of scale k > 1 is the sum of the scales below it, down-sampled; that of scale 1 is the previous frame's sum
        (zeros for frame 0). Bit j of token n is element (b, t, n, j) of the row-major (B, T, N, d) for the generator.
        `total` has a straight-through gradient: sum over scales of down^T(up^T(grad)); labels and inputs have none.
        Labels equal the reference's exactly except where a residual is zero up to rounding.
    Raises:
        TypeError, ValueError: dtype, shape or scales; flip_p without seed.
    Source: VideoAR (paper S), Eq. 3 and 8. Nothing is saved for backward.
    """
    _check_planes("pyramid_encode", "z", z)
    flat = _flat("pyramid_encode", scales, z.shape[2:4], ends_full=True)
    shape = (z.shape[0], z.shape[1], len(scales))
    if flip_p is not None:
        if seed is None:
            raise ValueError("pyramid_encode: expected a seed with flip_p, got None")
        check_probability("pyramid_encode", flip_p)
        if not isinstance(flip_p, Tensor):
            flip_p = torch.full((1, 1, 1), flip_p, dtype=torch.float64, device=z.device)
        try:
            flip_p = flip_p.detach().to(z.device, torch.float64).expand(shape)
        except RuntimeError:
            raise ValueError(
                f"pyramid_encode: expected flip_p broadcastable to {shape}, got {tuple(flip_p.shape)}"
            ) from None
    seed, offset = signed64("pyramid_encode", "seed", seed or 0), signed64("pyramid_encode", "offset", offset)
    total, inputs, labels = ops.pyramid_encode(z, flat, flip_p, seed, offset, inherit)
    return Pyramid(labels, inputs, total)


def pyramid_decode(
    bits: Tensor,
    scales: Sequence[Scale],
    *,
    dim: int | None = None,
    keep: int | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sum up the codes of packed bits.

    Args:
        bits: uint8 (B, T, N, ceil(dim / 8)).
        scales: K pairs (h, w), coarse to fine; the last is the size of the result.
        dim: bits a token, by default eight per byte.
        keep: how many scales to sum, from the coarsest: an int, or an integer tensor (B,) or (B, T); None: all.
        dtype: of the result.
    Returns:
        (B, T, H, W, dim). No gradient.
    Raises:
        TypeError, ValueError: dtypes, shapes or scales.
    Source: VideoAR (paper S), Eq. 2.
    """
    dim = check_packed("pyramid_decode", bits, dim)
    if dim < 1:
        raise ValueError(f"pyramid_decode: expected dim >= 1, got {dim}")
    flat = _flat("pyramid_decode", scales, scales[-1] if len(scales) else None)
    tokens = sum(h * w for h, w in scales)
    if bits.ndim != 4 or bits.shape[2] != tokens:
        raise ValueError(f"pyramid_decode: expected bits of shape (B, T, {tokens}, bytes), got {tuple(bits.shape)}")
    if keep is not None:
        if not isinstance(keep, Tensor):
            if not 0 <= keep <= len(scales):
                raise ValueError(f"pyramid_decode: expected keep within [0, {len(scales)}], got {keep}")
            keep = torch.full((1, 1), keep, dtype=torch.int64, device=bits.device)
        if keep.ndim > 2 or keep.is_floating_point():
            raise ValueError(f"pyramid_decode: expected keep as integers (B,) or (B, T), got {tuple(keep.shape)}")
        keep = keep.reshape(keep.shape + (1,) * (2 - keep.ndim)).to(bits.device, torch.int64)
        try:
            keep = keep.expand(bits.shape[:2])
        except RuntimeError:
            raise ValueError(
                f"pyramid_decode: expected keep broadcastable to {tuple(bits.shape[:2])}, got {tuple(keep.shape)}"
            ) from None
    return ops.pyramid_decode(bits, flat, dim, keep, dtype)


def pyramid_resample(x: Tensor, scales: Sequence[Scale]) -> Tensor:
    """Down-sample every frame to every scale.

    Args:
        x: (B, T, H, W, d), float32, float64, bfloat16 or float16, d contiguous.
        scales: pairs (h, w) within (H, W), in any order. N = sum of h * w.
    Returns:
        (B, T, N, d) of x's dtype; differentiable.
    Raises:
        TypeError, ValueError: dtype, shape or scales.
    """
    _check_planes("pyramid_resample", "x", x)
    return ops.pyramid_resample(x, _flat("pyramid_resample", scales, x.shape[2:4]))


def pyramid_step(total: Tensor, bits: Tensor, scale: Scale, next_scale: Scale | None = None) -> Step:
    """Add one scale's bits to the sum: the step of sampling.

    Args:
        total: (B, H, W, d), float32, float64, bfloat16 or float16; the sum so far, rounded to its dtype at each step.
        bits: uint8 (B, h * w, ceil(d / 8)).
        scale: (h, w) of the bits.
        next_scale: (h', w') to down-sample the new sum to, if any.
    Returns:
        Step(total (B, H, W, d), input (B, h' * w', d) or None), of total's dtype. No gradient.
    Raises:
        TypeError, ValueError: dtypes, shapes or scales.
    Source: VideoAR (paper S), Eq. 2.
    """
    check_float("pyramid_step", "total", total)
    if total.ndim != 4 or total.shape[-1] < 1:
        raise ValueError(f"pyramid_step: expected total of shape (B, H, W, d >= 1), got {tuple(total.shape)}")
    check_packed("pyramid_step", bits, total.shape[-1])
    pair = [scale] if next_scale is None else [scale, next_scale]
    flat = _flat("pyramid_step", pair, total.shape[1:3])
    expected = (total.shape[0], flat[0] * flat[1], bits.shape[-1])
    if bits.shape != expected:
        raise ValueError(f"pyramid_step: expected bits of shape {expected}, got {tuple(bits.shape)}")
    result, following = ops.pyramid_step(total.detach(), bits, flat)
    return Step(result, None if next_scale is None else following)


def _save_encode(ctx, inputs, output):
    ctx.scales = inputs[1]
    ctx.mark_non_differentiable(*output[1:])


def _encode_gradient(ctx, grad_total, grad_inputs, grad_labels):
    return ops.pyramid_encode_backward(grad_total, ctx.scales), None, None, None, None, None


def _save_resample(ctx, inputs, output):
    ctx.scales, ctx.size = inputs[1], inputs[0].shape[2:4]


def _resample_gradient(ctx, grad):
    return ops.pyramid_resample_backward(grad, ctx.scales, *ctx.size), None


torch.library.register_autograd("videoar_kernels::pyramid_encode", _encode_gradient, setup_context=_save_encode)
torch.library.register_autograd("videoar_kernels::pyramid_resample", _resample_gradient, setup_context=_save_resample)


def _pairs(flat: Sequence[int]) -> list[Scale]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _tokens(flat: Sequence[int]) -> int:
    return sum(h * w for h, w in _pairs(flat))


@register_fake("videoar_kernels::pyramid_encode")
def _(z, scales, flip_p, seed, offset, inherit):
    tokens = (*z.shape[:2], _tokens(scales))
    labels = z.new_empty((*tokens, (z.shape[-1] + 7) // 8), dtype=torch.uint8)
    return z.new_empty(z.shape), z.new_empty((*tokens, z.shape[-1])), labels


@register_fake("videoar_kernels::pyramid_encode_backward")
def _(grad_total, scales):
    return grad_total.new_empty(grad_total.shape)


@register_fake("videoar_kernels::pyramid_decode")
def _(bits, scales, dim, keep, dtype):
    return bits.new_empty((*bits.shape[:2], *scales[-2:], dim), dtype=dtype)


@register_fake("videoar_kernels::pyramid_resample")
def _(x, scales):
    return x.new_empty((*x.shape[:2], _tokens(scales), x.shape[-1]))


@register_fake("videoar_kernels::pyramid_resample_backward")
def _(grad, scales, height, width):
    return grad.new_empty((*grad.shape[:2], height, width, grad.shape[-1]))


@register_fake("videoar_kernels::pyramid_step")
def _(total, bits, scales):
    following = total.new_empty((total.shape[0], _tokens(scales[2:]), total.shape[-1]))
    return total.new_empty(total.shape), following


def _reference_encode(z, scales, flip_p, seed, offset, inherit):
    options = {"flip_p": flip_p, "seed": seed, "offset": offset, "inherit": inherit}
    labels, inputs, total = reference.pyramid.pyramid_encode(z, _pairs(scales), **options)
    return total, inputs, labels


def _reference_encode_backward(grad_total, scales):
    with torch.enable_grad():
        z = torch.zeros_like(grad_total, requires_grad=True)
        total = reference.pyramid.pyramid_encode(z, _pairs(scales)).total
        return torch.autograd.grad(total, z, grad_total)[0]


def _reference_decode(bits, scales, dim, keep, dtype):
    return reference.pyramid.pyramid_decode(bits, _pairs(scales), dim=dim, keep=keep, dtype=dtype)


def _reference_resample(x, scales):
    return reference.pyramid.pyramid_resample(x, _pairs(scales))


def _reference_resample_backward(grad, scales, height, width):
    with torch.enable_grad():
        x = grad.new_zeros((*grad.shape[:2], height, width, grad.shape[-1])).requires_grad_()
        return torch.autograd.grad(_reference_resample(x, scales), x, grad)[0]


def _reference_step(total, bits, scales):
    result, following = reference.pyramid.pyramid_step(total, bits, *_pairs(scales))
    empty = total.new_empty((total.shape[0], 0, total.shape[-1]))
    return result, empty if following is None else following


register_fallback("pyramid_encode", _reference_encode)
register_fallback("pyramid_encode_backward", _reference_encode_backward)
register_fallback("pyramid_decode", _reference_decode)
register_fallback("pyramid_resample", _reference_resample)
register_fallback("pyramid_resample_backward", _reference_resample_backward)
register_fallback("pyramid_step", _reference_step)
