"""Bits of binary spherical quantization: bit = x > 0, code = (2 bit - 1) / sqrt(d).

Packed bits are uint8, little-endian (bit j of a token is bit `j mod 8` of byte `j div 8`), `ceil(d / 8)` bytes a
token, padding bits zero. Random events follow `reference.philox`.
Source: VideoAR (paper S), Eq. 3 and 8; Infinity (bitwise tokens, self-correction).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .philox import philox_uniform


class BSQ(NamedTuple):
    bits: Tensor
    code: Tensor


class SampledBits(NamedTuple):
    bits: Tensor
    code: Tensor


class BitLoss(NamedTuple):
    loss: Tensor
    per_scale: Tensor
    accuracy: Tensor
    per_scale_accuracy: Tensor


def leading(x: float | Tensor, shape: torch.Size, like: Tensor) -> Tensor:
    """Broadcast a float or a tensor over the trailing dimensions of `shape`, as float64."""
    x = torch.as_tensor(x, dtype=torch.float64, device=like.device)
    return x.reshape(x.shape + (1,) * (len(shape) - x.ndim)).expand(shape)


def pack_bits(bits: Tensor) -> Tensor:
    """Pack bits (..., d), bool or uint8 (non-zero is one), into uint8 (..., ceil(d / 8))."""
    ones = (bits != 0).to(torch.uint8)
    ones = torch.nn.functional.pad(ones, (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (ones << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, dim: int | None = None) -> Tensor:
    """Unpack uint8 (..., ceil(d / 8)) into bool (..., d); `dim` is d, by default eight per byte."""
    ones = (bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    ones = ones.flatten(-2).bool()
    return ones if dim is None else ones[..., :dim]


def bits_to_code(bits: Tensor, dim: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the code ±1/sqrt(d) (..., d) of packed bits."""
    ones = unpack_bits(bits, dim)
    amplitude = torch.tensor(1.0 / math.sqrt(max(ones.shape[-1], 1)), dtype=torch.float64, device=bits.device)
    return torch.where(ones, amplitude, -amplitude).to(dtype)


def bsq_quantize(x: Tensor) -> BSQ:
    """Return packed bits (zero and NaN map to 0) and the code ±1/sqrt(d) of x (..., d); straight-through gradient."""
    bits = pack_bits(x.detach() > 0)
    code = bits_to_code(bits, x.shape[-1], x.dtype)
    return BSQ(bits, code + (x - x.detach()) if x.requires_grad else code)


def flip_bits(bits: Tensor, p: float | Tensor, *, seed: int, offset: int = 0, dim: int | None = None) -> Tensor:
    """Flip each packed bit with probability p (a float, or a tensor over the leading token dimensions)."""
    ones = unpack_bits(bits, dim)
    flip = philox_uniform(ones.shape, seed, offset, bits.device) < leading(p, bits.shape[:-1], bits).unsqueeze(-1)
    return pack_bits(ones ^ flip)


def sample_bits(
    logits: Tensor,
    *,
    uncond: Tensor | None = None,
    guidance: float | Tensor = 1.0,
    temperature: float = 1.0,
    seed: int | Tensor,
    offset: int = 0,
) -> SampledBits:
    """Draw one bit per logit (..., d): guidance, sigmoid(logit / temperature), Bernoulli (temperature 0: logit > 0).

    With a seed per sample (B,), every sample of logits (B, ..., d) is drawn as if alone.
    """
    logit = logits.detach().double()
    if uncond is not None:
        guidance = torch.as_tensor(guidance, dtype=torch.float64, device=logits.device).unsqueeze(-1)
        logit = uncond.detach().double() + guidance * (logit - uncond.detach().double())
    if temperature == 0:
        ones = logit > 0
    else:
        if isinstance(seed, Tensor):
            each = [philox_uniform(logits.shape[1:], one, offset, logits.device) for one in seed.tolist()]
            uniform = torch.stack(each) if each else torch.zeros_like(logit)
        else:
            uniform = philox_uniform(logits.shape, seed, offset, logits.device)
        ones = uniform < torch.sigmoid(logit / temperature)
    bits = pack_bits(ones)
    return SampledBits(bits, bits_to_code(bits, logits.shape[-1], logits.dtype))


def bit_cross_entropy(
    logits: Tensor,
    bits: Tensor,
    *,
    weight: Tensor | None = None,
    scale_ids: Tensor | None = None,
    num_scales: int = 1,
    dim: int | None = None,
) -> BitLoss:
    """Bit-wise cross-entropy of logits (..., d): mean over bits and (weighted) tokens, whole and per scale."""
    tokens = logits.shape[:-1]
    x = logits if logits.dtype == torch.float64 else logits.float()
    ones = unpack_bits(bits, logits.shape[-1] if dim is None else dim).expand(x.shape)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, ones.to(x.dtype), reduction="none").mean(-1)
    correct = ((x > 0) == ones).to(x.dtype).mean(-1)
    weight = x.new_ones(tokens) if weight is None else weight.detach().to(x.dtype).expand(tokens)
    if scale_ids is None:
        scale_ids = torch.zeros(tokens, dtype=torch.int64, device=x.device)
    member = torch.nn.functional.one_hot(scale_ids.long().expand(tokens).flatten(), num_scales).to(x.dtype)
    member = member * weight.reshape(-1, 1)  # (tokens, scales)
    total = member.sum(0)
    entropies, hits = entropy.flatten() @ member, correct.flatten() @ member
    return BitLoss(
        entropies.sum() / total.sum(),
        entropies / total,
        (hits.sum() / total.sum()).detach(),
        (hits / total).detach(),
    )
