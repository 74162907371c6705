"""Philox 4x32-10, indexed by the logical element (the definition every backend is compared with).

Element i takes word `i mod 4` of Philox(counter = (i div 4, offset), key = seed), each a 64-bit pair, low word
first; its uniform is `(word >> 8) * 2^-24`.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def _multiply(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    product = x * multiplier  # int64 wraps; its 64 bits are those of the unsigned product
    return (product >> 32) & WORD, product & WORD


def philox_block(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four output words of ten Philox rounds.

    Args:
        counter: four int64 tensors holding 32-bit words, low word first.
        key: two 32-bit words, low word first.
    Returns:
        Four int64 tensors holding 32-bit words.
    Source: Salmon et al. (2011), Sec. 3.3.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def philox_words(
    shape: Sequence[int] | int, seed: int, offset: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Return the 32-bit random words of a tensor's elements.

    Args:
        shape: logical shape; elements are numbered row-major.
        seed: 64-bit key (a negative one is taken as two's complement).
        offset: 64-bit second half of the counter.
        device: where the result lives.
    Returns:
        int64 tensor of `shape` with values in [0, 2^32).
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    n = math.prod(shape)
    block = torch.arange((n + 3) // 4, dtype=torch.int64, device=device)
    counter = [block & WORD, block >> 32]
    counter += [torch.full_like(block, offset & WORD), torch.full_like(block, (offset >> 32) & WORD)]
    words = philox_block(counter, (seed & WORD, (seed >> 32) & WORD))
    return torch.stack(words, dim=-1).flatten()[:n].reshape(shape)


def philox_uniform(
    shape: Sequence[int] | int, seed: int, offset: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Return a tensor's uniforms in [0, 1), multiples of 2^-24.

    Args:
        shape: logical shape; elements are numbered row-major.
        seed: 64-bit key (a negative one is taken as two's complement).
        offset: 64-bit second half of the counter.
        device: where the result lives.
    Returns:
        float32 tensor of `shape`.
    """
    return (philox_words(shape, seed, offset, device) >> 8).float() * 2.0**-24
