"""Packed bits of binary spherical quantization.

    bit = x > 0,  code = (2 bit - 1) / sqrt(d)
    flip: bit xor [uniform < p],  sample: bit = uniform < sigmoid(logit / temperature)
    cross-entropy: mean over bits of softplus(logit) - bit * logit

Packed bits are uint8 (..., ceil(d / 8)): bit j of a token is bit `j mod 8` of byte `j div 8`, padding bits are zero.
Uniforms are Philox 4x32-10 of the logical element (`reference/philox.py`), so a seed gives the same bits everywhere.
Source: VideoAR (paper S), Eq. 3 and 8; BSQ (Zhao et al. 2024); Infinity (Han et al. 2024), Sec. 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops
from videoar_kernels.reference.bits import BSQ, BitLoss, SampledBits

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_float(name: str, argument: str, x: Tensor) -> None:
    """Raise TypeError unless x is of a supported floating type."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected {argument} of float32, float64, bfloat16 or float16, got {x.dtype}")


def check_packed(name: str, bits: Tensor, dim: int | None) -> int:
    """Return the number of bits a token; raise unless `bits` can hold them."""
    if bits.dtype != torch.uint8:
        raise TypeError(f"{name}: expected bits of torch.uint8, got {bits.dtype}")
    if bits.ndim == 0:
        raise ValueError(f"{name}: expected bits of shape (..., ceil(dim / 8)), got ()")
    if dim is None:
        return 8 * bits.shape[-1]
    if (dim + 7) // 8 != bits.shape[-1]:
        raise ValueError(
            f"{name}: expected bits of shape (..., {(dim + 7) // 8}) for dim {dim}, got {tuple(bits.shape)}"
        )
    return dim


def signed64(value: int) -> int:
    """Return a 64-bit pattern as the signed integer that operators take."""
    if -(2**63) <= value < 2**63:
        return value
    return (value + 2**63) % 2**64 - 2**63


def _per_token(name: str, argument: str, x: Tensor, tokens: torch.Size, dtype: torch.dtype) -> Tensor:
    try:
        return x.detach().to(dtype).expand(tokens)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected {argument} broadcastable to {tuple(tokens)}, got {tuple(x.shape)}"
        ) from None


def bsq_quantize(x: Tensor) -> BSQ:
    """Quantize each element to its sign.

    Args:
        x: (..., d), float32, float64, bfloat16 or float16. Its norm does not matter.
    Returns:
        BSQ(bits uint8 (..., ceil(d / 8)), code (..., d) of x's dtype, ±1/sqrt(d)). Zero and NaN map to bit 0. The
        gradient of `code` is passed to x unchanged (straight-through).
    Raises:
        TypeError: x is not floating.
    Source: VideoAR (paper S), Sec. 4.1; BSQ, Eq. 3.
    """
    check_float("bsq_quantize", "x", x)
    code, bits = ops.bsq_quantize(x)
    return BSQ(bits, code)


def pack_bits(bits: Tensor) -> Tensor:
    """Pack eight bits a byte.

    Args:
        bits: (..., d), bool or uint8; anything but zero is a one.
    Returns:
        uint8 (..., ceil(d / 8)), little-endian, padding bits zero.
    Raises:
        TypeError: another dtype.
    """
    if bits.dtype not in (torch.bool, torch.uint8):
        raise TypeError(f"pack_bits: expected bits of torch.bool or torch.uint8, got {bits.dtype}")
    return ops.pack_bits(bits)


def unpack_bits(bits: Tensor, dim: int | None = None) -> Tensor:
    """Unpack eight bits a byte.

    Args:
        bits: uint8 (..., ceil(dim / 8)).
        dim: bits a token, by default eight per byte.
    Returns:
        bool (..., dim).
    Raises:
        TypeError, ValueError: `bits` is not uint8, or does not fit `dim`.
    """
    return ops.unpack_bits(bits, check_packed("unpack_bits", bits, dim))


def bits_to_code(bits: Tensor, dim: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the code of packed bits.

    Args:
        bits: uint8 (..., ceil(dim / 8)).
        dim: bits a token, by default eight per byte.
        dtype: of the result.
    Returns:
        (..., dim), ±1/sqrt(dim).
    Raises:
        TypeError, ValueError: `bits` is not uint8, or does not fit `dim`.
    Source: BSQ, Eq. 3.
    """
    return ops.bits_to_code(bits, check_packed("bits_to_code", bits, dim), dtype)


def flip_bits(bits: Tensor, p: float | Tensor, *, seed: int, offset: int = 0, dim: int | None = None) -> Tensor:
    """Flip each bit independently with probability p.

    Args:
        bits: uint8 (..., ceil(dim / 8)).
        p: probability: a float, or a tensor over the *leading* token dimensions: () for all, (B,) per sample,
            `bits.shape[:-1]` per token. Compared with the uniform in float64.
        seed: 64-bit key of the random generator.
        offset: 64-bit second half of its counter (for example the training step).
        dim: bits a token, by default eight per byte. Element `token * dim + j` draws its own uniform.
    Returns:
        uint8 like `bits`, padding bits zero.
    Raises:
        TypeError, ValueError: `bits` is not uint8 or does not fit `dim`; p does not fit the token dimensions.
    Source: VideoAR (paper S), Eq. 8.
    """
    dim = check_packed("flip_bits", bits, dim)
    token_p = None
    if isinstance(p, Tensor):
        tokens = bits.shape[:-1]
        if p.ndim > len(tokens):
            raise ValueError(
                f"flip_bits: expected p over the leading dimensions of {tuple(tokens)}, got {tuple(p.shape)}"
            )
        p = p.reshape(p.shape + (1,) * (len(tokens) - p.ndim))
        token_p, p = _per_token("flip_bits", "p", p, tokens, torch.float64), 0.0
    return ops.flip_bits(bits, p, token_p, dim, signed64(seed), signed64(offset))


def sample_bits(
    logits: Tensor,
    *,
    uncond: Tensor | None = None,
    guidance: float | Tensor = 1.0,
    temperature: float = 1.0,
    seed: int,
    offset: int = 0,
) -> SampledBits:
    """Draw one bit per logit, with classifier-free guidance, in one pass.

    Args:
        logits: (..., d), one logit per bit, float32, float64, bfloat16 or float16.
        uncond: like logits, the unconditional ones; None: no guidance.
        guidance: logit = uncond + guidance * (logits - uncond); a float, or a tensor broadcastable to
            `logits.shape[:-1]`.
        temperature: p = sigmoid(logit / temperature); 0 is greedy, bit = logit > 0.
        seed: 64-bit key of the random generator.
        offset: 64-bit second half of its counter (for example the sampling step).
    Returns:
        SampledBits(bits uint8 (..., ceil(d / 8)), code (..., d) of logits' dtype). bit = uniform < p, decided as if
        in float64 whatever the dtype. A NaN logit gives bit 0. No gradient.
    Raises:
        TypeError, ValueError: dtype, shape or temperature.
    Source: Infinity, Sec. 3.2; VideoAR (paper S), Sec. 4.3.
    """
    check_float("sample_bits", "logits", logits)
    if uncond is not None and (uncond.shape != logits.shape or uncond.dtype != logits.dtype):
        raise ValueError(
            f"sample_bits: expected uncond like logits {tuple(logits.shape)} {logits.dtype}, "
            f"got {tuple(uncond.shape)} {uncond.dtype}"
        )
    if not temperature >= 0:
        raise ValueError(f"sample_bits: expected temperature >= 0, got {temperature}")
    token_guidance = None
    if isinstance(guidance, Tensor):
        token_guidance = _per_token("sample_bits", "guidance", guidance, logits.shape[:-1], torch.float64)
        guidance = 1.0
    uncond = None if uncond is None else uncond.detach()
    seed, offset = signed64(seed), signed64(offset)
    code, bits = ops.sample_bits(logits.detach(), uncond, guidance, token_guidance, temperature, seed, offset)
    return SampledBits(bits, code)


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
        num_scales: length of the per-scale results.
        dim: d, if given it must equal `logits.shape[-1]`.
    Returns:
        BitLoss(loss (), per_scale (num_scales,), accuracy (), per_scale_accuracy (num_scales,)), float32 (float64
        for float64): weighted means over tokens of the mean over bits; accuracy is the share of bits with
        (logit > 0) == bit. NaN where there are no tokens. `loss` and `per_scale` are differentiable. Rows are summed
        in float64 in one order, so the thread count changes nothing.
    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.
    Source: Infinity, Sec. 3.2. Saved for backward: logits, bits and the weights.
    """
    check_float("bit_cross_entropy", "logits", logits)
    if dim is not None and dim != logits.shape[-1]:
        raise ValueError(f"bit_cross_entropy: expected dim {logits.shape[-1]}, got {dim}")
    check_packed("bit_cross_entropy", bits, logits.shape[-1])
    tokens = logits.shape[:-1]
    if bits.shape[:-1] != tokens:
        expected = (*tokens, bits.shape[-1])
        raise ValueError(f"bit_cross_entropy: expected bits of shape {expected}, got {tuple(bits.shape)}")
    if weight is not None:
        weight = _per_token("bit_cross_entropy", "weight", weight, tokens, torch.float64)
    if scale_ids is not None:
        scale_ids = _per_token("bit_cross_entropy", "scale_ids", scale_ids, tokens, torch.int32)
    return BitLoss(*ops.bit_cross_entropy(logits, bits, weight, scale_ids, num_scales)[:4])


def _save_quantize(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])


def _quantize_gradient(ctx, grad_code, grad_bits):
    return grad_code


def _save_entropy(ctx, inputs, output):
    logits, bits, weight, scale_ids, _ = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(logits, bits, weight, scale_ids, output[4])


def _entropy_gradient(ctx, grad_loss, grad_per_scale, *unused):
    logits, bits, weight, scale_ids, totals = ctx.saved_tensors
    grad = ops.bit_cross_entropy_backward(grad_loss, grad_per_scale, logits, bits, weight, scale_ids, totals)
    return grad, None, None, None, None


torch.library.register_autograd("videoar_kernels::bsq_quantize", _quantize_gradient, setup_context=_save_quantize)
torch.library.register_autograd("videoar_kernels::bit_cross_entropy", _entropy_gradient, setup_context=_save_entropy)


def _packed_like(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], (x.shape[-1] + 7) // 8), dtype=torch.uint8)


@torch.library.register_fake("videoar_kernels::bsq_quantize")
def _(x):
    return x.new_empty(x.shape), _packed_like(x)


@torch.library.register_fake("videoar_kernels::pack_bits")
def _(ones):
    return _packed_like(ones)


@torch.library.register_fake("videoar_kernels::unpack_bits")
def _(bits, dim):
    return bits.new_empty((*bits.shape[:-1], dim), dtype=torch.bool)


@torch.library.register_fake("videoar_kernels::bits_to_code")
def _(bits, dim, dtype):
    return bits.new_empty((*bits.shape[:-1], dim), dtype=dtype)


@torch.library.register_fake("videoar_kernels::flip_bits")
def _(bits, p, token_p, dim, seed, offset):
    return bits.new_empty(bits.shape)


@torch.library.register_fake("videoar_kernels::sample_bits")
def _(logits, uncond, guidance, token_guidance, temperature, seed, offset):
    return logits.new_empty(logits.shape), _packed_like(logits)


@torch.library.register_fake("videoar_kernels::bit_cross_entropy")
def _(logits, bits, weight, scale_ids, num_scales):
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    mean, scales = logits.new_empty((), dtype=wide), logits.new_empty((num_scales,), dtype=wide)
    totals = logits.new_empty((num_scales,), dtype=torch.float64)
    return mean, scales, torch.empty_like(mean), torch.empty_like(scales), totals


@torch.library.register_fake("videoar_kernels::bit_cross_entropy_backward")
def _(grad_loss, grad_per_scale, logits, bits, weight, scale_ids, totals):
    return logits.new_empty(logits.shape)


def _reference_flip(bits, p, token_p, dim, seed, offset):
    return reference.bits.flip_bits(bits, p if token_p is None else token_p, seed=seed, offset=offset, dim=dim)


def _reference_sample(logits, uncond, guidance, token_guidance, temperature, seed, offset):
    guidance = guidance if token_guidance is None else token_guidance
    options = {"guidance": guidance, "temperature": temperature, "seed": seed, "offset": offset}
    bits, code = reference.bits.sample_bits(logits, uncond=uncond, **options)
    return code, bits


def _reference_entropy(logits, bits, weight, scale_ids, num_scales):
    result = reference.bits.bit_cross_entropy(logits, bits, weight=weight, scale_ids=scale_ids, num_scales=num_scales)
    ones = torch.ones(logits.shape[:-1], dtype=torch.float64, device=logits.device) if weight is None else weight
    ids = torch.zeros_like(ones, dtype=torch.int64) if scale_ids is None else scale_ids.long()
    totals = ones.new_zeros(num_scales).index_add(0, ids.flatten(), ones.flatten())
    return (*result, totals)


def _reference_entropy_backward(grad_loss, grad_per_scale, logits, bits, weight, scale_ids, totals):
    with torch.enable_grad():
        x = logits.detach().requires_grad_()
        result = _reference_entropy(x, bits, weight, scale_ids, totals.shape[0])
        used = totals > 0
        outputs, grads = [result[0], result[1][used]], [grad_loss, grad_per_scale[used]]
        return torch.autograd.grad(outputs, x, grads)[0]


register_fallback("bsq_quantize", lambda x: tuple(reference.bits.bsq_quantize(x))[::-1])
register_fallback("pack_bits", reference.bits.pack_bits)
register_fallback("unpack_bits", reference.bits.unpack_bits)
register_fallback("bits_to_code", reference.bits.bits_to_code)
register_fallback("flip_bits", _reference_flip)
register_fallback("sample_bits", _reference_sample)
register_fallback("bit_cross_entropy", _reference_entropy)
register_fallback("bit_cross_entropy_backward", _reference_entropy_backward)
