"""How much the bits of each scale can say, in bits a bit.

With p the share of clips in which a bit is one, H(p) = -p log2 p - (1 - p) log2(1 - p) is averaged over the bits of a
scale. What p is conditional on decides what counts as information: a bit that only tells the first frame from the
others looks lively in the marginal and is constant given the frame; one that only tells the corner from the middle is
constant given the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from videoar_kernels.reference.bits import unpack_bits


class BitEntropy(NamedTuple):
    """Mean entropies per scale, 0 to 1; clips are few, so each is low by about 1 / (1.4 clips) where p is per place.

    `marginal`: p over clips, frames and places. `frame`: p of each frame index, over clips and places.
    `place`: p of each frame index and place, over clips alone. `lowest_frame`: the frame index where `frame` is least.
    """

    marginal: list[float]
    frame: list[float]
    place: list[float]
    lowest_frame: list[float]


def bit_entropy(bits: Tensor, scales: Sequence[tuple[int, int]], dim: int) -> BitEntropy:
    """Measure the entropy of a tokenizer's bits.

    Args:
        bits: packed (B, T, N, ceil(dim / 8)) uint8 of B clips.
        scales: (h, w) of every scale, N tokens together.
        dim: bits a token.
    """
    tokens = [height * width for height, width in scales]
    if bits.ndim != 4 or bits.shape[2] != sum(tokens):
        raise ValueError(
            f"bit_entropy: expected bits of shape (B, T, {sum(tokens)}, {-(-dim // 8)}), got {tuple(bits.shape)}"
        )
    plain = unpack_bits(bits, dim).double().split(tokens, 2)  # K of (B, T, N_k, d)
    by_frame = [_entropy(part.mean((0, 2))).mean(1) for part in plain]  # K of (T,)
    return BitEntropy(
        marginal=[_entropy(part.mean((0, 1, 2))).mean().item() for part in plain],
        frame=[part.mean().item() for part in by_frame],
        place=[_entropy(part.mean(0)).mean().item() for part in plain],
        lowest_frame=[part.min().item() for part in by_frame],
    )


def _entropy(p: Tensor) -> Tensor:
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / torch.log(torch.tensor(2.0, dtype=p.dtype))
