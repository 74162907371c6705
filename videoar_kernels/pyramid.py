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
from videoar_kernels.bit_checks import check_probability, expanded, signed64
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into
from videoar_kernels.outputs import NO_INPUTS, check_dense_out
from videoar_kernels.pyramid_checks import (
    check_planes,
    check_scales,
    flat,
    pairs,
    token_count,
)
from videoar_kernels.reference.pyramid import Pyramid, Scale


def pyramid_encode(
    z: Tensor,
    scales: Sequence[Scale],
    *,
    flip_p: float | Tensor | None = None,
    seed: int | None = None,
    offset: int = 0,
    inherit: bool = True,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
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
        out: (labels, inputs, total) to write to, dense; `total` may be z itself. At inference only.
    Returns:
        Pyramid(labels uint8 (B, T, N, ceil(d / 8)), inputs (B, T, N, d), total (B, T, H, W, d)); the floats are of
        z's dtype. Labels are never flipped themselves, but each is taken against the flipped sum below it. The input
        of scale k > 1 is the sum of the scales below it, down-sampled; that of scale 1 is the previous frame's sum
        (zeros for frame 0). Bit j of token n is element (b, t, n, j) of the row-major (B, T, N, d) for the generator.
        `total` has a straight-through gradient: sum over scales of down^T(up^T(grad)); labels and inputs have none.
        Labels equal the reference's exactly except where a residual is zero up to rounding.
    Raises:
        TypeError, ValueError: dtype, shape or scales; flip_p without seed or outside [0, 1] (a tensor's values are
            looked at on the CPU only); `out` does not fit.
    Source: VideoAR (paper S), Eq. 3 and 8. Nothing is saved for backward.
    """

    flips, table = (), None

    def check() -> None:
        check_planes("pyramid_encode", "z", z)
        check_scales("pyramid_encode", scales, z.shape[2:4], ends_full=True)
        if flip_p is not None:
            check_probability("pyramid_encode", flip_p if table is None else table)
        if out is not None:
            _check_encoded(z, scales, *out)

    if flip_p is not None:
        if seed is None:
            raise ValueError("pyramid_encode: expected a seed with flip_p, got None")
        if isinstance(flip_p, Tensor):
            check_planes("pyramid_encode", "z", z)
            shape = (z.shape[0], z.shape[1], len(flat(scales)) // 2)
            table = expanded("pyramid_encode", "flip_p", flip_p, shape, torch.float64, z.device)
        key, counter = signed64("pyramid_encode", "seed", seed), signed64("pyramid_encode", "offset", offset)
        flips = (flip_p if table is None else 0.0, table, key, counter, inherit)
    if out is None:
        total, inputs, labels = run(ops.pyramid_encode.default, check, z, flat(scales), *flips)
        return Pyramid(labels, inputs, total)
    run_into(out, ops.pyramid_encode_out.default, check, z, flat(scales), *out, *flips)
    return Pyramid(*out)


def _check_encoded(z: Tensor, scales: Sequence[Scale], labels: Tensor, inputs: Tensor, total: Tensor) -> None:
    name, tokens, dim = "pyramid_encode", (*z.shape[:2], token_count(flat(scales))), z.shape[-1]
    check_dense_out(name, "total of out", total, z.shape, z.dtype, {"z": z})
    others = {"z": z, "total of out": total}
    check_dense_out(name, "inputs of out", inputs, (*tokens, dim), z.dtype, NO_INPUTS, others)
    others["inputs of out"] = inputs
    check_dense_out(name, "labels of out", labels, (*tokens, (dim + 7) // 8), torch.uint8, NO_INPUTS, others)


def pyramid_resample(x: Tensor, scales: Sequence[Scale], *, out: Tensor | None = None) -> Tensor:
    """Down-sample every frame to every scale.

    Args:
        x: (B, T, H, W, d), float32, float64, bfloat16 or float16, d contiguous.
        scales: pairs (h, w) within (H, W), in any order. N = sum of h * w.
        out: (B, T, N, d) of x's dtype to write to, dense. At inference only.
    Returns:
        (B, T, N, d) of x's dtype; differentiable.
    Raises:
        TypeError, ValueError: dtype, shape or scales; `out` does not fit.
    """

    def check() -> None:
        check_planes("pyramid_resample", "x", x)
        check_scales("pyramid_resample", scales, x.shape[2:4])
        if out is not None:
            shape = (*x.shape[:2], token_count(flat(scales)), x.shape[-1])
            check_dense_out("pyramid_resample", "out", out, shape, x.dtype, NO_INPUTS, {"x": x})

    if out is None:
        return run(ops.pyramid_resample.default, check, x, flat(scales))
    run_into(out, ops.pyramid_resample_out.default, check, x, flat(scales), out)
    return out


def _save_encode(ctx, inputs, output):
    ctx.scales, ctx.others = inputs[1], len(inputs) - 1
    ctx.mark_non_differentiable(*output[1:])


def _encode_gradient(ctx, grad_total, grad_inputs, grad_labels):
    return ops.pyramid_encode_backward(grad_total, ctx.scales), *(ctx.others * [None])


def _save_resample(ctx, inputs, output):
    ctx.scales, ctx.size = inputs[1], inputs[0].shape[2:4]


def _resample_gradient(ctx, grad):
    return ops.pyramid_resample_backward(grad, ctx.scales, *ctx.size), None


torch.library.register_autograd("videoar_kernels::pyramid_encode", _encode_gradient, setup_context=_save_encode)
torch.library.register_autograd("videoar_kernels::pyramid_resample", _resample_gradient, setup_context=_save_resample)


@register_fake("videoar_kernels::pyramid_encode")
def _(z, scales, *flips):
    tokens = (*z.shape[:2], token_count(scales))
    labels = z.new_empty((*tokens, (z.shape[-1] + 7) // 8), dtype=torch.uint8)
    return z.new_empty(z.shape), z.new_empty((*tokens, z.shape[-1])), labels


@register_fake("videoar_kernels::pyramid_encode_out")
def _(z, scales, labels, inputs, total, *flips):
    return None


@register_fake("videoar_kernels::pyramid_encode_backward")
def _(grad_total, scales):
    return grad_total.new_empty(grad_total.shape)


@register_fake("videoar_kernels::pyramid_resample")
def _(x, scales):
    return x.new_empty((*x.shape[:2], token_count(scales), x.shape[-1]))


@register_fake("videoar_kernels::pyramid_resample_out")
def _(x, scales, out):
    return None


@register_fake("videoar_kernels::pyramid_resample_backward")
def _(grad, scales, height, width):
    return grad.new_empty((*grad.shape[:2], height, width, grad.shape[-1]))


def _reference_encode(z, scales, flip_p=0.0, flip_table=None, seed=0, offset=0, inherit=True):
    options = {"flip_p": flip_p if flip_table is None else flip_table, "inherit": inherit}
    labels, inputs, total = reference.pyramid.pyramid_encode(z, pairs(scales), seed=seed, offset=offset, **options)
    return total, inputs, labels


def _reference_encode_out(z, scales, labels, inputs, total, *flips):
    for to, result in zip((total, inputs, labels), _reference_encode(z, scales, *flips), strict=True):
        to.copy_(result)


def _reference_encode_backward(grad_total, scales):
    with torch.enable_grad():
        z = torch.zeros_like(grad_total, requires_grad=True)
        total = reference.pyramid.pyramid_encode(z, pairs(scales)).total
        return torch.autograd.grad(total, z, grad_total)[0]


def _reference_resample(x, scales):
    return reference.pyramid.pyramid_resample(x, pairs(scales))


def _reference_resample_out(x, scales, out):
    out.copy_(_reference_resample(x, scales))


def _reference_resample_backward(grad, scales, height, width):
    with torch.enable_grad():
        x = grad.new_zeros((*grad.shape[:2], height, width, grad.shape[-1])).requires_grad_()
        return torch.autograd.grad(_reference_resample(x, scales), x, grad)[0]


register_fallback("pyramid_encode", _reference_encode)
register_fallback("pyramid_encode_out", _reference_encode_out)
register_fallback("pyramid_encode_backward", _reference_encode_backward)
register_fallback("pyramid_resample", _reference_resample)
register_fallback("pyramid_resample_out", _reference_resample_out)
register_fallback("pyramid_resample_backward", _reference_resample_backward)
