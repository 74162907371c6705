"""Cross-entropy of packed bits.

    entropy = mean over bits of softplus(logit) - bit * logit,  its gradient: sigmoid(logit) - bit

Source: Infinity (Han et al. 2024), Sec. 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.argument_types import check_tensor, whole
from videoar_kernels.bit_checks import check_float, check_packed, expanded
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run
from videoar_kernels.reference.bits import BitLoss

# Looking an overload up takes 0.2 us.
_BIT_CROSS_ENTROPY = ops.bit_cross_entropy.default


def bit_cross_entropy(
    logits: Tensor,
    bits: Tensor,
    *,
    weight: Tensor | None = None,
    scale_ids: Tensor | None = None,
    num_scales: int = 1,
    dim: int | None = None,
) -> BitLoss:
    """Return the bit-wise cross-entropy straight from packed bits, in nats.

    Args:
        logits: (..., d), float32, float64, bfloat16 or float16.
        bits: uint8 (..., ceil(d / 8)), same leading dimensions.
        weight: per token, broadcastable to `logits.shape[:-1]`; None: ones. Gets no gradient.
        scale_ids: integer, broadcastable to `logits.shape[:-1]`, the scale of each token in [0, num_scales).
        num_scales: length of the per-scale results, at most 65536; on a GPU 1600.
        dim: d, if given it must equal `logits.shape[-1]`.
    Returns:
        BitLoss(loss (), per_scale (num_scales,), accuracy (), per_scale_accuracy (num_scales,)), float32 (float64
        for float64): weighted means over tokens of the mean over bits; accuracy is the share of bits with
        (logit > 0) == bit. NaN where there are no tokens. `loss` and `per_scale` are differentiable. Up
        to 1536 bits are summed in float32 (float64 for float64), these sums in float64, all in one order, so the thread
        count changes nothing.
    Raises:
        TypeError, ValueError: dtypes, shapes or num_scales do not fit; scale_ids are not integers in [0, num_scales)
            (their values are looked at on the CPU only: elsewhere that would wait for the device).
    Source: Infinity, Sec. 3.2. Saved for backward: logits, bits and the weights.
    """

    ids = None
    if not (weight is None and scale_ids is None and dim is None):
        _check(logits, bits, dim, num_scales)
        if weight is not None:
            tokens = logits.shape[:-1]
            weight = expanded("bit_cross_entropy", "weight", weight, tokens, torch.float64, logits.device)
        if scale_ids is not None:
            ids = _token_ids(scale_ids, logits, num_scales)

    def check() -> None:
        _check(logits, bits, dim, num_scales)
        _check_ids(scale_ids, num_scales)

    loss, per_scale, accuracy, per_scale_accuracy, _ = run(
        _BIT_CROSS_ENTROPY, check, logits, bits, weight, ids, num_scales
    )
    return BitLoss(loss, per_scale, accuracy, per_scale_accuracy)


def _token_ids(scale_ids: Tensor, logits: Tensor, num_scales: int) -> Tensor:
    """Return an int32 id per token; one out of range stays so."""
    check_tensor("bit_cross_entropy", "scale_ids", scale_ids)
    if scale_ids.dtype.is_floating_point or scale_ids.dtype.is_complex or scale_ids.dtype == torch.bool:
        raise TypeError(f"bit_cross_entropy: expected scale_ids of an integer dtype, got {scale_ids.dtype}")
    if scale_ids.dtype != torch.int32:
        scale_ids = scale_ids.long().clamp(-1, num_scales)
    return expanded("bit_cross_entropy", "scale_ids", scale_ids, logits.shape[:-1], torch.int32, logits.device)


def _check_ids(scale_ids: Tensor | None, num_scales: int) -> None:
    if scale_ids is not None and scale_ids.is_cpu and not torch.compiler.is_compiling():
        scale_ids = scale_ids.long()  # not all integers can be compared
        outside = scale_ids[(scale_ids < 0) | (scale_ids >= num_scales)]
        if outside.numel():
            raise ValueError(
                f"bit_cross_entropy: expected scale_ids in [0, num_scales) = [0, {num_scales}), "
                f"got {outside.flatten()[0].item()}"
            )


def _check(logits: Tensor, bits: Tensor, dim: int | None, num_scales: int) -> None:
    check_float("bit_cross_entropy", "logits", logits)
    if not 1 <= whole("bit_cross_entropy", "num_scales", num_scales) <= 2**16:
        raise ValueError(f"bit_cross_entropy: expected num_scales in [1, 2**16], got {num_scales}")
    if dim is not None and dim != logits.shape[-1]:
        raise ValueError(f"bit_cross_entropy: expected dim {logits.shape[-1]}, got {dim}")
    check_packed("bit_cross_entropy", bits, logits.shape[-1], like=logits)
    tokens = logits.shape[:-1]
    if bits.shape[:-1] != tokens:
        expected = (*tokens, bits.shape[-1])
        raise ValueError(f"bit_cross_entropy: expected bits of shape {expected}, got {tuple(bits.shape)}")


def _save_entropy(ctx, inputs, output):
    logits, bits, weight, scale_ids, _ = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(logits, bits, weight, scale_ids, output[4])


def _entropy_gradient(ctx, grad_loss, grad_per_scale, *unused):
    logits, bits, weight, scale_ids, totals = ctx.saved_tensors
    grad = ops.bit_cross_entropy_backward(grad_loss, grad_per_scale, logits, bits, weight, scale_ids, totals)
    return grad, None, None, None, None


torch.library.register_autograd("videoar_kernels::bit_cross_entropy", _entropy_gradient, setup_context=_save_entropy)


@register_fake("videoar_kernels::bit_cross_entropy")
def _(logits, bits, weight, scale_ids, num_scales):
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    mean, scales = logits.new_empty((), dtype=wide), logits.new_empty((num_scales,), dtype=wide)
    totals = logits.new_empty((num_scales,), dtype=torch.float64)
    return mean, scales, torch.empty_like(mean), torch.empty_like(scales), totals


@register_fake("videoar_kernels::bit_cross_entropy_backward")
def _(grad_loss, grad_per_scale, logits, bits, weight, scale_ids, totals):
    return logits.new_empty(logits.shape)


def _reference_entropy(logits, bits, weight, scale_ids, num_scales):
    result = reference.bits.bit_cross_entropy(logits, bits, weight=weight, scale_ids=scale_ids, num_scales=num_scales)
    ones = torch.ones(logits.shape[:-1], dtype=torch.float64, device=logits.device) if weight is None else weight
    ids = torch.zeros_like(ones, dtype=torch.int64) if scale_ids is None else scale_ids.long()
    totals = ones.new_zeros(num_scales).index_add(0, ids.flatten(), ones.flatten())
    return (*result, totals)


def _reference_entropy_backward(grad_loss, grad_per_scale, logits, bits, weight, scale_ids, totals):
    # A mean of no weight is no number and has no gradient; autograd through its division would make NaN of all.
    whole, zero = totals.sum(), totals.new_zeros(())
    own = torch.where(totals == 0, zero, grad_per_scale / totals)
    coefficient = (torch.where(whole == 0, zero, grad_loss / whole) + own) / max(logits.shape[-1], 1)
    tokens = logits.shape[:-1]
    ids = torch.zeros(tokens, dtype=torch.int64, device=logits.device) if scale_ids is None else scale_ids.long()
    token = coefficient[ids] if weight is None else coefficient[ids] * weight
    ones = reference.bits.unpack_bits(bits, logits.shape[-1])
    return ((logits.double().sigmoid() - ones.double()) * token.unsqueeze(-1)).to(logits.dtype)


register_fallback("bit_cross_entropy", _reference_entropy)
register_fallback("bit_cross_entropy_backward", _reference_entropy_backward)
