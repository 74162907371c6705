"""What a tokenizer keeps: the gates that a transformer's training waits for.

PSNR over all pixels and over the sprite's alone, the attributes that `measure` finds in reconstructions (from all
scales and without the last), and the entropy of the bits of each scale at a given frame index: a bit that tells the
first frame from the others and nothing else has marginal entropy and carries nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from videoar.data.pixels import from_uint8, to_uint8
from videoar.data.sprites import SpriteConfig, measure_batch, sample_batch
from videoar.tokenizer.losses import binary_entropy
from videoar.tokenizer.model import VideoTokenizer
from videoar_kernels.reference.bits import unpack_bits

ATTRIBUTES = ("colour", "shape", "direction", "speed")


class TokenizerReport(NamedTuple):
    """Figures over a set of clips; shares are 0 to 1, PSNR in dB, entropies in bits a bit.

    `attributes[k]` holds the share of clips whose attribute is right when the first k + 1 scales are decoded.
    """

    clips: int
    psnr: float
    foreground_psnr: float
    attributes: list[dict[str, float]]
    entropy: list[float]
    lowest_entropy: list[float]


@torch.no_grad()
def evaluate_tokenizer(
    tokenizer: VideoTokenizer, *, clips: int = 256, batch: int = 32, seed: int = 1_000_003, split: str = "heldout"
) -> TokenizerReport:
    """Measure a tokenizer on sprites.

    Args:
        tokenizer: on the CPU.
        clips: how many.
        batch: clips at a time.
        seed: which clips.
        split: of the combinations.
    """
    scales = tokenizer.config.scales
    right = [dict.fromkeys(ATTRIBUTES, 0) for _ in scales]
    squared, foreground, area, pixels = 0.0, 0.0, 0.0, 0
    ones, count = [], 0
    for first in range(0, clips, batch):
        size = min(batch, clips - first)
        truth = sample_batch(size, seed, first, split=split, config=SpriteConfig())
        bits = tokenizer.tokenize(from_uint8(truth.video))
        plain = unpack_bits(bits, tokenizer.config.bits).double()  # (B, T, N, d)
        ones.append(torch.stack([part.mean((0, 2)) * size for part in _by_scale(plain, scales)]))
        count += size
        for kept in range(1, len(scales) + 1):
            video = to_uint8(tokenizer.detokenize(bits, keep=kept))
            for seen, wanted in zip(measure_batch(video), truth.attributes, strict=True):
                for name in ATTRIBUTES:
                    right[kept - 1][name] += getattr(seen.attributes, name) == getattr(wanted, name)
        error = (video.double() - truth.video.double()).square().mean(-1) / 255**2  # (B, T, H, W), from all scales
        squared += error.sum().item()
        pixels += error.numel()
        foreground += (error * truth.mask).sum().item()
        area += truth.mask.sum().item()
    entropy = binary_entropy(torch.stack(ones).sum(0) / count) / torch.log(torch.tensor(2.0))  # (K, T, d)
    return TokenizerReport(
        clips=clips,
        psnr=_decibel(squared / pixels),
        foreground_psnr=_decibel(foreground / area),
        attributes=[{name: value / clips for name, value in found.items()} for found in right],
        entropy=entropy.mean((1, 2)).tolist(),
        lowest_entropy=entropy.mean(2).amin(1).tolist(),
    )


def _by_scale(x: Tensor, scales: tuple[tuple[int, int], ...]) -> tuple[Tensor, ...]:
    return x.split([height * width for height, width in scales], 2)


def _decibel(mean_square: float) -> float:
    return -10 * torch.log10(torch.tensor(max(mean_square, 1e-12))).item()
