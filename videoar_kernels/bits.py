"""Packed bits of binary spherical quantization.

    bit = x > 0,  code = (2 bit - 1) / sqrt(d)
    flip: bit xor [uniform < p],  sample: bit = uniform < sigmoid(logit / temperature)

Packed bits are uint8 (..., ceil(d / 8)): bit j of a token is bit `j mod 8` of byte `j div 8`, padding bits are zero.
Uniforms are Philox 4x32-10 of the logical element (`reference/philox.py`), so a seed gives the same bits everywhere.
Source: VideoAR (paper S), Eq. 3 and 8; BSQ (Zhao et al. 2024); Infinity (Han et al. 2024), Sec. 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.argument_types import check_tensor
from videoar_kernels.bit_checks import (
    check_float,
    check_packed,
    check_probability,
    expanded,
    signed64,
)
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into
from videoar_kernels.outputs import Inputs, check_dense_out
from videoar_kernels.reference.bits import BSQ, SampledBits

# Looking an overload up takes 0.2 us.
_BSQ_QUANTIZE = ops.bsq_quantize.default
_BSQ_QUANTIZE_OUT = ops.bsq_quantize_out.default
_FLIP_BITS = ops.flip_bits.default
_FLIP_BITS_OUT = ops.flip_bits_out.default
_SAMPLE_BITS = ops.sample_bits.default
_SAMPLE_BITS_OUT = ops.sample_bits_out.default


def bsq_quantize(x: Tensor, *, out: tuple[Tensor, Tensor] | None = None) -> BSQ:
    """Quantize each element to its sign.

    Args:
        x: (..., d), float32, float64, bfloat16 or float16. Its norm does not matter.
        out: (bits, code) to write to, dense; `code` may be x itself. At inference only.
    Returns:
        BSQ(bits uint8 (..., ceil(d / 8)), code (..., d) of x's dtype, ±1/sqrt(d)). Zero and NaN map to bit 0. The
        gradient of `code` is passed to x unchanged (straight-through).
    Raises:
        TypeError, ValueError: x is not floating or has no dimension; `out` does not fit.
    Source: VideoAR (paper S), Sec. 4.1; BSQ, Eq. 3.
    """
    if out is None:
        code, bits = run(_BSQ_QUANTIZE, lambda: check_float("bsq_quantize", "x", x), x)
        return BSQ(bits, code)

    def check() -> None:
        check_float("bsq_quantize", "x", x)
        _check_coded("bsq_quantize", x, *out, {"x": x})

    run_into(out, _BSQ_QUANTIZE_OUT, check, x, *out)
    return BSQ(*out)


def _check_coded(name: str, x: Tensor, bits: Tensor, code: Tensor, inputs: Inputs) -> None:
    check_dense_out(name, "code of out", code, x.shape, x.dtype, inputs)
    shape = (*x.shape[:-1], (x.shape[-1] + 7) // 8)
    check_dense_out(name, "bits of out", bits, shape, torch.uint8, inputs, {"code of out": code})


def flip_bits(
    bits: Tensor,
    p: float | Tensor,
    *,
    seed: int,
    offset: int = 0,
    dim: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Flip each bit independently with probability p.

    Args:
        bits: uint8 (..., ceil(dim / 8)).
        p: probability within [0, 1]: a float, or a tensor over the *leading* token dimensions: () for all, (B,) per
            sample, `bits.shape[:-1]` per token. Compared with the uniform in float64. A tensor's values are checked on
            the CPU only: elsewhere that would wait for the device.
        seed: key of the random generator, within [0, 2^64).
        offset: second half of its counter (for example the training step), within [0, 2^64).
        dim: bits a token, by default eight per byte. Element `token * dim + j` draws its own uniform.
        out: uint8 like `bits`, dense, to write to; may be `bits`.
    Returns:
        uint8 like `bits`, padding bits zero.
    Raises:
        TypeError, ValueError: `bits` is not uint8 or does not fit `dim`; p does not fit the token dimensions or is not
            within [0, 1]; seed or offset have more than 64 bits; `out` does not fit.
    Source: VideoAR (paper S), Eq. 8.
    """
    value, token_p = p, None
    if not isinstance(p, float) and isinstance(p, Tensor):
        value, token_p = 0.0, _leading_p(bits, p)

    def check() -> None:
        check_packed("flip_bits", bits, dim)
        check_probability("flip_bits", p if token_p is None else token_p)
        if out is not None:
            check_dense_out("flip_bits", "out", out, bits.shape, torch.uint8, {"bits": bits})

    if not (type(seed) is type(offset) is int and 0 <= seed < 2**63 and 0 <= offset < 2**63):
        seed, offset = signed64("flip_bits", "seed", seed), signed64("flip_bits", "offset", offset)
    if out is None:
        return run(_FLIP_BITS, check, bits, value, token_p, dim, seed, offset)
    run_into(out, _FLIP_BITS_OUT, check, bits, value, token_p, dim, seed, offset, out)
    return out


def _leading_p(bits: Tensor, p: Tensor) -> Tensor:
    check_packed("flip_bits", bits, None)
    tokens = bits.shape[:-1]
    if p.ndim > len(tokens):
        raise ValueError(f"flip_bits: expected p over the leading dimensions of {tuple(tokens)}, got {tuple(p.shape)}")
    p = p.reshape(p.shape + (1,) * (len(tokens) - p.ndim))
    return expanded("flip_bits", "p", p, tokens, torch.float64, bits.device)


def sample_bits(
    logits: Tensor,
    *,
    uncond: Tensor | None = None,
    guidance: float | Tensor = 1.0,
    temperature: float = 1.0,
    seed: int | Tensor,
    offset: int = 0,
    out: tuple[Tensor, Tensor] | None = None,
) -> SampledBits:
    """Draw one bit per logit, with classifier-free guidance, in one pass.

    Args:
        logits: (..., d), one logit per bit, float32, float64, bfloat16 or float16.
        uncond: like logits, the unconditional ones; None: no guidance.
        guidance: logit = uncond + guidance * (logits - uncond); a finite float, or a tensor broadcastable to
            `logits.shape[:-1]`. Without uncond it must be 1.
        temperature: p = sigmoid(logit / temperature); 0 is greedy, bit = logit > 0.
        seed: key of the random generator, within [0, 2^64); or int64 (B,), one for each sample of logits (B, ..., d),
            whose elements are then numbered from 0: a sample's bits don't depend on the rest of the batch.
        offset: second half of its counter (for example the sampling step), within [0, 2^64).
        out: (bits, code) to write to, dense; `code` may be logits or uncond.
    Returns:
        SampledBits(bits uint8 (..., ceil(d / 8)), code (..., d) of logits' dtype). bit = uniform < p, decided as if
        in float64 whatever the dtype. A NaN logit gives bit 0. No gradient.
    Raises:
        TypeError, ValueError: dtype, shape, guidance, temperature, seed, offset or out.
    Source: Infinity, Sec. 3.2; VideoAR (paper S), Sec. 4.3.
    """
    token_guidance = None
    if not isinstance(guidance, float) and isinstance(guidance, Tensor):
        check_float("sample_bits", "logits", logits)
        tokens = logits.shape[:-1]
        token_guidance = expanded("sample_bits", "guidance", guidance, tokens, torch.float64, logits.device)
        guidance = 1.0

    def check() -> None:
        _check_sample(logits, uncond, guidance, token_guidance, temperature, seeds, out)

    seeds = None
    if not isinstance(seed, int) and isinstance(seed, Tensor):
        seed, seeds = 0, seed
    if not (type(seed) is type(offset) is int and 0 <= seed < 2**63 and 0 <= offset < 2**63):
        seed, offset = signed64("sample_bits", "seed", seed), signed64("sample_bits", "offset", offset)
    if torch.is_grad_enabled():
        check()
        logits, uncond = logits.detach(), None if uncond is None else uncond.detach()
    arguments = (logits, uncond, guidance, token_guidance, temperature, seed, seeds, offset)
    if out is None:
        code, bits = run(_SAMPLE_BITS, check, *arguments)
        return SampledBits(bits, code)
    run_into(out, _SAMPLE_BITS_OUT, check, *arguments, *out)
    return SampledBits(*out)


def _check_sample(
    logits: Tensor,
    uncond: Tensor | None,
    guidance: float,
    token_guidance: Tensor | None,
    temperature: float,
    seeds: Tensor | None,
    out: tuple[Tensor, Tensor] | None,
) -> None:
    check_float("sample_bits", "logits", logits)
    if seeds is not None and not (
        logits.ndim > 1
        and seeds.shape == logits.shape[:1]
        and seeds.dtype == torch.int64
        and seeds.device == logits.device
    ):
        raise ValueError(
            f"sample_bits: expected seed of int64, one for each of the samples of logits {tuple(logits.shape)} "
            f"on {logits.device}, got {tuple(seeds.shape)} {seeds.dtype} on {seeds.device}"
        )
    if uncond is not None:
        check_tensor("sample_bits", "uncond", uncond)
        if uncond.shape != logits.shape or uncond.dtype != logits.dtype or uncond.device != logits.device:
            raise ValueError(
                f"sample_bits: expected uncond like logits {tuple(logits.shape)} {logits.dtype} on {logits.device}, "
                f"got {tuple(uncond.shape)} {uncond.dtype} on {uncond.device}"
            )
    if uncond is None and token_guidance is not None:
        raise ValueError("sample_bits: expected uncond with a tensor of guidance, got None")
    if uncond is None and guidance != 1:
        raise ValueError(f"sample_bits: expected guidance 1 without uncond, got {guidance}")
    if not -math.inf < guidance < math.inf:
        raise ValueError(f"sample_bits: expected a finite guidance, got {guidance}")
    if not temperature >= 0:
        raise ValueError(f"sample_bits: expected temperature >= 0, got {temperature}")
    if out is not None:
        _check_coded("sample_bits", logits, *out, {"logits": logits, "uncond": uncond})


def _save_quantize(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])


def _quantize_gradient(ctx, grad_code, grad_bits):
    return grad_code


torch.library.register_autograd("videoar_kernels::bsq_quantize", _quantize_gradient, setup_context=_save_quantize)


def _packed_like(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], (x.shape[-1] + 7) // 8), dtype=torch.uint8)


@register_fake("videoar_kernels::bsq_quantize")
def _(x):
    return x.new_empty(x.shape), _packed_like(x)


@register_fake("videoar_kernels::bsq_quantize_out")
def _(x, bits, code):
    return None


@register_fake("videoar_kernels::flip_bits_out")
def _(bits, p, token_p, dim, seed, offset, out):
    return None


@register_fake("videoar_kernels::sample_bits_out")
def _(logits, uncond, guidance, token_guidance, temperature, seed, seeds, offset, bits, code):
    return None


@register_fake("videoar_kernels::flip_bits")
def _(bits, p, token_p, dim, seed, offset):
    return bits.new_empty(bits.shape)


@register_fake("videoar_kernels::sample_bits")
def _(logits, uncond, guidance, token_guidance, temperature, seed, seeds, offset):
    return logits.new_empty(logits.shape), _packed_like(logits)


def _reference_flip(bits, p, token_p, dim, seed, offset):
    return reference.bits.flip_bits(bits, p if token_p is None else token_p, seed=seed, offset=offset, dim=dim)


def _reference_sample(logits, uncond, guidance, token_guidance, temperature, seed, seeds, offset):
    seed = seed if seeds is None else seeds
    guidance = guidance if token_guidance is None else token_guidance
    options = {"guidance": guidance, "temperature": temperature, "seed": seed, "offset": offset}
    bits, code = reference.bits.sample_bits(logits, uncond=uncond, **options)
    return code, bits


def _reference_quantize_out(x, bits, code):
    for to, result in zip((bits, code), reference.bits.bsq_quantize(x.detach()), strict=True):
        to.copy_(result)


def _reference_flip_out(*arguments):
    arguments[-1].copy_(_reference_flip(*arguments[:-1]))


def _reference_sample_out(*arguments):
    for to, result in zip(arguments[-2:], reversed(_reference_sample(*arguments[:-2])), strict=True):
        to.copy_(result)


register_fallback("bsq_quantize", lambda x: tuple(reference.bits.bsq_quantize(x))[::-1])
register_fallback("flip_bits", _reference_flip)
register_fallback("sample_bits", _reference_sample)
register_fallback("bsq_quantize_out", _reference_quantize_out)
register_fallback("flip_bits_out", _reference_flip_out)
register_fallback("sample_bits_out", _reference_sample_out)
